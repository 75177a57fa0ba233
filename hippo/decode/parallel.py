"""Parallel speculative decoding: draft and target work at the same time (HIPPO after PEARL, method section 2)."""

from __future__ import annotations

from collections.abc import Iterator

from hippo.decode.session import Session
from hippo.draft import Drafter


def decode_parallel(session: Session, drafter: Drafter) -> Iterator[list[int]]:
    """Yield the tokens of each round as they are committed.

    With nothing pending a round is a pre-verify: only the first new drafted token is checked, while the rest of the
    chunk is still being drafted. With tokens pending it is a post-verify: they and the first of the new chunk are
    checked. A lead (our choice) turns a pre-verify into a post-verify by waiting for some tokens first, where that is
    sooner. While the draft is not there yet, rests or is lost, rounds are plain autoregressive steps.
    """
    pending: list[int] = []
    while not session.done:
        gamma, lead = session.plan(drafter, len(pending))
        drafter.propose(lead + gamma)
        pending = pending or drafter.collect(lead)
        rows = session.forward(pending)
        verdict = session.verify(rows, pending + drafter.collect(1))
        if verdict.own is None:
            tokens = session.commit(verdict)
            pending = [] if session.done else drafter.collect(gamma - 1)
        else:
            session.rollback(len(pending) - len(verdict.accepted))
            drafter.settle(len(session.tokens) + len(verdict.accepted), [verdict.own])
            tokens = session.commit(verdict)
            pending = []
        session.end_round()
        yield tokens
