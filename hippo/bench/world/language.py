"""English for scenes, both ways: `describe` and `ask` write it, `read` takes it apart again into statements.

One table of phrases serves both directions, so whatever can be written can be read back, and the scorer never guesses.
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass

from hippo.bench.world.scene import COLOURS, DIRECTIONS, SHAPES, SIZES, TEXTURES, TONES, Event, Scene, Thing, cell_of


@dataclass(frozen=True)
class Statement:
    """One claim about a clip. Fields that its kind does not use are empty.

    kind: count, there, appear, move, turn, meet, vanish, recolour, grow, shrink, still or end.
    """

    kind: str
    colour: str = ""
    shape: str = ""
    size: str = ""
    place: str = ""
    direction: str = ""
    new_colour: str = ""
    other_colour: str = ""
    other_shape: str = ""
    number: str = ""
    tone: str = ""
    texture: str = ""

    def as_dict(self) -> dict[str, str]:
        """The fields in use."""
        return {key: value for key, value in asdict(self).items() if value}


PLACES = {
    (0, 0): "in the upper left",
    (1, 0): "at the top",
    (2, 0): "in the upper right",
    (0, 1): "on the left",
    (1, 1): "in the centre",
    (2, 1): "on the right",
    (0, 2): "in the lower left",
    (1, 2): "at the bottom",
    (2, 2): "in the lower right",
}
NUMBERS = ("no objects", "one object", "two objects", "three objects", "four objects")
HEADINGS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}

# Several phrasings a kind, the first the commonest.
PHRASES = {
    "count": (
        "The video shows {number} on a {tone} {texture} ground",
        "On a {tone} {texture} ground there can be seen {number}",
    ),
    "total": ("There are {number} in the video",),
    "there": ("a {size} {colour} {shape} is {place}", "there is a {size} {colour} {shape} {place}"),
    "appear": ("a {size} {colour} {shape} appears {place}", "a {size} {colour} {shape} comes into view {place}"),
    "move": (
        "the {colour} {shape} moves {direction}",
        "the {colour} {shape} slides {direction}",
        "the {colour} {shape} travels {direction}",
    ),
    "turn": ("the {colour} {shape} turns and moves {direction}", "the {colour} {shape} turns and slides {direction}"),
    "meet": (
        "the {colour} {shape} moves {direction} and meets the {other_colour} {other_shape}",
        "the {colour} {shape} heads {direction} until it touches the {other_colour} {other_shape}",
    ),
    "vanish": ("the {colour} {shape} vanishes", "the {colour} {shape} disappears"),
    "recolour": (
        "the {colour} {shape} becomes {new_colour}",
        "the {colour} {shape} changes its colour to {new_colour}",
    ),
    "grow": ("the {colour} {shape} grows", "the {colour} {shape} gets bigger"),
    "shrink": ("the {colour} {shape} shrinks", "the {colour} {shape} gets smaller"),
    "still": ("the {colour} {shape} stays still", "the {colour} {shape} never moves"),
    "end": ("At the end the {colour} {shape} is {place}", "When the video ends the {colour} {shape} is {place}"),
    "is": ("The {shape} is {colour}",),
    "start": ("At the start the {colour} {shape} is {place}",),
}
_LATER = ("Then", "Next", "After that")
_JOINS = ("First", "Finally", "At the same time", *_LATER)
_FIELDS = {
    "number": NUMBERS,
    "tone": TONES,
    "texture": TEXTURES,
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "place": tuple(PLACES.values()),
    "direction": tuple(HEADINGS.values()),
    "new_colour": tuple(COLOURS),
    "other_colour": tuple(COLOURS),
    "other_shape": SHAPES,
}
DESCRIBE_PROMPTS = (
    "Describe the video in detail.",
    "Describe the video.",
    "What happens in the video?",
    "What happens?",
    "Tell me everything that happens in this clip, in order.",
)


def describe(scene: Scene, rng: random.Random) -> str:
    """A description of a scene in the order things happen; `rng` chooses among phrasings."""
    first = [s for s in facts(scene) if s.kind in ("count", "there")]
    sentences = [_phrase(statement, rng) for statement in first]
    for index, event in enumerate(scene.events):
        sentences.append(_join(scene, index, rng) + ", " + _phrase(_event_statement(scene, event), rng))
    sentences += [_phrase(statement, rng) for statement in facts(scene) if statement.kind in ("still", "end")]
    return " ".join(_sentence(sentence) for sentence in sentences)


def facts(scene: Scene) -> list[Statement]:
    """Everything a perfect description says, in order: the start, the events, what stays still, where it ends."""
    seen = [thing for thing in scene.things if thing.first.visible]
    statements = [Statement("count", number=NUMBERS[len(seen)], tone=scene.tone, texture=scene.texture)]
    for thing in seen:
        look = thing.first
        statements.append(Statement("there", look.colour, thing.shape, thing.size, PLACES[cell_of(look)]))
    statements += [_event_statement(scene, event) for event in scene.events]
    for thing in seen:
        if not thing.events:
            statements.append(Statement("still", thing.first.colour, thing.shape))
    later = [scene.things[event.object] for event in scene.events if event.kind == "appear"]
    for thing in seen + later:
        if _end_is_told(thing):
            look = thing.look(1.0)
            statements.append(Statement("end", look.colour, thing.shape, place=PLACES[cell_of(look)]))
    return statements


def ask(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about one object or one moment of a scene, and its answer."""
    seen = [index for index, thing in enumerate(scene.things) if thing.first.visible or thing.events]
    index = rng.choice(seen)
    thing = scene.things[index]
    name = f"the {thing.first.colour} {thing.shape}"
    kind = rng.choice(("does", "does", "first", "last", "where", "end", "colour", "many"))
    if kind == "first" and scene.events:
        return "What happens first?", _answer([_event_statement(scene, scene.events[0])], rng)
    if kind == "last" and scene.events and scene.events[-1].start > scene.events[0].start:
        return "What happens last?", _answer([_event_statement(scene, scene.events[-1])], rng)
    if kind == "where" and thing.first.visible:
        place = PLACES[cell_of(thing.first)]
        answer = [Statement("start", thing.first.colour, thing.shape, place=place)]
        return f"Where is {name} at the start?", _answer(answer, rng)
    if kind == "end" and _end_is_told(thing):
        look = thing.look(1.0)
        answer = [Statement("end", look.colour, thing.shape, place=PLACES[cell_of(look)])]
        return f"Where is the {look.colour} {thing.shape} at the end?", _answer(answer, rng)
    shapes = [scene.things[i].shape for i in seen]
    if kind == "colour" and shapes.count(thing.shape) == 1 and not any(e.kind == "recolour" for e in thing.events):
        return f"What colour is the {thing.shape}?", _answer([Statement("is", thing.first.colour, thing.shape)], rng)
    if kind == "many":
        return "How many objects are there?", _answer([Statement("total", number=NUMBERS[len(seen)])], rng)
    told = [_event_statement(scene, event) for event in thing.events]
    told = told or [Statement("still", thing.first.colour, thing.shape)]
    return f"What does {name} do?", _answer(told, rng)


