"""Model families. A new family is one more file and one more line in FAMILIES."""

from typing import Any

from hippo.errors import HippoError
from hippo.families.base import Family, Prompt, VideoGrid
from hippo.families.llava_onevision import LlavaOnevision
from hippo.families.qwen2_5_vl import Qwen2_5VL

FAMILIES: tuple[Family, ...] = (Qwen2_5VL(), LlavaOnevision())

__all__ = ["FAMILIES", "Family", "Prompt", "VideoGrid", "family_of"]


def family_of(model: Any) -> Family:
    """The family a loaded model belongs to. Raises HippoError if there is none yet."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise HippoError(f"models of type {kind!r} are not supported yet", f"use one of: {known}")
