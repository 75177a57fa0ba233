"""Autoregressive decoding: one forward, one token."""

from __future__ import annotations

from collections.abc import Iterator

from hippo.decode.session import Session
from hippo.draft import Drafter


def decode_ar(session: Session, drafter: Drafter) -> Iterator[list[int]]:
    """Yield each token as it is committed. The drafter is not asked."""
    while not session.done:
        yield session.commit(session.verify(session.forward([]), []))
