"""Clips made of real ones, for studies: parts, mirrored or cut together. What they show is not known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from hippo.bench.world.content import FPS
from hippo.bench.world.render import SIDE

WAYS = ("part", "mirrored", "cut", "beside")
_SECONDS = 6.0


def write_mixed(clips: Sequence[Path], seed: int, path: Path) -> str:
    """Write a clip of 6 seconds, 224 pixels a side, made of parts of real ones, the same for the same seed. Returns the
    way it was made. Raises MediaError."""
    from hippo.video import write_video

    rng = random.Random(f"mixed-{seed}")
    way, count = WAYS[seed % len(WAYS)], round(_SECONDS * FPS)
    first, second = (_part(rng.choice(clips), rng, count) for _ in range(2))
    if way == "mirrored":
        first = first[:, :, ::-1]
    elif way == "cut":
        first = np.concatenate([first[: count // 2], second[count // 2 :]])
    elif way == "beside":
        first = np.concatenate([first[:, :, : SIDE // 2], second[:, :, SIDE // 2 :]], axis=2)
    write_video(first, path, Fraction(FPS), (SIDE, SIDE))
    return way


def _part(clip: Path, rng: random.Random, count: int) -> np.ndarray:
    """(count, S, S, 3) uint8: a stretch of a clip, and of its picture."""
    from hippo.video import read_video

    frames = read_video(clip, frames=3 * count).frames
    begin = rng.randrange(max(1, len(frames) - count))
    height, width = frames.shape[1:3]
    side = rng.uniform(0.6, 1.0) * min(height, width)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    box = (left, top, left + side, top + side)
    chosen = [frames[min(begin + index, len(frames) - 1)] for index in range(count)]
    return np.stack([
        np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)) for frame in chosen
    ])  # fmt: skip
