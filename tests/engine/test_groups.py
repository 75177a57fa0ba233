"""Two groups: the draft works for one while the target checks the other, and no text depends on it."""

import os
import random
from dataclasses import dataclass

import pytest

from hippo.bench.simulate import Guess, Machine, simulate_together
from hippo.decode import AutoSchedule, Costs, Mode, Schedule
from hippo.engine import Groups, State
from hippo.sequence import Sequence
from tests.engine.test_engine import LONGEST, alone, asked, engine_of
from tests.models import FAMILIES


@pytest.fixture
def running(patient_targets):
    made = []

    def make(*args, two=True):
        made.append(engine_of(*args))
        made[-1].groups.fixed = two
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        engine.pair.close()


@dataclass(eq=False)
class Member:
    """Promises so many tokens a second in one group and in two."""

    one: float = 1.0
    two: float = 2.0
    proposed: bool = False

    def promises(self, size):
        return None if self.one is None else (self.one, self.two)


def turns(groups, members, steps):
    """Whose turn it is in each of so many steps, by their places."""
    seen = []
    for _ in range(steps):
        groups.begin_step(members)
        for member in members:
            member.proposed = True
        due = groups.due(members)
        for member in due:
            member.proposed = False
        seen.append([members.index(member) for member in due])
    return seen


def test_halves_take_turns():
    assert turns(Groups(None, True), [Member() for _ in range(4)], 4) == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert turns(Groups(None, True), [Member() for _ in range(5)], 4) == [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4]]
    assert turns(Groups(None, True), [Member() for _ in range(2)], 3) == [[0], [1], [0]]
    assert turns(Groups(None, True), [Member()], 2) == [[0], [0]]
    assert turns(Groups(None, False), [Member() for _ in range(3)], 2) == [[0, 1, 2], [0, 1, 2]]


def test_groups_stay_equal_while_requests_come_and_go():
    groups, members = Groups(None, True), [Member() for _ in range(4)]
    turns(groups, members, 1)
    del members[:2]  # the other group is left
    assert turns(groups, members, 3) == [[0], [1], [0]]
    members += [Member(), Member(), Member()]
    assert all(1 <= len(due) <= 3 for due in turns(groups, members, 2))
    assert {len(due) for due in turns(groups, members, 4)} == {2, 3}


def test_nobody_waits_for_more_than_one_turn_of_the_others():
    for count in range(2, 9):
        last = {}
        members = [Member() for _ in range(count)]
        for step, due in enumerate(turns(Groups(None, True), members, 12)):
            last |= dict.fromkeys(due, step)
            assert step == 0 or all(last.get(place, -1) >= step - 1 for place in range(count))


def test_two_only_where_they_promise_more():
    def chosen(*members):
        groups = Groups(None)
        groups.begin_step(members)
        return groups.two

    assert chosen(Member(1, 1.3), Member(1, 1.3))
    assert not chosen(Member(1, 1.1), Member(1, 1.1)), "changing has a cost"
    assert chosen(Member(1, 0.9), Member(1, 1.6)) and not chosen(Member(1, 0.2), Member(1, 1.5)), "all of them count"
    assert not chosen(Member(None), Member(1, 9)), "one that cannot"


def test_a_choice_holds_for_some_steps_or_until_the_number_changes():
    groups, members = Groups(None), [Member(1, 1.2) for _ in range(4)]
    turns(groups, members, 1)
    assert groups.two
    for member in members:
        member.two = 0.5
    turns(groups, members, 3)
    assert groups.two
    turns(groups, members, 1)
    assert not groups.two
    for member in members:
        member.two = 1.2
    turns(groups, members[:3], 1)
    assert groups.two


