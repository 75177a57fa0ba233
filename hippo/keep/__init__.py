"""Token preservation: which video tokens carry the meaning."""

from hippo.keep.attention import SCORES, Listener, listening
from hippo.keep.carry import carry
from hippo.keep.pruners import PRUNERS, Pruner, Signals, pruner_named, signals_of

__all__ = ["PRUNERS", "SCORES", "Listener", "Pruner", "Signals", "carry", "listening", "pruner_named", "signals_of"]
