"""A procedural world: a few coloured shapes on a ground, and what they do, as pure data.

Everything a clip shows and everything that can be said of it follows from a `Scene`; rendering (`render.py`), writing
and reading English (`language.py`) and scoring (`score.py`) never look anywhere else. The world is our own.

Objects are on the crossings of a 3 x 3 lattice, move along it one or two steps at a time, and act in turn: time is
cut into slots of one length, one event a slot (now and then two at once), so that "what happens after what" has one
answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 136, 24),
    "yellow": (238, 216, 44),
    "green": (48, 165, 70),
    "cyan": (64, 200, 214),
    "blue": (44, 78, 214),
    "purple": (132, 52, 182),
    "pink": (244, 134, 188),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": (14, 17), "medium": (21, 25), "large": (31, 36)}  # radius in pixels on a 224-pixel side
TONES = ("dark", "grey", "light")
TEXTURES = ("striped", "checkered", "noisy", "smooth")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
LATTICE = (0.2, 0.5, 0.8)
LEAD, SLOT = 0.5, 1.6  # seconds before anything happens, and from one event to the next


@dataclass(frozen=True)
class Look:
    """How an object looks and where it is during one stretch of time. x and y in 0..1, radius in 224ths of the side."""

    x: float
    y: float
    radius: float
    colour: str
    visible: bool


@dataclass(frozen=True)
class Event:
    """One thing an object does between `start` and `end` (shares of the clip).

    kind: move, turn (a move right after a move), meet, appear, vanish, recolour, grow or shrink.
    detail: the direction of a move, turn or meet; the new colour of a recolour; the place of an appear.
    """

    kind: str
    object: int
    start: float
    end: float
    before: Look
    after: Look
    colour: str
    detail: str = ""
    other: int | None = None
    other_colour: str = ""


@dataclass
class Thing:
    """One object: its shape and size never change in name; its first look is that at the start of the clip."""

    shape: str
    size: str
    first: Look
    events: list[Event] = field(default_factory=list)

    def look(self, time: float) -> Look:
        """The object at `time`, a share of the clip in 0..1. Moves and growth are linear within their event."""
        now = self.first
        for event in self.events:
            if time < event.start:
                break
            now = _between(event, min(1.0, (time - event.start) / (event.end - event.start)))
        return now


@dataclass
class Scene:
    """A clip before it is drawn. `seed` fixes everything; duration in seconds."""

    seed: int
    duration: float
    tone: str
    texture: str
    things: list[Thing]
    events: list[Event]


def _between(event: Event, share: float) -> Look:
    before, after = event.before, event.after
    switched = share >= 0.5
    return Look(
        x=before.x + (after.x - before.x) * share,
        y=before.y + (after.y - before.y) * share,
        radius=before.radius + (after.radius - before.radius) * share,
        colour=after.colour if switched else before.colour,
        visible=after.visible if switched else before.visible,
    )


def cell_of(look: Look) -> tuple[int, int]:
    """The lattice crossing (column, row) nearest to a look."""
    nearest = [min(range(3), key=lambda i: abs(LATTICE[i] - value)) for value in (look.x, look.y)]
    return nearest[0], nearest[1]


def make_scene(seed: int, objects: int | None = None) -> Scene:
    """The scene of a seed: 1 to 4 objects, 3 to 5 slots of events, 5 to 13 seconds."""
    rng = random.Random(f"hippo-world-{seed}")
    count = objects or rng.choice((1, 2, 2, 3, 3, 4))
    things = _place(rng, count)
    slots = rng.randint(*{1: (4, 5), 2: (4, 5), 3: (3, 5), 4: (3, 5)}[count])
    duration = round(LEAD + SLOT * slots + rng.uniform(0.3, 4.0), 1)
    scene = Scene(seed, duration, rng.choice(TONES), rng.choice(TEXTURES), things, [])
    for slot in range(slots):
        _act(rng, scene, slot)
    return scene


def _place(rng: random.Random, count: int) -> list[Thing]:
    cells = rng.sample([(c, r) for c in range(3) for r in range(3)], count)
    colours = rng.sample(list(COLOURS), count)
    if count > 1 and rng.random() < 0.2:
        colours[1] = colours[0]
    shapes = [rng.choice(SHAPES) for _ in range(count)]
    if count > 1 and colours[1] == colours[0]:
        shapes[1] = rng.choice([shape for shape in SHAPES if shape != shapes[0]])
    things = []
    for index, (cell, colour, shape) in enumerate(zip(cells, colours, shapes, strict=True)):
        size = rng.choice(list(SIZES))
        x, y = (LATTICE[axis] + rng.uniform(-0.03, 0.03) for axis in cell)
        visible = index == 0 or rng.random() < 0.75
        things.append(Thing(shape, size, Look(x, y, rng.uniform(*SIZES[size]), colour, visible)))
    # In reading order, those there at the start first: so that "which comes next" has one answer too.
    return sorted(things, key=lambda thing: (not thing.first.visible, *cell_of(thing.first)[::-1]))


def _act(rng: random.Random, scene: Scene, slot: int) -> None:
    """Add one event, or two at once, in slot number `slot`."""
    width = SLOT / scene.duration
    start = (LEAD + SLOT * slot) / scene.duration + 0.05 * width
    end = start + 0.9 * width
    events = [event for event in scene.events if event.start > start - 1.5 * width]
    just_moved = {event.object for event in events if event.kind in ("move", "turn")}
    chosen: list[int] = []
    for _ in range(2 if len(scene.things) > 1 and rng.random() < 0.15 else 1):
        choices = [c for c in _choices(rng, scene, just_moved) if not {c[1], c[4]} & set(chosen)]
        if not choices:
            return
        kind, index, detail, after, other, _ = rng.choices(choices, weights=[c[-1] for c in choices])[0]
        thing = scene.things[index]
        before = thing.look(1.0)
        event = Event(
            kind, index, start, end, before, after, after.colour if kind == "appear" else before.colour, detail, other,
            scene.things[other].look(1.0).colour if other is not None else "",
        )  # fmt: skip
        thing.events.append(event)
        scene.events.append(event)
        chosen += [index] if other is None else [index, other]
    scene.events.sort(key=lambda event: (event.start, event.object))


Choice = tuple[str, int, str, Look, int | None, float]


def _choices(rng: random.Random, scene: Scene, just_moved: set[int]) -> list[Choice]:
    """Every event that could come next: (kind, object, detail, look afterwards, other object, weight)."""
    looks = [thing.look(1.0) for thing in scene.things]
    taken = {cell_of(look): index for index, look in enumerate(looks)}
    used = {look.colour for look in looks} | {event.colour for event in scene.events}
    met = {index for event in scene.events if event.kind == "meet" for index in (event.object, event.other)}
    choices: list[Choice] = []
    for index, look in enumerate(looks):
        events = scene.things[index].events
        if not look.visible:
            if not events:
                choices.append(("appear", index, "", _with(look, visible=True), None, 6.0))
            continue
        moved = events[-1].detail if index in just_moved else ""
        for name, step in DIRECTIONS.items():
            for kind, after, other, weight in _moves(looks, taken, index, step):
                if index in met or (other is not None and other in met) or name == moved:
                    continue
                kind = "turn" if kind == "move" and moved else kind
                choices.append((kind, index, name, after, other, weight * (1.6 if moved else 1.0)))
        seen = sum(thing.visible for thing in looks)
        if seen > 1 and events and not any(e.kind == "vanish" for e in scene.events):
            choices.append(("vanish", index, "", _with(look, visible=False), None, 1.0))
        kinds = {event.kind for event in events}
        if "recolour" not in kinds:
            colour = rng.choice([colour for colour in COLOURS if colour not in used])
            choices.append(("recolour", index, colour, _with(look, colour=colour), None, 1.0))
        if not kinds & {"grow", "shrink", "meet"} and index not in met:
            if scene.things[index].size != "large":
                choices.append(("grow", index, "", _with(look, radius=look.radius * 1.6), None, 0.8))
            if scene.things[index].size != "small":
                choices.append(("shrink", index, "", _with(look, radius=look.radius / 1.7), None, 0.8))
    return choices


def _moves(
    looks: list[Look], taken: dict[tuple[int, int], int], index: int, step: tuple[int, int]
) -> list[tuple[str, Look, int | None, float]]:
    """Moves of one or two lattice steps over free crossings, and meeting what is two steps away."""
    look = looks[index]
    column, row = cell_of(look)
    moves: list[tuple[str, Look, int | None, float]] = []
    for length in (1, 2):
        cell = column + step[0] * length, row + step[1] * length
        if not (0 <= cell[0] <= 2 and 0 <= cell[1] <= 2):
            break
        if cell in taken:
            other = taken[cell]
            gap = (look.radius + looks[other].radius) / 224
            if length == 2 and looks[other].visible and gap < 0.25:
                x, y = looks[other].x - step[0] * gap, looks[other].y - step[1] * gap
                moves.append(("meet", _with(look, x=x, y=y), other, 2.5))
            break
        x, y = look.x + step[0] * 0.3 * length, look.y + step[1] * 0.3 * length
        moves.append(("move", _with(look, x=x, y=y), None, 1.0))
    return moves


def _with(look: Look, **changes: object) -> Look:
    return Look(**{**look.__dict__, **changes})  # type: ignore[arg-type]
