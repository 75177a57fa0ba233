"""The drafter, against a scripted transport."""

from collections import deque

import pytest
import torch

from hippo.draft import process
from hippo.draft.drafter import Drafter, Proposal
from hippo.draft.messages import Begin, Commit, End, Failed, Prefill, Propose, Ready, Token
from hippo.draft.process import DraftWorker
from hippo.families import VideoGrid
from hippo.stats import Stats

GRIDS = (VideoGrid(1, 1, 4),)


class Script:
    """Stands for a transport and a child: what the worker will say, and what it was told."""

    pid = 0

    def __init__(self, *says):
        self.says, self.told, self.closed = deque(says), [], False

    def send(self, record):
        if self.closed:
            raise ConnectionError("closed")
        self.told.append(record)

    def receive(self, timeout):
        if self.closed or (self.says and self.says[0] is ConnectionError):
            raise ConnectionError("script over")
        return self.says.popleft() if self.says else None

    def close(self):
        self.closed = True

    def poll(self):
        return 3 if self.closed or (self.says and self.says[0] is ConnectionError) else None

    def kill(self):
        pass


@pytest.fixture
def worker(monkeypatch):
    """Of a script, a worker handle with a short timeout."""

    def of(script, timeout=0.001):
        monkeypatch.setattr(process, "_in_process", lambda *_: (script, script, None))
        return DraftWorker("nowhere", "auto", "cpu", timeout)

    return of


def ids(proposals):
    return [proposal.id for proposal in proposals]


@pytest.fixture
def drafter(worker):
    """Of what the worker will say: a drafter that has begun, the script, its stats and its steps."""

    def of(*says, timeout=0.001):
        script, stats, steps = Script(*says), Stats(), []
        made = worker(script, timeout).drafter(stats, on_step=steps.append, limit=10, shared_vision=False)
        made.begin({})
        return made, script, stats, steps

    return of


def asked(script):
    return [record for record in script.told if isinstance(record, Propose)]


def test_nothing_is_asked_of_a_draft_that_is_not_ready(drafter):
    made, script, _, _ = drafter()
    assert not made.ready() and not made.lost
    made.propose(3)
    assert made.take(3) == [] and not asked(script)


def test_tokens_come_in_order_and_no_more_than_asked_for(drafter):
    made, script, stats, steps = drafter(Ready(1, 0.5, ""), Token(1, 1, 7, 0.9, 0.1), Token(1, 1, 8, 0.9, 0.2))
    kept = torch.tensor([1, 2])
    made.prefill(kept, GRIDS)
    made.commit(0, [5])
    assert made.ready()
    made.propose(2)
    assert made.waiting == 2 and made.peek() == Proposal(7, 0.9)
    assert ids(made.take(1)) == [7] and made.waiting == 1
    assert ids(made.take(5)) == [8] and made.take(1) == [] and made.peek() is None
    assert stats.seconds.draft_prefill == 0.5 and stats.draft_forwards == 2 and steps == [0.1, 0.2]
    assert script.told == [Begin(1, {}, 10), Prefill(1, kept, GRIDS), Commit(1, 0, [5]), Propose(1, 2)]
    made.propose(0)
    made.propose(5)
    made.end()
    assert script.told[4:] == [Propose(1, 5), End(1)]


def test_a_late_draft_reads_nothing_before_it_is_first_asked(worker):
    script, stats = Script(Ready(1, 0.5, ""), Token(1, 2, 7, 0.9, 0.1)), Stats()
    made = worker(script).drafter(stats, on_step=print, limit=10, shared_vision=False, late=True)
    made.expect(1.5, 40)
    made.begin({})
    made.prefill(kept := torch.tensor([1]), GRIDS)
    made.commit(0, [5])
    made.commit(1, [6])
    made.propose(0)
    assert made.ready() and script.told == []
    made.propose(1)
    assert script.told == [
        Begin(1, {}, 10, 1.5, 40),
        Prefill(1, kept, GRIDS),
        Commit(1, 0, [5]),
        Commit(1, 1, [6]),
        Propose(1, 1),
    ]
    assert ids(made.take(1)) == [7] and stats.seconds.draft_prefill == 0.5
    made.end()
    assert script.told[5:] == [End(1)]


def test_a_late_draft_that_was_never_asked_hears_nothing(worker):
    script = Script()
    made = worker(script).drafter(Stats(), on_step=print, limit=10, shared_vision=False, late=True)
    made.begin({})
    made.end()
    assert script.told == [] and not made.lost


def test_a_late_draft_that_cannot_use_its_inputs_is_lost_when_it_is_asked(worker):
    script, stats = Script(Failed(1, "no")), Stats()
    made = worker(script).drafter(stats, on_step=print, limit=10, shared_vision=False, late=True)
    made.begin({})
    made.commit(0, [5])
    made.propose(2)
    assert made.take(2) == [] and made.lost and stats.draft_lost == "no" and not made.ready()
    made.commit(1, [6])
    made.end()


def test_a_draft_with_the_targets_vision_tower_is_sent_the_prompt(worker):
    script = Script(Ready(1, 0.5, ""))
    made = worker(script).drafter(Stats(), on_step=print, limit=10, shared_vision=True)
    made.read({"ids": torch.tensor([3])})
    assert made.shared_vision and made.ready()
    assert script.told[0].limit == 10 and script.told[0].prompt["ids"].tolist() == [3]


