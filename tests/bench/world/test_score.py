"""The scorer: right texts are right, and each kind of mistake is found and counted where it belongs."""

import random
import re

import pytest

from hippo.bench.world import describe, make_scene, score
from hippo.bench.world.scene import COLOURS, SHAPES

OPPOSITE = {
    "to the left": "to the right",
    "to the right": "to the left",
    "upwards": "downwards",
    "downwards": "upwards",
}


def shares(text, scene):
    return score(text, scene).shares()


@pytest.mark.parametrize("seed", range(40))
def test_the_truth_is_all_right(seed):
    scene = make_scene(seed)
    right = shares(describe(scene, random.Random(seed)), scene)
    assert right.pop("unread") == 0 and set(right.values()) == {1.0}


def test_a_wrong_colour_a_wrong_shape_and_a_wrong_motion():
    scene = next(s for s in map(make_scene, range(999)) if len(s.things) == 1 and s.events[0].kind == "move")
    thing = scene.things[0]
    truth = describe(scene, random.Random(0))
    used = {event.colour for event in scene.events} | {e.detail for e in scene.events} | {thing.first.colour}
    colour = next(c for c in COLOURS if c not in used)
    shape = next(s for s in SHAPES if s != thing.shape)
    wrong = shares(truth.replace(thing.first.colour, colour), scene)
    assert wrong["colour"] < 1 == wrong["shape"] and wrong["motion"] < 1
    wrong = shares(truth.replace(thing.shape, shape), scene)
    assert wrong["shape"] == 0 < wrong["colour"] == 1
    first = next(sentence for sentence in truth.split(". ") if sentence.startswith("First"))
    turned = re.sub("to the left|to the right|upwards|downwards", lambda m: OPPOSITE[m[0]], first)
    wrong = score(truth.replace(first, turned), scene)
    assert wrong.motion[0] == wrong.motion[1] - 1 and wrong.colour[0] == wrong.colour[1] == wrong.shape[0]


def test_a_wrong_partner_is_a_wrong_motion_in_the_right_direction():
    scene = next(s for s in map(make_scene, range(999)) if len(s.things) == 3 and s.events[0].kind == "meet")
    meeting = scene.events[0]
    met, third = scene.things[meeting.other], scene.things[3 - meeting.object - meeting.other]
    name = f"{meeting.other_colour} {met.shape}"
    said = next(s for s in describe(scene, random.Random(0)).split(". ") if name in s and s.startswith("First"))
    wrong = score(said.replace(name, f"{third.first.colour} {third.shape}") + ".", scene)
    assert wrong.motion == (0, 1) and wrong.directions == (1, 1)


def test_a_colour_and_a_shape_of_different_objects_are_both_wrong():
    scene = next(s for s in map(make_scene, range(999)) if len({t.shape for t in s.things}) == len(s.things) == 2)
    one, other = scene.things
    wrong = score(f"The {one.first.colour} {other.shape} stays still.", scene)
    assert (wrong.colour, wrong.shape) == ((0, 1), (0, 1))


def test_events_told_in_the_wrong_order():
    scene = next(s for s in map(make_scene, range(999)) if len({(e.kind, e.detail) for e in s.events}) == 4)
    sentences = describe(scene, random.Random(0)).split(". ")
    events = [i for i, sentence in enumerate(sentences) if sentence.startswith(("First", "Finally"))]
    sentences[events[0]], sentences[events[-1]] = sentences[events[-1]], sentences[events[0]]
    wrong = shares(". ".join(sentences), scene)
    assert wrong["order"] < 1 == wrong["told"] == wrong["motion"]


def test_what_is_left_out_and_what_cannot_be_read():
    scene = make_scene(3)
    sentences = describe(scene, random.Random(0)).split(". ")
    right = shares(". ".join(sentences[:-2]) + ". And so on.", scene)
    assert right["told"] == pytest.approx(1 - 2 / len(sentences)) and right["unread"] > 0


def test_saying_it_twice_does_not_count_twice():
    scene = next(s for s in map(make_scene, range(999)) if s.events[0].kind == "move" and len(s.events) == 4)
    text = describe(scene, random.Random(0))
    first = next(s for s in text.split(". ") if s.startswith("First"))
    again = score(text + " " + first + ". " + first + ".", scene)
    assert again.motion[1] - score(text, scene).motion[1] == 2
    assert again.motion[0] - score(text, scene).motion[0] <= 1
