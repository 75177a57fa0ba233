"""Choosing gamma and lead, and letting a draft rest that brings nothing."""

import pytest

from hippo.decode.gamma import LARGEST, Costs, Gamma, Plan


def fed(overlapped, target=0.05, draft=0.005, slope=0.0, accepted=0, checked=0):
    gamma = Gamma("auto", overlapped)
    for width in (1, 4, 9):
        gamma.saw_target(width, target + slope * width)
        gamma.saw_draft(draft)
    gamma.saw_verdict(accepted, checked)
    return gamma


def test_a_number_stays_and_has_no_lead():
    gamma = Gamma(5, overlapped=True)
    gamma.saw_target(1, 1.0)
    gamma.saw_draft(0.001)
    for _ in range(50):
        assert gamma.next() == Plan(5, 0)
        gamma.saw_round(1, 9.0)


def test_overlapped_and_never_rejected_it_is_the_ratio_of_the_costs():
    assert 6 <= fed(True, target=0.060, draft=0.010, accepted=10000, checked=10000).next().gamma <= 8


def test_overlapped_with_rejections_it_waits_for_a_lead_if_the_draft_is_cheap():
    cheap, dear = (fed(True, draft=draft, accepted=80, checked=100).next() for draft in (0.001, 0.04))
    assert cheap.lead > 2 and dear.lead == 0


def test_it_falls_with_what_a_wider_window_costs():
    flat, steep = (fed(True, slope=slope, accepted=95, checked=100).next() for slope in (0.0, 0.02))
    assert 1 <= steep.gamma < flat.gamma


def test_it_stays_within_bounds():
    slow, fast = fed(True, target=1.0, draft=9.0), fed(True, target=9.0, draft=1e-9, accepted=100, checked=100)
    assert slow.next() == Plan(1, 0) and 1 <= sum(fast.next()) <= LARGEST


def test_in_turns_it_falls_with_acceptance():
    good, bad = fed(False, accepted=950, checked=1000), fed(False, accepted=50, checked=1000)
    assert bad.next().gamma == 1 < 5 < good.next().gamma


@pytest.mark.parametrize("overlapped", [True, False])
def test_a_draft_that_brings_nothing_rests_most_of_the_time(overlapped):
    gamma = fed(overlapped)
    drafted = 0
    for _ in range(300):
        working = gamma.next().gamma > 0
        drafted += working
        gamma.saw_round(1, 0.06 if working else 0.05)
    assert 0 < drafted < 30


def test_a_draft_that_brings_something_never_rests():
    gamma = fed(True)
    for _ in range(300):
        assert gamma.next().gamma > 0
        gamma.saw_round(3, 0.06)


def test_a_rested_draft_is_taken_back_when_it_has_become_good():
    gamma = fed(True)
    for round_ in range(400):
        working = gamma.next().gamma > 0
        gamma.saw_round(3 if working and round_ > 60 else 1, 0.06 if working else 0.05)
    assert working


def test_one_hiccup_of_the_machine_does_not_send_a_good_draft_to_rest():
    gamma = fed(True)
    for _ in range(3):
        gamma.saw_round(1, 0.05)
    for number in range(60):
        assert gamma.next().gamma > 0, number
        gamma.saw_round(3, 0.4 if number == 20 else 0.06)


def test_catching_up_after_a_rest_is_not_held_against_the_draft():
    gamma, rested, worked = fed(True), 0, 0
    for number in range(400):
        working = gamma.next().gamma > 0
        rested, behind = (0, rested) if working else (rested + 1, 0)
        good = number > 60
        worked += working and number > 300
        gamma.saw_round(3 if working and good else 1, 0.005 * behind + (0.09 if working else 0.05))
    assert worked > 90


def test_costs_are_a_line_that_outliers_do_not_bend():
    costs = Costs()
    for width in (1, 2, 3, 8, 8):
        for _ in range(3):
            costs.saw_target(width, 0.010 + 0.001 * width)
    costs.saw_target(1, 5.0)
    assert costs.target() == (pytest.approx(0.010), pytest.approx(0.001))


def test_a_steep_cost_stays_known_while_one_width_is_used():
    gamma = fed(False, target=0.010, slope=0.010, draft=0.001, accepted=85, checked=100)
    first = gamma.next().gamma
    for _ in range(40):
        width = gamma.next().gamma + 1
        gamma.saw_target(width, 0.010 + 0.010 * width)
        gamma.saw_verdict(85, 100)
    assert gamma.next().gamma == first
