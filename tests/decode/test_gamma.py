"""Choosing gamma."""

from hippo.decode.gamma import LARGEST, Gamma


def test_a_number_stays():
    gamma = Gamma(5, overlapped=True)
    gamma.saw_target(1.0)
    gamma.saw_draft(0.001)
    assert [gamma.next(), gamma.next()] == [5, 5] and gamma.mean == 5


def test_overlapped_it_is_the_ratio_of_the_costs():
    gamma = Gamma("auto", overlapped=True)
    for _ in range(5):
        gamma.saw_target(0.060)
        gamma.saw_draft(0.010)
    assert gamma.next() == 6


def test_it_stays_within_bounds():
    slow, fast = Gamma("auto", True), Gamma("auto", True)
    slow.saw_target(1.0)
    slow.saw_draft(9.0)
    fast.saw_target(9.0)
    fast.saw_draft(1e-9)
    assert slow.next() == 1 and fast.next() == LARGEST


def test_in_turns_it_falls_with_acceptance():
    good, bad = Gamma("auto", False), Gamma("auto", False)
    for gamma, accepted in ((good, 95), (bad, 5)):
        gamma.saw_target(0.05)
        gamma.saw_draft(0.005)
        gamma.saw_verdict(accepted, 100)
    assert bad.next() == 1 < 5 < good.next()