def read(text: str) -> list[Statement | None]:
    """Take a text apart: one statement a sentence, None for a sentence that no phrase matches."""
    sentences = [sentence.strip() for sentence in text.replace("\n", " ").split(".")]
    return [_read_sentence(sentence) for sentence in sentences if sentence]


def _event_statement(scene: Scene, event: Event) -> Statement:
    thing = scene.things[event.object]
    if event.kind == "appear":
        return Statement("appear", event.colour, thing.shape, thing.size, PLACES[cell_of(event.after)])
    if event.kind == "recolour":
        return Statement("recolour", event.colour, thing.shape, new_colour=event.detail)
    heading = HEADINGS[event.detail] if event.detail in DIRECTIONS else ""
    other_shape = scene.things[event.other].shape if event.other is not None else ""
    return Statement(
        event.kind,
        event.colour,
        thing.shape,
        direction=heading,
        other_colour=event.other_colour,
        other_shape=other_shape,
    )


def _end_is_told(thing: Thing) -> bool:
    """Whether a description says where an object ends: after a meeting its place has no simple name."""
    return thing.look(1.0).visible and bool(thing.events) and all(event.kind != "meet" for event in thing.events)


def _join(scene: Scene, index: int, rng: random.Random) -> str:
    events = scene.events
    if index and events[index].start == events[index - 1].start:
        return "At the same time"
    if index == 0:
        return "First"
    if all(event.start == events[index].start for event in events[index:]):
        return "Finally"
    return rng.choices(_LATER, weights=(6, 2.5, 1.5))[0]


def _phrase(statement: Statement, rng: random.Random) -> str:
    phrases = PHRASES[statement.kind]
    weights = {1: (1,), 2: (7, 3), 3: (6, 2.5, 1.5)}[len(phrases)]
    return rng.choices(phrases, weights=weights)[0].format(**asdict(statement))


def _answer(statements: list[Statement], rng: random.Random) -> str:
    return " ".join(_sentence(_phrase(statement, rng)) for statement in statements)


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _pattern(phrase: str) -> re.Pattern[str]:
    def field(match: re.Match[str]) -> str:
        return f"(?P<{match[1]}>{'|'.join(_FIELDS[match[1]])})"

    return re.compile(re.sub(r"\{(\w+)\}", field, phrase), re.IGNORECASE)


_PATTERNS = [(kind, _pattern(phrase)) for kind, phrases in PHRASES.items() for phrase in phrases]


def _read_sentence(sentence: str) -> Statement | None:
    for join in _JOINS:
        sentence = sentence.removeprefix(join + ", ")
    for kind, pattern in _PATTERNS:
        if match := pattern.fullmatch(sentence):
            return Statement(kind, **match.groupdict())
    return None
