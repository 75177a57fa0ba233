"""Why a model cannot be served, from what the installed transformers knows of its type."""

from __future__ import annotations

import inspect

from hippo.errors import HippoError


def unserved(model_type: str, served: str) -> HippoError:
    """The error for a model_type that is no family's. served: the types that are, for a reader."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        return HippoError(
            f"transformers {transformers.__version__} knows no model of type {model_type!r}",
            f"check the checkpoint, or try another transformers; HIPPO serves {served}",
        )
    if not _is_video_llm(model_type):
        return HippoError(f"models of type {model_type!r} are no video-LLMs", f"use one of: {served}")
    return HippoError(
        f"models of type {model_type!r} are video-LLMs that HIPPO does not serve yet",
        f"use one of: {served}; or add it, as one file in hippo/families that says where its video tokens are, "
        "their positions and their embeddings",
    )


def _is_video_llm(model_type: str) -> bool:
    """Whether transformers has it write text, and has a video processor or a video token for it."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES | MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        return False
    settings = inspect.signature(CONFIG_MAPPING[model_type]).parameters
    return model_type in VIDEO_PROCESSOR_MAPPING_NAMES or any("video_token" in name for name in settings)
