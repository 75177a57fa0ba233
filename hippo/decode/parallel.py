"""Parallel speculative decoding: draft and target work at the same time (HIPPO after PEARL, method section 2)."""

from __future__ import annotations

from collections.abc import Iterator

from hippo.decode.session import Session
from hippo.draft import Drafter


def decode_parallel(session: Session, drafter: Drafter) -> Iterator[list[int]]:
    """Yield the tokens of each round as they are committed.

    While the target checks a window of drafted tokens, the draft goes on; the first token after the window is checked
    by the same forward. If all stand, what was drafted meanwhile waits for the next round (post-verify). With nothing
    waiting only that first token is checked, if none is worth waiting for (pre-verify). While the draft is not there
    yet, rests or is lost, rounds are plain autoregressive steps.
    """
    while not session.done:
        session.plan(drafter)
        window = session.window(drafter)
        rows = session.forward(window)
        verdict = session.verify(rows, window + session.following(drafter))
        if verdict.own is not None:
            session.rollback(len(window) - len(verdict.accepted))
            drafter.settle(len(session.tokens) + len(verdict.accepted), [verdict.own])
        tokens = session.commit(verdict)
        session.end_round()
        yield tokens
