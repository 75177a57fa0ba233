"""Count wrong facts: what a text says against what its clip shows. A scorer by rule, never by eye."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hippo.world.language import Statement, facts, read
from hippo.world.scene import Scene

MOTIONS = ("move", "turn", "meet", "still")


@dataclass
class Score:
    """Counts over the statements of one or more texts. Each pair is (right, made).

    colour, shape: of every statement that names an object, whether such an object is there at any time.
    motion: of every move, turn, meeting or standing still, whether that very object does that in that direction.
    events: appearing, vanishing, growing, shrinking and changes of colour. places: every named place, with its object.
    told: of the facts of the scenes, how many were told. unread: sentences that no phrase matches.
    """

    colour: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)
    motion: tuple[int, int] = (0, 0)
    events: tuple[int, int] = (0, 0)
    places: tuple[int, int] = (0, 0)
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
    looks = {(s.colour, s.shape) for s in truth if s.shape} | {
        (s.new_colour, s.shape) for s in truth if s.kind == "recolour"
    }
    colours, shapes = {colour for colour, _ in looks}, {shape for _, shape in looks}
    left = Counter(_core(statement) for statement in truth)
    places = {(s.colour, s.shape, s.place) for s in truth if s.place}
    total = Score()
    for said in read(text):
        total += Score(unread=(said is None, 1))
        if said is None:
            continue
        told = left[_core(said)] > 0
        left[_core(said)] -= told
        total += Score(told=(int(told), 0))
        if not said.shape:
            continue
        named = (said.colour, said.shape)
        total += Score(
            colour=(named in looks or (said.colour in colours and said.shape not in shapes), 1),
            shape=(named in looks or (said.shape in shapes and said.colour not in colours), 1),
        )
        if said.colour in colours and said.shape in shapes and named not in looks:
            total += Score(
                colour=(1, 0)
            )  # one of the two is wrong, and colour was matched to an object: blame the shape
        if said.kind in MOTIONS:
            total += Score(motion=(int(told), 1))
        elif said.kind not in ("there", "end"):
            total += Score(events=(int(told), 1))
        if said.place:
            total += Score(places=((said.colour, said.shape, said.place) in places, 1))
    return total + Score(told=(0, len(truth)))


def _core(statement: Statement) -> tuple[str, ...]:
    """What makes a statement true or false of a scene; a turn counts as the move it is."""
    s = statement
    kind = "move" if s.kind == "turn" else s.kind
    return (kind, s.colour, s.shape, s.place, s.direction, s.new_colour, s.other_colour, s.other_shape, s.number, s.tone, s.texture)  # fmt: skip