def test_steps_are_measured_but_not_the_first_of_two_groups():
    costs = Costs()
    groups, members = Groups(costs, True), [Member() for _ in range(4)]
    for seconds in (9.0, 0.1, 0.1):
        turns(groups, members, 1)
        groups.end_step([2, 4], seconds)
    assert sum(costs.in_groups.target(True)) == pytest.approx(0.1 * (1 - 0.04 * 3 + 0.04))
    assert not costs.known(both=True) and not costs.known(both=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_gets_the_text_it_gets_alone(running, family):
    engine = running(family, 1, "thread")
    requests = [asked(seed, decoder="serial", gamma=2) for seed in range(3)]
    streams = [engine.submit(request) for request in requests]
    for stream, request in zip(streams, requests, strict=True):
        assert stream.result().token_ids == alone(family, request)
    assert any(Mode.GROUPS.value in stream.output.stats.rounds for stream in streams)


@pytest.mark.parametrize("place", ["process", "thread", "inline"])
def test_any_schedule_and_number_and_width(running, place):
    """Requests enter one by one and end one by one, the last of them alone; two have forwards of their own."""
    engine = running("qwen2_5_vl", 0, place)  # the target's own weights: always right
    ways = ({}, {"decoder": "serial", "gamma": 3}, {"decoder": "parallel"}, {"method": "ar"}, {"verify_width": 8}) * 2
    requests = [asked(seed, **way, max_new_tokens=4 + seed) for seed, way in enumerate(ways)]
    streams = [engine.submit(request) for request in requests]
    for stream, request in zip(streams, requests, strict=True):
        assert stream.result().token_ids == alone("qwen2_5_vl", request)
    assert engine.scheduler.jobs == [] and any(stream.output.stats.accepted for stream in streams)


@pytest.fixture
def recorded(monkeypatch):
    """In which order the draft is asked for a request ("?") and the target checks it ("!"), by the request's seed."""
    events, advance = [], Sequence.advance

    def record(engine, streams):
        names, extend = {stream._job.sequence: place for place, stream in enumerate(streams)}, engine._extend

        def advanced(sequence, logits=None, share=None):
            wanted = advance(sequence, logits, share)
            if sequence.proposed:
                events.append(f"?{names[sequence]}")
            return wanted

        def extended(checks):
            events.extend(f"!{names[sequence]}" for _, sequence, _ in checks)
            return extend(checks)

        monkeypatch.setattr(Sequence, "advance", advanced)
        monkeypatch.setattr(engine, "_extend", extended)
        return events

    return record


def decoding(engine, count, **options):
    """Streams of requests that all decode."""
    streams = [engine.submit(asked(seed, decoder="serial", gamma=2, **options)) for seed in range(count)]
    while any(stream.state is not State.DECODING for stream in streams):
        engine.step()
    return streams


def test_the_draft_is_asked_for_one_group_before_the_target_checks_the_other(running, recorded):
    engine = running("qwen2_5_vl", 1, "thread", two=False)
    streams = decoding(engine, 4, max_new_tokens=60)
    engine.groups = Groups(None, True)
    events, steps = recorded(engine, streams), []
    for _ in range(3):
        engine.step()
        steps.append(list(events))
        events.clear()
    assert steps[0] == ["?0", "?1", "?2", "?3", "!0", "!1"], "the first tokens are waited for"
    assert steps[1] == ["?0", "?1", "!2", "!3"]
    assert steps[2] == ["?2", "?3", "!0", "!1"]


def test_a_cancel_in_one_group_leaves_the_others_untouched(running):
    engine = running("qwen2_5_vl", 1, "thread")
    streams = decoding(engine, 5)
    for place in (4, 0):  # of the group that waits, and of the other
        streams[place].cancel()
        engine.step()
    for place in (1, 2, 3):
        assert streams[place].result().token_ids == alone("qwen2_5_vl", asked(place))
    assert engine.scheduler.jobs == []


def test_a_lost_draft_leaves_one_group(running):
    engine = running("qwen2_5_vl", 1, "process")
    streams = decoding(engine, 3)
    os.kill(engine.pair.draft.worker().pid, 9)
    engine.groups.fixed = None
    for place, stream in enumerate(streams):
        assert stream.result().token_ids == alone("qwen2_5_vl", asked(place))
        assert len(stream.output.token_ids) == LONGEST
    assert any("signal 9" in stream.output.stats.draft_lost for stream in streams)


def test_an_error_in_one_group_leaves_the_others_untouched(running, monkeypatch):
    engine = running("qwen2_5_vl", 1, "thread")
    streams = decoding(engine, 4)
    ids, advance = streams[3]._job.sequence, Sequence.advance

    def fails(sequence, logits=None, share=None):
        if sequence is ids and logits is not None:
            raise RuntimeError("what now?")
        return advance(sequence, logits, share)

    monkeypatch.setattr(Sequence, "advance", fails)
    with pytest.raises(RuntimeError, match="what now"):
        streams[3].result()
    assert all(streams[place].result().token_ids == alone("qwen2_5_vl", asked(place)) for place in range(3))


def together(rate, machine, decoder, groups, costs, seeds, apart, tokens=96, count=4):
    """Seconds of answers of `count` simulated requests together. machine: slope of a forward, draft step, slowdown."""
    slope, draft, slowdown = machine

    def forward(width):
        return 0.1 / count * (1 + slope * (width - 1)) if apart else 0.1 * (1 + slope * (width / count - 1))

    def answer(seed):
        dice = random.Random(seed)
        return [Guess(dice.random() < rate, rate) for _ in range(tokens)]

    def schedule():
        return AutoSchedule(True, "auto", costs, rate) if decoder == "auto" else Schedule(decoder, "auto", costs, rate)

    seconds = 0.0
    for seed in seeds:
        answers = [answer(100 * seed + place) for place in range(count)]
        schedules = [schedule() for _ in answers]
        seconds += simulate_together(answers, Machine(forward, draft, slowdown), schedules, groups, apart)
    return seconds


def compared(rate, machine, decoder, apart):
    """Seconds of later answers with two groups where they promise more, over those of one group."""
    took = []
    for fixed in (None, False):
        costs = Costs()
        groups = Groups(costs, fixed)
        together(rate, machine, decoder, groups, costs, [0], apart)  # measures
        took.append(together(rate, machine, decoder, groups, costs, [1, 2], apart))
    return took[0] / took[1]


OWN = (1.0, 1.0)  # neither model slows the other


@pytest.mark.parametrize("decoder", ["serial", "auto"])
@pytest.mark.parametrize("draft", [0.005, 0.02])
def test_two_groups_are_used_where_they_are_faster(decoder, draft):
    """Where forwards over half of the requests take half as long, all that the draft takes is hidden."""
    assert compared(0.7, (0.02, draft, OWN), decoder, apart=True) < 0.9


@pytest.mark.parametrize("slope", [0.02, 0.3])
@pytest.mark.parametrize("draft, slowdown", [(0.005, OWN), (0.02, (1.5, 1.5))])
@pytest.mark.parametrize("rate", [0.0, 0.7])
def test_the_choice_is_never_slower_than_one_group(slope, draft, slowdown, rate):
    """At most 3 % in answers after the first. Two groups all the time would take up to 2.5 times as long."""
    for apart in (True, False):
        assert compared(rate, (slope, draft, slowdown), "serial", apart) < 1.03


def test_two_groups_all_the_time_can_be_slow():
    costs = Costs(), Costs()
    flat = 0.02, 0.02, (1.5, 1.5)
    two, one = (
        together(0.7, flat, "serial", Groups(c, fixed), c, [0], False)
        for c, fixed in zip(costs, (True, False), strict=True)
    )
    assert two > 1.5 * one
