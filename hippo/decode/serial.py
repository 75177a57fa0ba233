"""Ordinary speculative decoding: the draft proposes, then the target checks, in turns."""

from __future__ import annotations

from collections.abc import Iterator

from hippo.decode.session import Session
from hippo.draft import Drafter


def decode_serial(session: Session, drafter: Drafter) -> Iterator[list[int]]:
    """Yield the tokens of each round as they are committed."""
    drafter.wait()
    while not session.done:
        gamma = session.gamma.next()
        drafter.propose(gamma)
        drafted = drafter.collect(gamma)
        accepted, token = session.verify(session.forward(drafted), drafted)
        assert token is not None
        session.target.rollback(len(drafted) - accepted)
        drafter.settle(len(session.tokens) + accepted, [token])
        yield session.commit([*drafted[:accepted], token])
