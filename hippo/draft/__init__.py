"""The draft model, in a process or a thread of its own, which serves several requests at a time; or a drafter without
a model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hippo.draft.drafter import Drafter, Proposal
    from hippo.draft.process import DraftWorker, placement
    from hippo.draft.proposer import Plugin, Proposer, plugin_of
    from hippo.draft.shared_vision import kept_prompt, vision_fingerprint

__all__ = [
    "DraftWorker",
    "Drafter",
    "Plugin",
    "Proposal",
    "Proposer",
    "kept_prompt",
    "placement",
    "plugin_of",
    "vision_fingerprint",
]

_HOMES = {
    **{"Drafter": "drafter", "Proposal": "drafter", "DraftWorker": "process", "placement": "process"},
    **{"Plugin": "proposer", "Proposer": "proposer", "plugin_of": "proposer"},
}


def __getattr__(name: str) -> Any:
    """Import on first use: a fresh process must be heard before torch is imported, which takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'hippo.draft' has no attribute {name!r}")
    return getattr(import_module(f"hippo.draft.{_HOMES.get(name, 'shared_vision')}"), name)
