"""Ordinary speculative decoding: the draft proposes, then the target checks, in turns."""

from __future__ import annotations

from collections.abc import Iterator

from hippo.decode.session import Session
from hippo.draft import Drafter


def decode_serial(session: Session, drafter: Drafter) -> Iterator[list[int]]:
    """Yield the tokens of each round as they are committed. Until the draft has read its prompt, and when it is lost,
    rounds are plain autoregressive steps."""
    while not session.done:
        session.plan(drafter)
        drafted = session.window(drafter)
        verdict = session.verify(session.forward(drafted), drafted)
        assert verdict.own is not None
        session.rollback(len(drafted) - len(verdict.accepted))
        drafter.settle(len(session.tokens) + len(verdict.accepted), [verdict.own])
        tokens = session.commit(verdict)
        session.end_round()
        yield tokens
