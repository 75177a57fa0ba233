"""What decoders share: counting, stopping."""

import torch

from hippo.decode import Chooser, Gamma, Sampling, Session, StopRule
from hippo.decode.session import Verdict
from hippo.report.stats import Stats


class Draft:
    """Stands for a Drafter that is ready, not yet, or lost."""

    def __init__(self, ready=True, lost=False):
        self.ready, self.lost = lambda: ready, lost


def make(eos=(), length=100, gamma=2, **options):
    stats = Stats()
    chooser = Chooser(Sampling(), [], torch.tensor([1]))
    return Session(None, chooser, StopRule(eos, length), Gamma(gamma, True), stats, **options), stats


def rows(*tokens):
    return torch.nn.functional.one_hot(torch.tensor(tokens), 8).float()


def test_counts_of_verdicts():
    session, stats = make()
    session.start(rows(4)[0])
    verdict = session.verify(rows(1, 2, 3), [1, 5])
    assert verdict == Verdict([1], 2, True)
    session.commit(verdict)
    session.commit(session.verify(rows(1, 2, 3), [1, 2]))
    assert (stats.checked, stats.accepted, stats.rejections) == (4, 3, 1)
    assert session.tokens == [4, 1, 2, 1, 2, 3]


def test_what_the_stop_rule_cuts_off_is_not_counted():
    session, stats = make(eos=[2])
    session.start(rows(4)[0])
    assert session.commit(Verdict([1, 2, 3, 5], 6, True)) == [1, 2]
    assert (stats.checked, stats.accepted, stats.rejections) == (2, 2, 0)


def test_gamma_never_reaches_past_the_end():
    session, _ = make(length=4, gamma=9)
    session.start(rows(4)[0])
    assert session.plan(Draft()) == (3, 0)
    assert session.plan(Draft(), pending=2) == (1, 0) and session.plan(Draft(), pending=5) == (0, 0)


def test_nothing_is_planned_without_a_draft_and_cores_go_to_who_works():
    told = []
    session, _ = make(beside=told.append)
    assert session.plan(Draft(ready=False)) == (0, 0)  # it reads its prompt
    assert session.plan(Draft()) == (2, 0)
    assert session.plan(Draft(ready=False, lost=True)) == (0, 0)
    assert told == [True, True, False]


def test_eos_as_the_first_token():
    session, _ = make(eos=[4])
    assert session.start(rows(4)[0]) == [4] and session.done and session.finish == "eos"


def test_commit_stops_inside_a_window():
    session, _ = make(eos=[3])
    session.start(rows(4)[0])
    assert session.commit(Verdict([1, 3], 2, False)) == [1, 3] and session.tokens == [4, 1, 3] and session.done
