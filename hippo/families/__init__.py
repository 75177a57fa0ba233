"""Model families. A new family is one more file and one more line in FAMILIES."""

from typing import Any

from hippo.families.base import Card, Embeds, Family, Prompt, Released, VideoGrid
from hippo.families.internvl import InternVL
from hippo.families.llava_next_video import LlavaNextVideo
from hippo.families.llava_onevision import LlavaOnevision
from hippo.families.qwen2_5_vl import Qwen2_5VL
from hippo.families.qwen2_vl import Qwen2VL
from hippo.families.qwen3_vl import Qwen3VL
from hippo.families.smolvlm import SmolVLM
from hippo.families.unserved import unserved
from hippo.families.video_llama_3 import VideoLlama3

FAMILIES: tuple[Family, ...] = (
    Qwen2VL(),
    Qwen2_5VL(),
    Qwen3VL(),
    LlavaOnevision(),
    LlavaNextVideo(),
    InternVL(),
    SmolVLM(),
    VideoLlama3(),
)

__all__ = ["FAMILIES", "Card", "Embeds", "Family", "Prompt", "Released", "VideoGrid", "family_of", "require_family"]


def family_of(model: Any) -> Family:
    """The family a loaded model belongs to. Raises HippoError if there is none yet."""
    return require_family(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def require_family(model_type: str) -> Family:
    """The family of a checkpoint's model_type. Raises HippoError if there is none, saying why."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise unserved(model_type, ", ".join(name for family in FAMILIES for name in family.model_types))
