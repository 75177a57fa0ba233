"""The drafter, against a scripted process."""

import time
from collections import deque

import torch

from hippo.draft.drafter import Drafter, Proposal
from hippo.draft.messages import Keep, Propose, Ready, Settle, Token
from hippo.draft.process import DraftLost
from hippo.families import VideoGrid
from hippo.report.stats import Stats

GRIDS = (VideoGrid(1, 1, 4),)


class Script:
    """Stands for a DraftProcess: what it will say, and what it was told."""

    def __init__(self, *says):
        self.says, self.told, self.epoch, self.closed, self.timeout = deque(says), [], 0, False, 0.001

    def send(self, message):
        self.told.append(message)

    def receive(self, timeout=None):
        message = self.says.popleft() if self.says else DraftLost("script over")
        if isinstance(message, DraftLost):
            raise message
        return message

    def pending(self):
        return bool(self.says)

    def close(self):
        self.closed = True


def ids(proposals):
    return [proposal.id for proposal in proposals]


def drafter(*says):
    script, stats, steps = Script(*says), Stats(), []
    made = Drafter(script, stats, steps.append, 10)
    made.begin({})
    return made, script, stats, steps


def test_nothing_is_asked_of_a_draft_that_is_not_ready():
    made, script, _, _ = drafter()
    assert not made.ready() and not made.lost
    made.propose(3)
    assert made.collect(3) == [] and not any(isinstance(m, Propose) for m in script.told)


def test_tokens_come_in_order_and_no_more_than_asked_for():
    made, script, stats, steps = drafter(Ready(1, 0.5), Token(2, 7, 0.9, 0.1), Token(2, 8, 0.9, 0.2))
    made.prefill(torch.tensor([1, 2]), GRIDS)
    made.settle(0, [5])
    assert made.ready()
    made.propose(2)
    assert made.waiting == 2 and made.coming() == Proposal(7, 0.9)
    assert ids(made.collect(1)) == [7] and made.waiting == 1
    assert ids(made.collect(5)) == [8] and made.collect(1) == [] and made.coming() is None
    assert stats.seconds.draft_prefill == 0.5 and stats.draft_forwards == 2 and steps == [0.1, 0.2]
    assert script.told[1:] == [Keep([1, 2], GRIDS), Settle(0, [5]), Propose(2)]
    made.propose(0)
    made.propose(5)
    assert script.told[-1] == Propose(5) and len(script.told) == 5


def test_a_draft_that_sees_alike_is_told_what_was_seen():
    script = Script(Ready(1, 0.5))
    made = Drafter(script, Stats(), print, 10, alike=True)
    made.read({"ids": torch.tensor([3])})
    assert made.ready() and script.told[0].limit == 10 and script.told[0].prompt["ids"].tolist() == [3]


def test_what_was_said_before_a_verdict_is_dropped():
    made, _, stats, steps = drafter(Ready(1, 0.0), Token(2, 7, 0.9, 0.1), Token(3, 9, 0.9, 0.1))
    made.settle(0, [5])
    assert made.ready()
    made.propose(1)
    made.settle(1, [6])
    made.propose(1)
    assert ids(made.collect(1)) == [9]
    assert stats.draft_forwards == 2 and len(steps) == 1


def test_what_a_draft_that_is_ready_warns_of_is_told():
    made, _, stats, _ = drafter(Ready(1, 0.0, "careful"))
    assert made.ready() and stats.warnings == ["careful"] and "warnings" not in stats.as_dict()


def test_looking_for_what_comes_does_not_wait():
    made, script, _, _ = drafter(Ready(1, 0.0))
    made.settle(0, [5])
    assert made.ready()
    made.propose(2)
    assert made.coming() is None and made.waiting == 2
    script.says.append(Token(2, 7, 0.5, 0.1))
    assert made.coming() == made.coming() == Proposal(7, 0.5)


def test_a_late_ready_of_an_earlier_request_is_not_this_ones():
    made, script, _, _ = drafter(Ready(0, 0.0))
    assert not made.ready()
    made.propose(1)
    assert not any(isinstance(m, Propose) for m in script.told)


def test_a_lost_draft_is_closed_and_every_call_is_a_no_op():
    made, script, stats, _ = drafter(Ready(1, 0.0), DraftLost("gone"))
    made.settle(0, [5])
    assert made.ready()
    made.propose(2)
    assert made.collect(2) == [] and stats.draft_lost == "gone" and script.closed and made.lost and not made.ready()
    made.propose(1)
    made.settle(1, [1])
    made.end()
    assert made.collect(1) == []


def test_a_draft_that_never_gets_ready_is_given_up():
    made, script, stats, _ = drafter()
    made.prefill(torch.tensor([0]), GRIDS)
    assert not made.ready() and not stats.draft_lost
    time.sleep(0.02)
    assert not made.ready() and "did not read its prompt" in stats.draft_lost and script.closed


def test_no_draft_at_all():
    made = Drafter(None, Stats(), print)
    made.begin({})
    made.read({})
    made.propose(1)
    assert made.collect(1) == [] and made.lost and not made.ready()
