"""Count wrong facts: what a text says against what its clip shows. A scorer by rule, never by eye."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hippo.bench.world.language import Statement, facts, read
from hippo.bench.world.scene import Scene

MOTIONS = ("move", "turn", "meet", "still")
EVENTS = ("appear", "move", "turn", "meet", "vanish", "recolour", "grow", "shrink")


@dataclass
class Score:
    """Counts over the statements of one or more texts. Each pair is (right, made).

    colour, shape: of every statement that names an object, whether an object of that look is there at any time.
    motion: of every move, turn, meeting or standing still, whether that very object does that in that direction, with
    that partner. directions: of every move, turn or meeting, the object and its direction alone.
    events: appearing, vanishing, growing, shrinking and changes of colour. places: every named place, with its object.
    order: of every right event after another right one, whether it comes no earlier. told: of the facts of the scenes,
    how many were told. unread: sentences that no phrase matches.
    """

    colour: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)
    motion: tuple[int, int] = (0, 0)
    directions: tuple[int, int] = (0, 0)
    events: tuple[int, int] = (0, 0)
    places: tuple[int, int] = (0, 0)
    order: tuple[int, int] = (0, 0)
    told: tuple[int, int] = (0, 0)
    unread: tuple[int, int] = (0, 0)

    def __add__(self, other: Score) -> Score:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Score(*[(a[0] + b[0], a[1] + b[1]) for a, b in pairs])

    def shares(self) -> dict[str, float]:
        """Right over made, per figure; figures nothing was said of are left out."""
        return {name: right / made for name, (right, made) in vars(self).items() if made}


def score(text: str, scene: Scene) -> Score:
    """Score a description of a scene."""
    truth = facts(scene)
    looks = {(s.colour, s.shape) for s in truth if s.shape}
    looks |= {(s.new_colour, s.shape) for s in truth if s.kind == "recolour"}
    places = {(s.colour, s.shape, s.place) for s in truth if s.place}
    ways = {(s.colour, s.shape, s.direction) for s in truth if s.direction}
    starts = iter([event.start for event in scene.events])
    left: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for statement in truth:
        left[_core(statement)].append(next(starts) if statement.kind in EVENTS else 0.0)
    total, last = Score(told=(0, len(truth))), None
    for said in read(text):
        total += Score(unread=(said is None, 1))
        if said is None:
            continue
        found = left[_core(said)]
        told = bool(found)
        start = found.pop(0) if found else 0.0
        total += Score(told=(told, 0))
        if said.shape:
            colour, shape = _look(said, looks)
            total += Score(colour=(colour, 1), shape=(shape, 1))
        if said.kind in EVENTS and told:
            total += Score(order=(last is None or start >= last, 1))
            last = start
        if said.kind in MOTIONS:
            total += Score(motion=(told, 1))
            if said.direction:
                total += Score(directions=((said.colour, said.shape, said.direction) in ways, 1))
        elif said.kind in EVENTS:
            total += Score(events=(told, 1))
        if said.place:
            total += Score(places=((said.colour, said.shape, said.place) in places, 1))
    return total


def _look(said: Statement, looks: set[tuple[str, str]]) -> tuple[bool, bool]:
    """Whether the colour and whether the shape of the object named are right. Where no object has both, that one is
    right which some object has while none has the other; if both occur, on different objects, both are wrong."""
    if (said.colour, said.shape) in looks:
        return True, True
    colour = any(said.colour == colour for colour, _ in looks)
    shape = any(said.shape == shape for _, shape in looks)
    return colour and not shape, shape and not colour


def _core(statement: Statement) -> tuple[str, ...]:
    """What makes a statement true or false of a scene; a turn counts as the move it is."""
    parts = statement.as_dict() | {"kind": "move" if statement.kind == "turn" else statement.kind}
    return tuple(value for key, value in sorted(parts.items()) if key != "size")
