"""What decoders share: counting, stopping."""

import torch

from hippo.decode import Chooser, Gamma, Sampling, Session, StopRule
from hippo.report.stats import Stats


def make(eos=(), length=100):
    stats = Stats()
    chooser = Chooser(Sampling(), [], torch.tensor([1]))
    return Session(None, chooser, StopRule(eos, length), Gamma(2, True), stats), stats


def rows(*tokens):
    return torch.nn.functional.one_hot(torch.tensor(tokens), 8).float()


def test_counts_of_a_verdict():
    session, stats = make()
    session.start(rows(4)[0])
    assert session.verify(rows(1, 2, 3), [1, 5]) == (1, 2)
    assert session.verify(rows(1, 2, 3), [1, 2]) == (2, 3)
    assert (stats.checked, stats.accepted, stats.rejections) == (4, 3, 1)


def test_eos_as_the_first_token():
    session, _ = make(eos=[4])
    assert session.start(rows(4)[0]) == [4] and session.done and session.finish == "eos"


def test_commit_stops_inside_a_window():
    session, _ = make(eos=[3])
    session.start(rows(4)[0])
    assert session.commit([1, 3, 2]) == [1, 3] and session.tokens == [4, 1, 3] and session.done
