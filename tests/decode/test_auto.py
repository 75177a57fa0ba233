"""The choice among plain decoding, in turns and parallel, on simulated machines."""

import itertools
import random

import pytest

from hippo.bench.simulate import Guess, Machine, simulate
from hippo.decode import AutoSchedule, Costs, Mode, Schedule
from hippo.decode.costs import in_turns_speed, parallel_speed, plain_speed

TOKENS, ANSWERS = 128, 2


def guesses(rate, seed):
    dice = random.Random(seed)
    return [Guess(dice.random() < rate, rate) for _ in range(TOKENS)]


def forward(slope):
    return lambda width: 0.1 * (1 + slope * (width - 1))


def known(slope, draft, slowdown):
    costs = Costs()
    for width in (1, 5, 9):
        costs.saw_target(width, forward(slope)(width), both=False)
        costs.saw_target(width, forward(slope)(width) * slowdown[0], both=True)
        costs.saw_draft(draft, both=False)
        costs.saw_draft(draft * slowdown[1], both=True)
    return costs


def seconds(rate, slope, draft, slowdown, make):
    answers = [guesses(rate, seed) for seed in range(ANSWERS)]
    return sum(simulate(each, Machine(forward(slope), draft, slowdown), make()).seconds for each in answers)


@pytest.mark.parametrize("slope", [0.01, 0.3])
@pytest.mark.parametrize("ratio", [0.1, 0.4])
@pytest.mark.parametrize("slowdown", [(1.0, 1.0), (1.8, 1.6)])
def test_it_is_near_the_best_fixed_schedule_and_never_far_below_plain_decoding(slope, ratio, slowdown):
    draft = 0.1 * ratio
    for rate in (0.0, 0.6, 0.9):
        fixed = {
            (decoder, gamma): seconds(rate, slope, draft, slowdown, lambda d=decoder, g=gamma: Schedule(d, g))
            for decoder, gamma in itertools.product(("serial", "parallel"), (1, 3, 6, 10))
        }
        plain = seconds(rate, slope, draft, slowdown, lambda: Schedule("ar", "auto"))
        costs = known(slope, draft, slowdown)
        auto = seconds(rate, slope, draft, slowdown, lambda costs=costs: AutoSchedule(True, costs=costs.copy()))
        best = min(plain, *fixed.values())
        assert auto <= 1.12 * best, (rate, best / auto, min(fixed, key=fixed.get))
        assert auto <= 1.05 * plain, (rate, plain / auto)


def test_a_draft_that_cannot_work_beside_the_target_never_does():
    schedule = AutoSchedule(False, costs=known(0.01, 0.001, (1.0, 1.0)))
    assert all(schedule.begin_round() is Mode.IN_TURNS for _ in range(3)) and Mode.PARALLEL not in schedule.speeds()


def test_what_was_never_measured_is_tried():
    schedule, modes = AutoSchedule(True), []
    for _ in range(8):
        modes.append(schedule.begin_round())
        schedule.saw_target(5, 0.1)
        schedule.saw_draft(0.01)
        schedule.saw_verdict(4, [0.9] * 4)
        schedule.end_round(5, 0.14)
    assert modes[:6] == [Mode.PARALLEL] * 3 + [Mode.IN_TURNS] * 3 and schedule.costs.known(both=False)


def test_speeds_by_hand():
    costs = known(0.0, 0.01, (1.0, 1.0))
    assert plain_speed(costs) == pytest.approx(10)
    assert in_turns_speed(costs, 0.0) == (pytest.approx(1 / 0.11), 1)
    speed, gamma = in_turns_speed(costs, 0.9)
    assert speed == pytest.approx((1 - 0.9 ** (gamma + 1)) / 0.1 / (0.1 + 0.01 * gamma)) and gamma > 5
    assert parallel_speed(costs, 0.0)[0] == pytest.approx(10), "nothing is accepted: the target alone"
    assert parallel_speed(costs, 0.9)[0] > speed, "the draft's time is hidden"


def test_what_an_answer_measured_is_the_next_ones_start():
    costs = known(0.1, 0.02, (1.2, 1.2))
    copy = costs.copy()
    copy.saw_draft(9.0, both=False)
    assert costs.draft(False) == pytest.approx(0.02) and AutoSchedule(True, costs=costs).acceptance.rate == 0.8
