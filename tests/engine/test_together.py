"""Several requests decode in one way, in one group or two, and no text depends on it."""

import os
import random
from dataclasses import dataclass, field

import pytest

from hippo.bench.simulate import Guess, Machine, simulate_together
from hippo.decode import AutoSchedule, Costs, Mode, Schedule
from hippo.engine import State, Together
from hippo.sequence import Sequence
from tests.engine.test_engine import LONGEST, alone, asked, engine_of
from tests.models import FAMILIES


@pytest.fixture
def running(patient_targets):
    made = []

    def make(*args, two=True):
        made.append(engine_of(*args))
        made[-1].together.fixed = two
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        engine.pair.close()


@dataclass(eq=False)
class Member:
    """A request, which decodes in turns unless it has another schedule."""

    schedule: Schedule = field(default_factory=lambda: Schedule("serial", "auto"))
    drafts: bool = True
    proposed: bool = False
    room: int = 100


def measured(size, target, draft, slope=0.0):
    """Costs of so many requests together: of a forward and of a draft step."""
    costs = Costs()
    costs.serve(size)
    for width in (1, 2, 4):
        costs.saw_target(width, target + slope * (width - 1), both=False)
        costs.saw_target(width, 1.5 * (target + slope * (width - 1)), both=True)
        costs.saw_draft(draft, both=False)
        costs.saw_draft(1.5 * draft, both=True)
    costs.saw_target(1, target, both=False)
    return costs


def turns(together, members, steps):
    """Whose turn it is in each of so many steps, by their places."""
    seen = []
    for _ in range(steps):
        together.begin_step(members)
        for member in members:
            member.proposed = True
        due = together.due(members)
        for member in due:
            member.proposed = False
        seen.append([members.index(member) for member in due])
    return seen


def test_halves_take_turns():
    assert turns(Together(None, fixed=True), [Member() for _ in range(4)], 4) == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert turns(Together(None, fixed=True), [Member() for _ in range(5)], 4) == [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4]]
    assert turns(Together(None, fixed=True), [Member() for _ in range(2)], 3) == [[0], [1], [0]]
    assert turns(Together(None, fixed=True), [Member()], 2) == [[0], [0]]
    assert turns(Together(None, fixed=False), [Member() for _ in range(3)], 2) == [[0, 1, 2], [0, 1, 2]]


def test_groups_stay_equal_while_requests_come_and_go():
    together, members = Together(None, fixed=True), [Member() for _ in range(4)]
    turns(together, members, 1)
    del members[:2]  # the other group is left
    assert turns(together, members, 3) == [[0], [1], [0]]
    members += [Member(), Member(), Member()]
    assert all(1 <= len(due) <= 3 for due in turns(together, members, 2))
    assert {len(due) for due in turns(together, members, 4)} == {2, 3}


def test_nobody_waits_for_more_than_one_turn_of_the_others():
    for count in range(2, 9):
        last = {}
        members = [Member() for _ in range(count)]
        for step, due in enumerate(turns(Together(None, fixed=True), members, 12)):
            last |= dict.fromkeys(due, step)
            assert step == 0 or all(last.get(place, -1) >= step - 1 for place in range(count))


def in_groups(seconds, target=0.1, draft=0.05):
    """Costs of two requests, of which a step of one of two groups takes so many seconds."""
    costs = measured(2, target, draft)
    for width in (2, 5):
        costs.in_groups.saw_target(width, seconds, both=True)
    costs.in_groups.saw_draft(1e-6, both=True)
    return costs


def test_two_groups_only_where_they_promise_more():
    """In turns, half of the drafted tokens accepted: 1.5 tokens in 0.15 s. In two groups: 2 in two steps."""

    def chosen(seconds, *others, beside=True):
        costs = in_groups(seconds)
        members = [Member(Schedule("serial", "auto", costs, 0.5)) for _ in range(2 - len(others))]
        together = Together(costs, beside)
        together.begin_step([*members, *others])
        return together.two

    assert chosen(0.08) and not chosen(0.09), "changing has a cost"
    assert not chosen(0.08, Member(Schedule("parallel", "auto"))) and not chosen(0.08, Member(Schedule("ar", "auto")))
    assert not chosen(0.08, Member(drafts=False)), "its draft was lost"
    assert not chosen(0.08, beside=False)


def test_two_groups_last_for_some_steps():
    costs = in_groups(0.08)
    together, members = Together(costs), [Member(Schedule("serial", "auto", costs, 0.5)) for _ in range(2)]
    turns(together, members, 1)
    assert together.two
    for width in (2, 5):
        for _ in range(5):
            costs.in_groups.saw_target(width, 9.0, both=True)
    turns(together, members, 3)
    assert together.two
    turns(together, members, 1)
    assert not together.two and together.mode is Mode.IN_TURNS