def test_what_was_drafted_before_a_verdict_is_dropped(drafter):
    made, _, stats, steps = drafter(Ready(1, 0.0, ""), Token(1, 1, 7, 0.9, 0.1), Token(1, 2, 9, 0.9, 0.1))
    made.commit(0, [5])
    assert made.ready()
    made.propose(1)
    made.commit(1, [6])
    made.propose(1)
    assert ids(made.take(1)) == [9]
    assert stats.draft_forwards == 2 and len(steps) == 1


def test_what_a_draft_that_is_ready_warns_of_is_told(drafter):
    made, _, stats, _ = drafter(Ready(1, 0.0, "careful"))
    assert made.ready() and stats.warnings == ["careful"] and "warnings" not in stats.as_dict()


def test_looking_at_the_next_token_does_not_wait(drafter):
    made, script, _, _ = drafter(Ready(1, 0.0, ""))
    made.commit(0, [5])
    assert made.ready()
    made.propose(2)
    assert made.peek() is None and made.waiting == 2
    script.says.append(Token(1, 1, 7, 0.5, 0.1))
    assert made.peek() == made.peek() == Proposal(7, 0.5)


def test_records_go_to_their_own_request(worker):
    script = Script(Ready(2, 0.0, ""), Token(9, 0, 1, 0.5, 0.1), Ready(1, 0.0, ""))
    of = worker(script)
    one, two = (of.drafter(Stats(), on_step=print, limit=10, shared_vision=False) for _ in range(2))
    assert one.ready() and two.ready(), "and one for a request that is over is dropped"
    for drafter in (one, two):
        drafter.propose(1)
    script.says += [Token(2, 0, 22, 0.5, 0.1), Token(1, 0, 11, 0.5, 0.1)]
    assert ids(one.take(1)) == [11] and ids(two.take(1)) == [22]
    two.end()
    script.says += [Token(2, 0, 22, 0.5, 0.1), Token(1, 0, 12, 0.5, 0.1)]
    one.propose(1)
    assert ids(one.take(1)) == [12] and not of._reading


def test_a_lost_worker_is_closed_and_every_call_of_all_requests_is_a_no_op(drafter):
    made, script, stats, _ = drafter(Ready(1, 0.0, ""), ConnectionError)
    others = Stats()
    other = made._worker.drafter(others, on_step=print, limit=10, shared_vision=False)
    made.commit(0, [5])
    assert made.ready()
    made.propose(2)
    assert made.take(2) == [] and script.closed and made.lost and not made.ready()
    made.propose(1)
    made.commit(1, [1])
    made.end()
    assert made.take(1) == []
    other.prefill(torch.tensor([0]), GRIDS)
    assert other.lost and others.draft_lost == stats.draft_lost == "the draft's process died with code 3"


def test_what_a_worker_says_last_is_why_it_is_lost(drafter):
    made, script, stats, _ = drafter(Failed(0, "MemoryError: "))
    assert not made.ready() and made.lost and script.closed
    assert stats.draft_lost == "the draft's process failed: MemoryError: "


def test_a_request_that_fails_is_lost_alone(drafter):
    made, script, stats, _ = drafter(Failed(1, "no"), Ready(2, 0.0, ""))
    worker = made._worker
    other = worker.drafter(Stats(), on_step=print, limit=10, shared_vision=False)
    assert not made.ready() and made.lost and stats.draft_lost == "no"
    assert worker.alive and not script.closed and other.ready()


def test_a_worker_that_is_closed_meanwhile_is_lost(drafter):
    made, _, stats, _ = drafter()
    made._worker.close()
    made.commit(0, [1])
    assert made.lost and stats.draft_lost == "the draft was closed"


def test_a_silent_worker_is_lost(drafter):
    made, script, stats, _ = drafter(Ready(1, 0.0, ""))
    assert made.ready()
    made.propose(1)
    assert made.take(1) == [] and "silent for 0.001 s" in stats.draft_lost and script.closed


def test_while_another_request_reads_the_worker_may_be_silent_for_longer(drafter):
    made, script, stats, _ = drafter(Ready(1, 0.0, ""))
    assert made.ready()
    waited = []
    script.receive = waited.append
    other = made._worker.drafter(Stats(), on_step=print, limit=10, shared_vision=False)
    other.begin({})
    made.propose(1)
    assert made.take(1) == [] and 0.001 < waited[0] <= 0.01 and stats.draft_lost


def test_a_draft_that_never_gets_ready_is_given_up(drafter):
    made, script, stats, _ = drafter(timeout=20.0)
    made.prefill(torch.tensor([0]), GRIDS)
    assert not made.ready() and not stats.draft_lost
    made._worker._heard -= 200
    assert not made.ready() and "silent for 200 s" in stats.draft_lost and script.closed


def test_a_prompt_is_waited_for_from_when_its_turn_comes(drafter):
    made, script, _, _ = drafter(timeout=20.0)
    other = made._worker.drafter(Stats(), on_step=print, limit=10, shared_vision=False)
    other.begin({})
    made._worker._heard -= 200
    script.says.append(Ready(1, 0.0, ""))
    assert made.ready() and not other.ready() and not other.lost


def test_no_draft_at_all():
    made = Drafter(None, Stats(), print, shared_vision=True)
    made.begin({})
    made.read({})
    made.commit(0, [1])
    made.propose(1)
    made.end()
    assert made.take(1) == [] and made.peek() is None and made.lost and not made.ready() and not made.shared_vision
