"""An answer of a target that several processes hold together: the one that leads says which tokens to check."""

from __future__ import annotations

from hippo import ranks
from hippo.decode.session import Session
from hippo.draft import Drafter, Proposal


class LedSession(Session):
    """A Session that is the same in all of them, whatever the draft and the clock of each say."""

    def plan(self, drafter: Drafter) -> None:
        """See Session; only the leader has a draft to ask."""
        if ranks.leads():
            super().plan(drafter)

    def window(self, drafter: Drafter) -> list[Proposal]:
        """See Session; the leader's."""
        return ranks.told(super().window(drafter) if ranks.leads() else [])

    def following(self, drafter: Drafter) -> list[Proposal]:
        """See Session; the leader's."""
        return ranks.told(super().following(drafter) if ranks.leads() else [])