def test_steps_of_two_groups_are_measured_but_not_the_first():
    costs = Costs()
    together, members = Together(costs, fixed=True), [Member() for _ in range(4)]
    for seconds in (9.0, 0.1, 0.1):
        turns(together, members, 1)
        together.end_step(members[:2], [2, 4], seconds, seconds, 4)
    assert sum(costs.in_groups.target(True)) == pytest.approx(0.1 * (1 - 0.04 * 3 + 0.04))
    assert not costs.known(both=True) and not costs.known(both=False)


def test_what_is_measured_counts_for_the_requests_that_were_there():
    costs = measured(1, 1.0, 0.1)
    together, members = Together(costs), [Member()]
    for size in (1, 8):
        costs.serve(size)
        before = costs.enough(both=False)
        together.begin_step(members, coming=7)
        assert costs.batch == 1 and before == (size == 1), "of eight nothing is known"
        together.end_step(members, [1], 1.0, 1.0, 1)
    costs.serve(8)
    assert not costs.forwards(1, both=False)


def joined(together, members, coming=0):
    """The ways of all in the step that begins."""
    together.begin_step(members, coming)
    modes = []
    for member in members:
        member.schedule.join(len(members), together.mode, together.rates)
        modes.append(member.schedule.begin_round())
    return modes


def followers(costs, *rates, beside=False):
    return [Member(AutoSchedule(beside, costs=costs, prior=rate)) for rate in rates]


def test_all_decode_in_the_way_that_is_fastest_for_them_together():
    for draft, mode in ((0.01, Mode.IN_TURNS), (0.2, Mode.PLAIN)):
        costs = measured(4, 0.1, draft)
        members = followers(costs, 0.9, 0.9, 0.1, 0.1)
        assert joined(Together(costs, beside=False), members) == [mode] * 4
    for bad, mode in ((1, Mode.IN_TURNS), (3, Mode.PLAIN)):  # the good ones would make all others wait
        costs = measured(4, 0.1, 0.05)
        members = followers(costs, *[0.05] * bad, *[0.9] * (4 - bad))
        assert joined(Together(costs, beside=False), members) == [mode] * 4


def test_those_that_cannot_do_without():
    costs = measured(4, 0.1, 0.01)
    lost, plain, serial = (
        Member(AutoSchedule(False, costs=costs), drafts=False),
        Schedule("ar", "auto"),
        Schedule("serial", 3),
    )
    members = [*followers(costs, 0.9), lost, Member(plain, drafts=False), Member(serial)]
    together = Together(costs, beside=False)
    assert joined(together, members)[::2] == [Mode.IN_TURNS, Mode.PLAIN]
    assert together.rates[1:3] == [0.0, 0.0] and serial.mode is Mode.IN_TURNS
    assert joined(together, [lost, Member(plain, drafts=False)]) == [Mode.PLAIN] * 2


def test_what_will_decode_soon_counts():
    costs = measured(1, 0.1, 0.01)
    slow = measured(8, 0.1, 1.0)
    costs._targets |= slow._targets
    costs._drafts |= slow._drafts
    assert joined(Together(costs, beside=False), followers(costs, 0.9), coming=0) == [Mode.IN_TURNS]
    assert joined(Together(costs, beside=False), followers(costs, 0.9), coming=7) == [Mode.PLAIN]


def test_a_draft_reads_prompts_only_where_that_is_worth_the_time():
    """An inline draft is first asked by a request that is nearly done."""
    for room, seconds, mode in ((100, 0.5, Mode.IN_TURNS), (2, 0.5, Mode.PLAIN), (100, 60.0, Mode.PLAIN)):
        costs = measured(2, 0.1, 0.01)
        costs.prompts.append((50, seconds))
        members = followers(costs, 0.8, 0.8)
        for member in members:
            member.room = room
        assert joined(Together(costs, beside=False, answer=lambda: 100), members) == [mode] * 2, (room, seconds)


def steps(costs, rate, count, committed):
    """The ways of so many steps of two requests. committed: tokens of each, by the width of its forward."""
    together, members, modes = Together(costs, beside=False), followers(costs, rate, rate), []
    for _ in range(count):
        modes += set(joined(together, members))
        width = 1 if modes[-1] is Mode.PLAIN else 3
        seconds = 0.1 + 0.01 * (width - 1)
        for member in members:
            member.schedule.saw_target(width, 0.1, width)
            member.schedule.end_round(committed(width), seconds)
        together.end_step(members, [width] * 2, 0.1, seconds, 2 * committed(width))
    return modes


def test_a_new_number_of_requests_is_measured_and_plain_decoding_first():
    costs = Costs()
    modes = steps(costs, 0.8, 6, lambda width: width)
    assert modes == [Mode.PLAIN] * 2 + [Mode.IN_TURNS] * 4
    assert costs.draft(False) == pytest.approx(0.01) and costs.plain() == 0.1
    assert costs.forwards(1, False) == 2 and costs.forwards(3, False) == 4, "each forward counts once"


