"""Video processors that cut frames into patches do so before they make floats of them: fewer bytes are moved."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hippo.quiet import quiet

_STEPS = ("rescale_and_normalize", "patchify", "patch_size", "merge_size")


def patches_first(videos: Any) -> Any:
    """A copy of a video processor that cuts frames into patches as bytes, with the same pixels; or the processor itself
    where that is not possible.

    Rescaling and normalising take one pixel at a time, so their order and that of cutting does not matter. It is done
    for transformers' own classes with these two steps, and only if both orders give the same bits here.
    """
    known: Any = type(videos)
    swapped = _swapped(known)
    if swapped is None:
        return videos
    ours = copy.copy(videos)
    ours.__class__ = swapped
    return ours


@lru_cache(maxsize=8)
def _swapped(known: Any) -> type | None:
    """The class with its two steps in the other order, compared once; None if it has no such steps or they differ."""
    if not known.__module__.startswith("transformers.") or not all(hasattr(known, name) for name in _STEPS):
        return None
    swapped = type(known.__name__, (_PatchesFirst, known), {"__module__": known.__module__})
    side = 2 * known.patch_size * known.merge_size
    frames = torch.randint(
        0, 256, (4, 3, side, 2 * side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    given = {"videos": [frames], "do_resize": False, "do_sample_frames": False, "return_tensors": "pt"}
    with quiet():
        theirs, ours = (each()(**given)["pixel_values_videos"] for each in (known, swapped))
    return swapped if torch.equal(theirs, ours) else None


class _PatchesFirst:
    """A video processor's two steps in the other order."""

    def rescale_and_normalize(self, images: Tensor, *how: Any) -> Tensor:
        if images.dtype != torch.uint8:
            done: Tensor = super().rescale_and_normalize(images, *how)  # type: ignore[misc]
            return done
        images.how = how  # type: ignore[attr-defined]
        return images

    def patchify(self, videos: Tensor, *sizes: Any, **named: Any) -> tuple[Any, ...]:
        patches, *grid = super().patchify(videos, *sizes, **named)  # type: ignore[misc]
        if (how := getattr(videos, "how", None)) is not None:
            channels = videos.shape[2]
            apart = patches.view(-1, channels, 1, patches.shape[-1] // channels)
            patches = super().rescale_and_normalize(apart, *how).view(patches.shape)  # type: ignore[misc]
        return patches, *grid
