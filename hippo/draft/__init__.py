"""The draft, in a process of its own."""

from hippo.draft.child import is_thread
from hippo.draft.drafter import Drafter, Proposal
from hippo.draft.eyes import eyes_of, seen
from hippo.draft.process import DraftProcess

__all__ = ["DraftProcess", "Drafter", "Proposal", "eyes_of", "is_thread", "seen"]