def test_a_way_that_does_not_hold_its_promise_is_left():
    """All costs and the acceptance stay what they are, and yet there are fewer tokens."""
    modes = steps(measured(2, 0.1, 0.01), 0.9, 60, lambda width: 1)
    assert modes[0] is Mode.IN_TURNS and modes[40:].count(Mode.PLAIN) > 10


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
    engine.together = Together(None, fixed=True)
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
    engine.together.fixed = None
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


def answer(rate, seed, tokens=96):
    """Guesses of a draft that knows how likely it is right."""
    dice, guesses = random.Random(seed), []
    for _ in range(tokens):
        prob = dice.betavariate(4 * rate, 4 * (1 - rate)) if 0 < rate < 1 else rate
        guesses.append(Guess(dice.random() < prob, prob))
    return guesses


def seconds(rates, machine, decoder, way, costs, seeds, *, apart=False, beside=True, answers=4, tokens=96):
    """Of answers of simulated requests that are decoded together, as many at a time as there are rates.

    machine: seconds of a forward and of each row in it, of a draft step, a share of it that each further request adds,
    slowdown of both models while they work at the same time.
    """
    fixed, row, draft, more, slowdown = machine

    def schedule(place):
        prior = sum(rates) / len(rates)
        return (
            AutoSchedule(beside, "auto", costs, prior) if decoder == "auto" else Schedule(decoder, "auto", costs, prior)
        )

    together = [
        answer(rates[place % len(rates)], 100 * seed + place, tokens) for seed in seeds for place in range(answers)
    ]
    simulated = Machine(lambda rows: fixed + row * rows, draft, slowdown)
    return simulate_together(together, simulated, schedule, way, apart, more, len(rates))


def compared(rate, machine, decoder, apart):
    """Seconds of later answers with two groups where they promise more, over those of one group."""
    took, rates = [], [rate] * 4
    for fixed in (None, False):
        costs = Costs()
        way = Together(costs, fixed=fixed)
        seconds(rates, machine, decoder, way, costs, [0], apart=apart, answers=16)  # measures
        took.append(seconds(rates, machine, decoder, way, costs, [1], apart=apart, answers=16))
    return took[0] / took[1]


OWN = (1.0, 1.0)  # neither model slows the other


def forward(slope, apart):
    """Seconds of a forward of four requests, and of each row: 0.1 s for a token each, whether together or apart."""
    row = 0.1 * slope / 4
    return 0.025 - row if apart else 0.1 - 4 * row, row


@pytest.mark.parametrize("decoder", ["serial", "auto"])
@pytest.mark.parametrize("draft", [0.005, 0.02])
def test_two_groups_are_used_where_they_are_faster(decoder, draft):
    """Where forwards over half of the requests take half as long, all that the draft takes is hidden."""
    assert compared(0.7, (*forward(0.02, True), draft, 0.1, OWN), decoder, apart=True) < 0.9


@pytest.mark.parametrize("slope", [0.02, 0.3])
@pytest.mark.parametrize("draft, slowdown", [(0.005, OWN), (0.02, (1.5, 1.5))])
@pytest.mark.parametrize("rate", [0.0, 0.7])
def test_the_choice_is_never_slower_than_one_group(slope, draft, slowdown, rate):
    """At most 3 % in answers after the first. Two groups all the time would take up to 2.5 times as long."""
    for apart in (True, False):
        assert compared(rate, (*forward(slope, apart), draft, 0.1, slowdown), "serial", apart) < 1.03


def test_two_groups_all_the_time_can_be_slow():
    took = []
    for fixed in (True, False):
        costs = Costs()
        machine = (*forward(0.02, False), 0.02, 0.1, (1.5, 1.5))
        took.append(seconds([0.7] * 4, machine, "serial", Together(costs, fixed=fixed), costs, [0]))
    assert took[0] > 1.5 * took[1]


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("machine", [(0.16, 0.007, 0.026, 0.25), (0.16, 0.0005, 0.02, 0.02), (0.01, 0.006, 0.002, 0.3)])
@pytest.mark.parametrize("slowdown", [None, (1.3, 1.3)])
def test_the_choice_for_several_is_hardly_slower_than_plain_decoding_and_than_any_one_way(count, machine, slowdown):
    """Answers after the first ones, on machines bound by memory, by a large target, and by arithmetic. slowdown: of
    both models while they work at the same time; None: the draft is inline."""
    beside = slowdown is not None
    for rate in (0.3, 0.7, 0.9):
        took = {}
        for decoder in ("auto", "ar", "serial", *["parallel"] * beside):
            costs = Costs()
            way = Together(costs, beside, None if decoder == "auto" else False)
            for seed in (0, 1):
                took[decoder] = seconds(
                    [rate] * count,
                    (*machine, slowdown or OWN),
                    decoder,
                    way,
                    costs,
                    [seed],
                    beside=beside,
                    answers=4 * count,
                    tokens=64,
                )
        assert took["auto"] < 1.03 * took["ar"], (rate, took)
        assert took["auto"] < 1.15 * min(took.values()), (rate, took)
