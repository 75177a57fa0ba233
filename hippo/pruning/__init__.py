"""Token preservation: which video tokens carry the meaning."""

from hippo.pruning.attention import Attention, AttentionRecorder, recording
from hippo.pruning.fusion import budget
from hippo.pruning.keep_ratio import RATIOS, USUAL, captured, relative_acceptance
from hippo.pruning.pruners import PRUNERS, Pruner, Signals, pruner_named, signals_of
from hippo.pruning.remap import remap_grid

__all__ = [
    "PRUNERS",
    "RATIOS",
    "USUAL",
    "Attention",
    "AttentionRecorder",
    "Pruner",
    "Signals",
    "budget",
    "captured",
    "pruner_named",
    "recording",
    "relative_acceptance",
    "remap_grid",
    "signals_of",
]
