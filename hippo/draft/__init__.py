"""The draft, in a process of its own."""

from hippo.draft.drafter import Drafter, Proposal
from hippo.draft.process import DraftProcess

__all__ = ["DraftProcess", "Drafter", "Proposal"]
