"""Twelve kinds of clips for studies: the world as it is, and what real clips have and it has not.

All are made from scenes, so that it is known where a clip shows something. Only `plain` is what the bundled pair was
trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hippo.bench.world.render import SIDE, render
from hippo.bench.world.scene import COLOURS, SHAPES, SIZES, TEXTURES, TONES, Event, Look, Scene, Thing, make_scene

Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the picture
View = tuple[float, float, float]  # a window into a larger picture: left, top, and its side, in shares of that
FPS = 16
_LARGER = 1.4  # of a picture that a camera moves over, to what it shows
_WORDS = ("EXIT", "SALE", "TAXI", "OPEN", "NEWS", "STOP", "CAFE", "WEST")


@dataclass(frozen=True)
class Film:
    """A clip before it is written. draw: a time, as a share of the clip -> (S, S, 3) float32. shown: a time -> where
    something shows. question: about something in it."""

    seed: int
    kind: str
    duration: float
    draw: Callable[[float], np.ndarray]
    shown: Callable[[float], list[Box]]
    question: str


def film(kind: str, seed: int) -> Film:
    """The clip of a kind and a seed. Raises KeyError for an unknown kind."""
    return _KINDS[kind](seed)


def write_film(film: Film, path: Path) -> None:
    """Write it as H.264 at 16 frames per second, 224 pixels a side."""
    from hippo.video import write_video

    count = round(film.duration * FPS)
    frames = (np.clip(film.draw(index / (count - 1)), 0, 255).astype(np.uint8) for index in range(count))
    write_video(frames, path, Fraction(FPS), (SIDE, SIDE))


def _of_scene(kind: str, scene: Scene, ground: np.ndarray | None = None) -> Film:
    def draw(time: float) -> np.ndarray:
        return render(scene, [time], ground=ground)[0].astype(np.float32)

    return Film(scene.seed, kind, scene.duration, draw, partial(_boxes, scene), _question(scene))


def _question(scene: Scene) -> str:
    thing = random.Random(scene.seed).choice([one for one in scene.things if one.first.visible or one.events])
    return f"What does the {thing.first.colour} {thing.shape} do?"


def _boxes(scene: Scene, time: float) -> list[Box]:
    seen = [look for thing in scene.things if (look := thing.look(time)).visible]
    return [(o.x - o.radius / 224, o.y - o.radius / 224, o.x + o.radius / 224, o.y + o.radius / 224) for o in seen]


def _plain(seed: int) -> Film:
    return _of_scene("plain", make_scene(seed))


def _textured(seed: int) -> Film:
    return _of_scene("textured", make_scene(seed), _fractal(seed, SIDE))


def _fractal(seed: int, side: int) -> np.ndarray:
    """(side, side, 3) float32: noise of all sizes, as foliage or stone has it, in one tone."""
    rng, total = np.random.default_rng(seed), np.zeros((side, side), np.float32)
    for cells in (3, 6, 12, 24, 48):
        noise = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        total += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) * (3 / cells) ** 0.5
    tint = rng.uniform(-10, 10, size=3)
    return np.clip(rng.uniform(70, 180) + tint + 22 * total[..., None], 0, 255).astype(np.float32)


def _filmed(kind: str, seed: int, view: Callable[[float], View]) -> Film:
    """A textured scene, larger than the picture, through a camera that moves. view: of a time."""
    scene, side = make_scene(seed), round(SIDE * _LARGER)
    ground = _fractal(seed, side)

    def draw(time: float) -> np.ndarray:
        left, top, size = (share * side for share in view(time))
        picture = Image.fromarray(render(scene, [time], side, ground)[0])
        box = (left, top, left + size, top + size)
        return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box), np.float32)

    def shown(time: float) -> list[Box]:
        left, top, size = view(time)
        return [((a - left) / size, (b - top) / size, (c - left) / size, (d - top) / size)
                for a, b, c, d in _boxes(scene, time)]  # fmt: skip

    return Film(seed, kind, scene.duration, draw, shown, _question(scene))


def _pan(seed: int) -> Film:
    size = 1 / _LARGER
    room, back = 1 - size, seed % 2 == 1
    return _filmed("pan", seed, lambda time: (room * (1 - time if back else time), room / 2, size))


def _zoom(seed: int) -> Film:
    def view(time: float) -> View:
        size = 1 - (1 - 1 / _LARGER) * (1 - time if seed % 2 else time)
        return (1 - size) / 2, (1 - size) / 2, size

    return _filmed("zoom", seed, view)


def _shaken(seed: int) -> Film:
    rng = random.Random(seed)
    waves = [(rng.uniform(5, 12), rng.uniform(0, 6.3)) for _ in range(2)]
    size = 0.95

    def view(time: float) -> View:
        left, top = ((1 - size) / 2 * (1 + math.sin(rate * 6.3 * time + phase)) for rate, phase in waves)
        return left, top, size

    return _filmed("shaken", seed, view)


def _cut(seed: int) -> Film:
    """Another scene from the middle on."""
    first, second = _plain(seed), _textured(seed + 500_000)

    def at(time: float) -> tuple[Film, float]:
        return (first, 2 * time) if time < 0.5 else (second, 2 * time - 1)

    def draw(time: float) -> np.ndarray:
        part, within = at(time)
        return part.draw(within)

    def shown(time: float) -> list[Box]:
        part, within = at(time)
        return part.shown(within)

    return Film(seed, "cut", first.duration, draw, shown, first.question)


def _brief(seed: int) -> Film:
    """Nothing happens, but for an object that is there for an eighth of the clip."""
    rng = random.Random(f"brief-{seed}")
    hidden = Look(rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(21, 36), rng.choice(list(COLOURS)), False)
    there = Look(hidden.x, hidden.y, hidden.radius, hidden.colour, True)
    start = rng.uniform(0.2, 0.75)
    ends = [(start, hidden, there, "appear"), (start + 0.125, there, hidden, "vanish")]
    events = [Event(kind, 0, at, at + 0.01, before, after, there.colour) for at, before, after, kind in ends]
    thing = Thing(rng.choice(SHAPES), "large", hidden, events)
    return _of_scene("brief", Scene(seed, 10.0, rng.choice(TONES), rng.choice(TEXTURES), [thing], events))


def _crowd(seed: int) -> Film:
    """Twelve small objects, each of which moves slowly all the time."""
    rng, things = random.Random(f"crowd-{seed}"), []
    for place in range(12):
        x, y = 0.14 + 0.24 * (place % 4), 0.18 + 0.32 * (place // 4)
        first = Look(x, y, rng.uniform(*SIZES["small"]) * 0.7, rng.choice(list(COLOURS)), True)
        last = Look(x + rng.uniform(-0.1, 0.1), y + rng.uniform(-0.12, 0.12), first.radius, first.colour, True)
        detail = "right" if last.x > x else "left"
        event = Event("move", place, 0.0, 1.0, first, last, first.colour, detail)
        things.append(Thing(rng.choice(SHAPES), "small", first, [event]))
    scene = Scene(seed, 8.0, rng.choice(TONES), rng.choice(TEXTURES), things, [t.events[0] for t in things])
    return _of_scene("crowd", scene)


def _text(seed: int) -> Film:
    """Words appear on the picture, one after the other."""
    rng, base = random.Random(f"text-{seed}"), _plain(seed)
    font = ImageFont.load_default(30)
    words = [(word, rng.uniform(0.05, 0.55), rng.uniform(0.05, 0.8), 0.2 + 0.25 * place)
             for place, word in enumerate(rng.sample(_WORDS, 3))]  # fmt: skip

    def draw(time: float) -> np.ndarray:
        picture = Image.fromarray(base.draw(time).astype(np.uint8))
        brush = ImageDraw.Draw(picture)
        for word, x, y, start in words:
            if time >= start:
                brush.text((x * SIDE, y * SIDE), word, (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0))
        return np.asarray(picture, np.float32)

    def shown(time: float) -> list[Box]:
        return base.shown(time) + [(x, y, x + 0.38, y + 0.16) for _, x, y, start in words if time >= start]

    return Film(seed, "text", base.duration, draw, shown, base.question)


def _changed(kind: str, seed: int, change: Callable[[np.ndarray, float], np.ndarray]) -> Film:
    """A plain clip whose picture is changed as a whole."""
    base = _plain(seed)
    return Film(seed, kind, base.duration, lambda time: change(base.draw(time), time), base.shown, base.question)


def _dark(seed: int) -> Film:
    def grain(picture: np.ndarray, time: float) -> np.ndarray:
        noise = np.random.default_rng([seed, round(1e4 * time)]).normal(0, 14, picture.shape[:2])
        return np.clip(0.45 * picture + noise[..., None].astype(np.float32), 0, 255)

    return _changed("dark", seed, grain)


def _flicker(seed: int) -> Film:
    return _changed("flicker", seed, lambda picture, time: picture * (0.8 + 0.2 * math.sin(40 * time + seed)))


def _water(seed: int) -> Film:
    """The ground moves all the time, and nothing of it matters."""
    scene = make_scene(seed)
    waves = np.tile(_fractal(seed, SIDE), (1, 2, 1))

    def draw(time: float) -> np.ndarray:
        begin = round(SIDE * time * scene.duration / 8) % SIDE
        return render(scene, [time], ground=waves[:, begin : begin + SIDE])[0].astype(np.float32)

    return Film(seed, "water", scene.duration, draw, partial(_boxes, scene), _question(scene))


_KINDS: dict[str, Callable[[int], Film]] = {
    "plain": _plain,
    "textured": _textured,
    "pan": _pan,
    "zoom": _zoom,
    "shaken": _shaken,
    "cut": _cut,
    "brief": _brief,
    "crowd": _crowd,
    "text": _text,
    "dark": _dark,
    "flicker": _flicker,
    "water": _water,
}
KINDS = tuple(_KINDS)
