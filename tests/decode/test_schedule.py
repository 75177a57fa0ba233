"""How far to draft, what to wait for, and when a draft that brings nothing rests."""

import pytest

from hippo.decode import LARGEST, Mode, Schedule
from hippo.decode.costs import Costs


class Chosen(Schedule):
    """A schedule by whether draft and target overlap; works() tells whether the draft works in the next round."""

    def __init__(self, gamma, overlapped):
        super().__init__("parallel" if overlapped else "serial", gamma)
        self.way = Mode.PARALLEL if overlapped else Mode.IN_TURNS

    def works(self):
        mode = self.begin_round()
        assert mode in (self.way, Mode.PLAIN)
        return mode is self.way


def fed(overlapped, target=0.05, draft=0.005, slope=0.0, accepted=0, checked=0, prob=0.8):
    gamma = Chosen("auto", overlapped)
    for width in (1, 4, 9):
        gamma.costs.saw_target(width, target + slope * width, both=overlapped)
        gamma.costs.saw_draft(draft, both=overlapped)
    gamma.saw_verdict(accepted, [prob] * checked)
    gamma.works()
    return gamma


def waits_for(gamma, prob=0.9, most=60):
    """How many tokens of this probability the target waits for."""
    window = []
    while len(window) < most and gamma.wants(window, None):
        window.append(prob)
    return len(window)


def takes(gamma, *prob):
    """How many of these tokens, all there, the target checks at once."""
    return next((n for n in range(len(prob)) if not gamma.wants(prob[:n], prob[n])), len(prob))


@pytest.mark.parametrize("overlapped", [True, False])
def test_a_number_stays(overlapped):
    gamma = Chosen(5, overlapped)
    gamma.saw_target(1, 1.0)
    gamma.saw_draft(0.001)
    for _ in range(50):
        assert gamma.works() and gamma.ask(0) == 5
        gamma.end_round(1, 9.0)


def test_a_number_in_turns_is_how_many_are_checked():
    gamma = Chosen(5, overlapped=False)
    assert gamma.works() and waits_for(gamma) == 5


def test_a_number_overlapped_means_pre_verify_then_post_verify():
    gamma = Chosen(5, overlapped=True)
    gamma.works()
    assert waits_for(gamma) == 0  # nothing pending: the target starts at once
    gamma.saw_verdict(1, [0.9])
    assert waits_for(gamma) == 4  # the fifth is checked as the first of the next
    gamma.saw_verdict(4, [0.9] * 5)
    assert waits_for(gamma) == 0


def test_a_cheap_draft_is_waited_for_and_a_dear_one_is_not():
    cheap, dear = (waits_for(fed(True, draft=draft, accepted=90, checked=100)) for draft in (0.001, 0.04))
    assert cheap > 3 and dear == 0


def test_the_target_waits_for_more_while_the_draft_is_sure():
    gamma = fed(True, draft=0.001, accepted=90, checked=100, prob=0.9)
    assert waits_for(gamma, prob=0.999) > waits_for(gamma, prob=0.8) > waits_for(gamma, prob=0.3)


def test_an_unlikely_token_is_checked_only_if_a_wider_forward_is_cheap():
    flat, steep = (fed(True, slope=slope, accepted=80, checked=100) for slope in (1e-6, 0.02))
    likely = [0.99] * 5
    assert takes(flat, *likely) == takes(steep, *likely) == 5
    assert takes(flat, 0.99, 0.99, 0.1, 0.99) == 4 > takes(steep, 0.99, 0.99, 0.1, 0.99) == 2


def test_probabilities_that_do_not_hold_are_trusted_less():
    honest, boasting = (fed(True, slope=0.01, accepted=n, checked=100, prob=0.99) for n in (99, 30))
    assert takes(honest, *[0.9] * 9) > takes(boasting, *[0.9] * 9)


def test_before_anything_is_known_the_target_takes_what_is_there_and_waits_for_nothing():
    gamma = Chosen("auto", overlapped=True)
    gamma.works()
    assert takes(gamma, 0.9, 0.1) == 2 and waits_for(gamma) == 0


def test_the_draft_runs_on_but_not_too_far():
    gamma = fed(True, accepted=95, checked=100)
    assert gamma.ask(0) == LARGEST and gamma.ask(LARGEST - 3) == 3 and gamma.ask(LARGEST) == 0
    assert 0 < fed(True, accepted=5, checked=100).ask(0) < 6


def test_in_turns_it_falls_with_acceptance():
    good, bad = fed(False, accepted=950, checked=1000), fed(False, accepted=50, checked=1000)
    assert waits_for(bad) == bad.ask(0) == 1 < 5 < waits_for(good) <= good.ask(0) <= LARGEST


@pytest.mark.parametrize("overlapped", [True, False])
def test_a_draft_that_brings_nothing_rests_most_of_the_time(overlapped):
    gamma = fed(overlapped)
    drafted = 0
    for _ in range(300):
        working = gamma.works()
        drafted += working
        gamma.end_round(1, 0.06 if working else 0.05)
    assert 0 < drafted < 30


@pytest.mark.parametrize("overlapped", [True, False])
def test_a_draft_that_is_never_right_is_found_out_soon(overlapped):
    gamma, worked = fed(overlapped), []
    for round_ in range(300):
        if gamma.works():
            worked.append(round_)
            gamma.saw_verdict(0, [0.9])
        gamma.end_round(1, 0.05)  # as if it cost nothing
    assert worked[:4] == [0, 1, 2, 3] and worked[4] > 100 and 5 <= len(worked) <= 10, "asked again now and then"


def test_a_draft_that_brings_something_never_rests():
    gamma = fed(True)
    for _ in range(300):
        assert gamma.works()
        gamma.end_round(3, 0.06)


def test_a_rested_draft_is_taken_back_when_it_has_become_good():
    gamma = fed(True)
    for round_ in range(400):
        working = gamma.works()
        gamma.end_round(3 if working and round_ > 60 else 1, 0.06 if working else 0.05)
    assert working


def test_one_hiccup_of_the_machine_does_not_send_a_good_draft_to_rest():
    gamma = fed(True)
    for _ in range(3):
        gamma.end_round(1, 0.05)
    for number in range(60):
        assert gamma.works(), number
        gamma.end_round(3, 0.4 if number == 20 else 0.06)


def test_catching_up_after_a_rest_is_not_held_against_the_draft():
    gamma, rested, worked = fed(True), 0, 0
    for number in range(400):
        working = gamma.works()
        rested, behind = (0, rested) if working else (rested + 1, 0)
        good = number > 60
        worked += working and number > 300
        gamma.end_round(3 if working and good else 1, 0.005 * behind + (0.09 if working else 0.05))
    assert worked > 90


def test_costs_are_a_line_that_outliers_do_not_bend():
    costs = Costs()
    for width in (1, 2, 3, 8, 8):
        for _ in range(3):
            costs.saw_target(width, 0.010 + 0.001 * width, both=False)
    costs.saw_target(1, 5.0, both=False)
    assert costs.target(False) == (pytest.approx(0.010), pytest.approx(0.001))


def test_a_steep_cost_stays_known_while_one_width_is_used():
    gamma = fed(False, target=0.010, slope=0.010, draft=0.001, accepted=85, checked=100)
    first = gamma.ask(0)
    for _ in range(40):
        gamma.works()
        width = gamma.ask(0) + 1
        gamma.saw_target(width, 0.010 + 0.010 * width)
        gamma.saw_verdict(85, [0.8] * 100)
    gamma.works()
    assert gamma.ask(0) == first
