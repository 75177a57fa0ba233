"""The entry point of lmms-eval. Every start of lmms-eval imports this file, so it imports next to nothing."""

from typing import Any


def manifest() -> Any:
    """Where lmms-eval finds the model."""
    # Not above: lmms_eval.models calls this while it is being imported.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="hippo", chat_class_path="hippo.lmms.model.Hippo")
