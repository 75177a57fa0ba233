"""Draw a scene: frames at chosen times, or a whole clip as mp4."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hippo.bench.world.scene import COLOURS, Scene

SIDE = 224
FPS = 12
_TONE = {"dark": 46, "grey": 122, "light": 204}


def render(scene: Scene, times: list[float], side: int = SIDE, ground: np.ndarray | None = None) -> np.ndarray:
    """Frames of a scene. times: shares of the clip in 0..1. ground: (side, side, 3) float32, the scene's own if None.
    Returns (len(times), side, side, 3) uint8."""
    ground = _ground(scene, side) if ground is None else ground
    frames = np.repeat(ground[None], len(times), axis=0)
    for frame, time in zip(frames, times, strict=True):
        for thing in scene.things:
            look = thing.look(time)
            if look.visible:
                _paste(frame, thing.shape, look.radius * side / 224, look.x * side, look.y * side, COLOURS[look.colour])
    return frames.astype(np.uint8)


def frame_times(scene: Scene) -> list[float]:
    """The times, as shares of the clip, of the frames of the clip that `write_clip` writes."""
    count = round(scene.duration * FPS)
    return [index / (count - 1) for index in range(count)]


def write_clip(scene: Scene, path: Path, side: int = SIDE) -> None:
    """Write the scene as H.264 at 12 frames per second, its sides `side` pixels (even)."""
    from hippo.video import write_video  # drawing alone needs no PyAV, so that a pair can be trained without it

    times = frame_times(scene)
    batches = (render(scene, times[begin : begin + 32], side) for begin in range(0, len(times), 32))
    write_video(chain.from_iterable(batches), path, Fraction(FPS), (side, side))


def _ground(scene: Scene, side: int) -> np.ndarray:
    """(side, side, 3) float32, low in saturation so that every object colour is distinct."""
    rng = np.random.default_rng(scene.seed)
    base = _TONE[scene.tone] + rng.uniform(-8, 8, size=3)
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) * (224 / side)
    period = rng.uniform(14, 22)
    if scene.texture == "striped":
        angle = rng.uniform(0, np.pi)
        pattern = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * (2 * np.pi / period)) * 14
    elif scene.texture == "checkered":
        pattern = (((rows // period) + (columns // period)) % 2 * 2 - 1) * 13
    elif scene.texture == "noisy":
        pattern = rng.normal(0, 13, size=(side, side))
    else:
        angle = rng.uniform(0, 2 * np.pi)
        pattern = ((rows - 112) * np.sin(angle) + (columns - 112) * np.cos(angle)) * (26 / 112)
    return np.clip(base + pattern[..., None], 0, 255).astype(np.float32)


def _paste(frame: np.ndarray, shape: str, radius: float, x: float, y: float, colour: tuple[int, int, int]) -> None:
    mask = _mask(shape, round(radius))
    half = mask.shape[0] // 2
    top, left = round(y) - half, round(x) - half
    t, l = max(0, -top), max(0, -left)  # noqa: E741
    b = min(mask.shape[0], frame.shape[0] - top)
    r = min(mask.shape[1], frame.shape[1] - left)
    if t >= b or l >= r:
        return
    alpha = mask[t:b, l:r, None]
    patch = frame[top + t : top + b, left + l : left + r]
    patch += alpha * (np.asarray(colour, np.float32) - patch)


@lru_cache(maxsize=512)
def _mask(shape: str, radius: int) -> np.ndarray:
    """Coverage of a shape in 0..1, (2 radius + 3) a side, drawn four times too large and shrunk."""
    side, scale = 2 * radius + 3, 4
    image = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(image)
    centre, r = side * scale / 2, radius * scale

    def box(k: float) -> list[float]:
        return [centre - k * r, centre - k * r, centre + k * r, centre + k * r]

    def polygon(angles: list[float], lengths: list[float]) -> None:
        draw.polygon(
            [(centre + k * r * np.sin(a), centre - k * r * np.cos(a)) for a, k in zip(angles, lengths, strict=True)],
            fill=255,
        )

    if shape == "circle":
        draw.ellipse(box(1.0), fill=255)
    elif shape == "ring":
        draw.ellipse(box(1.0), fill=255)
        draw.ellipse(box(0.55), fill=0)
    elif shape == "square":
        draw.rectangle(box(0.88), fill=255)
    elif shape == "triangle":
        polygon([0, 2 * np.pi / 3, 4 * np.pi / 3], [1.1, 1.1, 1.1])
    elif shape == "star":
        polygon([i * np.pi / 5 for i in range(10)], [1.1, 0.45] * 5)
    elif shape == "cross":
        arm = 0.34 * r
        draw.rectangle([centre - arm, centre - r, centre + arm, centre + r], fill=255)
        draw.rectangle([centre - r, centre - arm, centre + r, centre + arm], fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}")
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255
