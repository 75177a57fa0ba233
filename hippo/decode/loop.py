"""The decoding algorithm: propose, take, target forward, verify, roll back, commit.

Both models work at the same time (PARALLEL), in turns (IN_TURNS), or the target works alone (PLAIN): while the draft
still reads its prompt, while it rests, and for good once it is lost. In two groups (GROUPS) the caller has the target
check other requests between PROPOSED and the next `Check`. With a target in several processes only the leader
has a draft, and broadcasts what it proposes to the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from enum import Enum
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from hippo.decode.answer import Answer
from hippo.decode.choice import Mode
from hippo.decode.costs import LARGEST
from hippo.decode.schedule import Schedule
from hippo.decode.verify import Verdict
from hippo.draft import Drafter, Proposal
from hippo.stats import Stats
from hippo.tensor_parallel import broadcast


class Target(Protocol):
    """What decoding needs of the target, see `hippo.forward.CachedModel`. seconds: of the last forward. width,
    longest: of its tokens, the mean and the most of a request in it."""

    seconds: float
    width: int
    longest: int

    @property
    def widest(self) -> int:
        """Tokens that one forward takes at most; 0 for any number."""

    def extend(self, ids: list[int]) -> Tensor:
        """Append n tokens; returns (n, vocabulary) logits."""

    def rollback(self, count: int) -> None:
        """Forget the last tokens."""


class Check(NamedTuple):
    """Tokens that the target shall read next: the last one of the answer, and the drafted ones after it."""

    ids: list[int]


class Pause(Enum):
    """PROPOSED: the draft has been asked. Other requests may ask it now, before this one waits for its tokens."""

    PROPOSED = 0


Rounds = Generator[Check | Pause | list[int], Tensor | None, None]


def decode(
    answer: Answer,
    target: Target,
    drafter: Drafter,
    schedule: Schedule,
    stats: Stats,
    share_cores: Callable[[bool], None] = lambda beside: None,
    now: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Decode until the answer ends. Yields in each round PROPOSED, a `Check`, for which the caller sends the
    (n, vocabulary) logits, and the committed tokens; see `alone`, and `hippo.engine` for several requests together.

    answer: holds its first token. share_cores: called before each forward with whether the draft works too.
    """
    most = (target.widest or LARGEST + 1) - 1  # drafted tokens beside the last one of the answer
    while not answer.done:
        began, ready = now(), drafter.ready()
        mode = broadcast(schedule.begin_round() if ready else schedule.idle())
        share_cores(mode.overlaps or not (ready or drafter.lost))
        if mode is not Mode.PLAIN and not drafter.lost:
            propose(answer, drafter, schedule, LARGEST if mode is Mode.PARALLEL else most)
        yield Pause.PROPOSED
        pending = broadcast(take(answer, drafter, schedule, mode, most))
        logits: Any = yield Check([answer.tokens[-1], *(proposal.id for proposal in pending)])
        stats.trace.did("target", "verify", now(), target.seconds, 1 + len(pending))
        if ready or drafter.lost:  # else a draft that reads its prompt had its share of the cores
            schedule.saw_target(target.width, target.seconds, target.longest)
        if mode is not Mode.PARALLEL:
            verdict = verify(logits, pending, answer, schedule)
        elif pending:
            verdict = post_verify(logits, pending, answer, drafter, schedule)
        else:
            verdict = pre_verify(logits, answer, drafter, schedule)
        if verdict.bonus_token is not None:  # else everything pending and the first token after it were accepted
            target.rollback(len(pending) - len(verdict.accepted))
            drafter.commit(len(answer.tokens) + len(verdict.accepted), [verdict.bonus_token])
        tokens = answer.commit(verdict)
        if ready:
            schedule.end_round(len(tokens), now() - began)
            stats.draft_rounds += mode is not Mode.PLAIN
        stats.rounds[mode.value] = stats.rounds.get(mode.value, 0) + 1
        yield tokens


def alone(rounds: Rounds, extend: Callable[[list[int]], Tensor]) -> Generator[list[int], None, None]:
    """The committed tokens of each round of a request whose forwards are its own. extend: see `Target.extend`."""
    wanted = next(rounds, None)
    while wanted is not None:
        if isinstance(wanted, list) and wanted:
            yield wanted
        logits = extend(wanted.ids) if isinstance(wanted, Check) else None
        try:
            wanted = rounds.send(logits)
        except StopIteration:
            return


def propose(answer: Answer, drafter: Drafter, schedule: Schedule, most: int = LARGEST) -> None:
    """Ask the draft for tokens after everything proposed so far, never more than the answer may still hold."""
    drafter.propose(min(schedule.ask(drafter.waiting), min(most, answer.room) - drafter.waiting))


def take(answer: Answer, drafter: Drafter, schedule: Schedule, mode: Mode, most: int = LARGEST) -> list[Proposal]:
    """The drafted tokens that the target checks in this round: those that are there or worth waiting for."""
    pending: list[Proposal] = []
    while mode is not Mode.PLAIN and not drafter.lost and len(pending) < min(answer.room, most):
        coming = drafter.peek()
        if not schedule.wants([one.prob for one in pending], None if coming is None else coming.prob):
            break
        if not (taken := drafter.take(1)):
            if not (pending or drafter.lost):
                schedule.saw_nothing()
            break
        pending += taken
    return pending


def pre_verify(logits: Tensor, answer: Answer, drafter: Drafter, schedule: Schedule) -> Verdict:
    """Nothing was pending: the forward checks the first token of the chunk that was drafted at the same time."""
    return verify(logits, broadcast(_lookahead(drafter, schedule)), answer, schedule)


def post_verify(
    logits: Tensor, pending: list[Proposal], answer: Answer, drafter: Drafter, schedule: Schedule
) -> Verdict:
    """The forward checks what was pending and the first token of the chunk that was drafted at the same time."""
    return verify(logits, pending + broadcast(_lookahead(drafter, schedule)), answer, schedule)


def verify(logits: Tensor, drafted: list[Proposal], answer: Answer, schedule: Schedule) -> Verdict:
    """Judge drafted tokens by the target's logits, (n, vocabulary), and report the verdict to the schedule."""
    verdict = answer.verify(logits, drafted)
    accepted = len(verdict.accepted)
    schedule.saw_verdict(accepted, [proposal.prob for proposal in drafted[: accepted + 1]])
    return verdict


def _lookahead(drafter: Drafter, schedule: Schedule) -> list[Proposal]:
    """The first drafted token after the window; not waited for while the draft catches up after a rest."""
    return [] if schedule.waking and drafter.peek() is None else drafter.take(1)
