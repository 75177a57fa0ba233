"""What decoders share: counting, stopping."""

import torch

from hippo.decode import Chooser, Gamma, Sampling, Session, StopRule
from hippo.decode.session import Verdict
from hippo.draft import Proposal
from hippo.report.stats import Stats


class Draft:
    """Stands for a Drafter that is ready, not yet, or lost, and drafts these tokens at once."""

    def __init__(self, *tokens, ready=True, lost=False):
        self.ready, self.lost, self.waiting = lambda: ready, lost, 0
        self.tokens = [Proposal(token, 0.9) for token in tokens]

    def propose(self, count):
        self.waiting += max(0, count)

    def coming(self):
        return self.tokens[0] if self.tokens and self.waiting else None

    def collect(self, count):
        count = min(count, self.waiting)
        self.waiting -= count
        taken, self.tokens = self.tokens[:count], self.tokens[count:]
        return taken


def proposals(*tokens):
    return [Proposal(token, 0.9) for token in tokens]


def make(eos=(), length=100, gamma=2, overlapped=True, **options):
    stats = Stats()
    chooser = Chooser(Sampling(), [], torch.tensor([1]))
    return Session(None, chooser, StopRule(eos, length), Gamma(gamma, overlapped), stats, **options), stats


def rows(*tokens):
    return torch.nn.functional.one_hot(torch.tensor(tokens), 8).float()


def test_counts_of_verdicts():
    session, stats = make()
    session.start(rows(4)[0])
    verdict = session.verify(rows(1, 2, 3), proposals(1, 5))
    assert verdict == Verdict([1], 2, True)
    session.commit(verdict)
    session.commit(session.verify(rows(1, 2, 3), proposals(1, 2)))
    assert (stats.checked, stats.accepted, stats.rejections) == (4, 3, 1)
    assert session.tokens == [4, 1, 2, 1, 2, 3]


def test_what_the_stop_rule_cuts_off_is_not_counted():
    session, stats = make(eos=[2])
    session.start(rows(4)[0])
    assert session.commit(Verdict([1, 2, 3, 5], 6, True)) == [1, 2]
    assert (stats.checked, stats.accepted, stats.rejections) == (2, 2, 0)


def test_no_more_is_drafted_or_checked_than_the_answer_may_hold():
    session, _ = make(length=4, gamma=9, overlapped=False)
    session.start(rows(4)[0])
    draft = Draft(*range(20))
    session.plan(draft)
    assert draft.waiting == 3
    assert [proposal.id for proposal in session.window(draft)] == [0, 1, 2]
    draft.waiting = 3
    session.plan(draft)
    assert draft.waiting == 3


def test_nothing_is_asked_without_a_draft_and_cores_go_to_who_works():
    told = []
    session, _ = make(beside=told.append)
    for draft, waiting in ((Draft(ready=False), 0), (Draft(), 2), (Draft(ready=False, lost=True), 0)):
        session.plan(draft)
        assert draft.waiting == waiting
        assert session.window(draft) == []
    assert told == [True, True, False]


def test_the_window_ends_where_the_draft_does():
    session, _ = make(gamma=5, overlapped=False)
    draft = Draft(7, 8)
    session.plan(draft)
    draft.waiting = 2  # it is lost after two
    assert [proposal.id for proposal in session.window(draft)] == [7, 8]


def test_a_draft_that_reads_after_a_rest_is_not_waited_for():
    session, _ = make(gamma=2)
    draft = Draft()
    session.plan(draft)
    draft.collect = lambda count: ["collected"]
    assert session.following(draft) == ["collected"]
    session._gamma._waking = True
    assert session.following(draft) == []
    draft.tokens = proposals(3)
    assert session.following(draft) == ["collected"], "it is there"


def test_eos_as_the_first_token():
    session, _ = make(eos=[4])
    assert session.start(rows(4)[0]) == [4] and session.done and session.finish == "eos"


def test_commit_stops_inside_a_window():
    session, _ = make(eos=[3])
    session.start(rows(4)[0])
    assert session.commit(Verdict([1, 3], 2, False)) == [1, 3] and session.tokens == [4, 1, 3] and session.done
