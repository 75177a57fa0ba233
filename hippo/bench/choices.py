"""Ways to choose that need more than a pruner sees: signals of both models, the answer so far, tokens that are merged.

They are studied and not offered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hippo.bench.evidence import Choice, Evidence
from hippo.pruning import PRUNERS
from hippo.pruning.fusion import fuse, normalise
from hippo.pruning.pruners import fused_score, keep_uniform, top
from hippo.pruning.spatial import spatial_score
from hippo.pruning.temporal import temporal_score

_EVERY = 16  # tokens of the answer from one look at it to the next
_LATEST = 32  # tokens whose attention counts
_SIMILAR = 0.8  # cosine from which a dropped token is merged into a kept one
_MERGED = 0.3  # weight of what is merged into a token

_HIPPO = PRUNERS["hippo"].attention


def _fused(evidence: Evidence, attention: Tensor) -> Tensor:
    """As `hippo`, with another attention, (V,)."""
    grid, features = evidence.grid, evidence.features
    parts = {"temporal": temporal_score(features, grid), "spatial": spatial_score(features, grid)}
    return grid.of_tokens(fuse(grid, attention=grid.laid_out(attention).flatten(), **parts))


def _question(evidence: Evidence) -> Tensor:
    assert _HIPPO is not None
    attention = evidence.signals[_HIPPO].attention
    assert attention is not None
    return attention


def _base(evidence: Evidence) -> Tensor:
    assert _HIPPO is not None
    return fused_score(evidence.signals[_HIPPO])


def _by_draft(early: bool, with_target: bool) -> Callable[[Evidence, int], Choice]:
    """The draft's own attention, of its first quarter of layers or of all, alone or with the target's."""

    def choose(evidence: Evidence, count: int) -> Choice:
        assert evidence.drafts is not None
        layers = evidence.drafts[: max(1, len(evidence.drafts) // 4)] if early else evidence.drafts
        attention = layers.mean(0)
        if with_target:
            attention = normalise(attention) + normalise(_question(evidence))
        return Choice([(0, top(_fused(evidence, attention), count))])

    return choose


def _spoken(evidence: Evidence, count: int) -> Choice:
    """The attention of the whole answer, which cannot be known before it is given: a bound."""
    assert evidence.spoken is not None
    return Choice([(0, top(_fused(evidence, evidence.spoken.mean(0)), count))])


def _answer_so_far(evidence: Evidence, begin: int) -> Tensor:
    assert evidence.spoken is not None
    return normalise(evidence.spoken[max(0, begin - _LATEST) : begin].mean(0))


def _rescored(evidence: Evidence, count: int) -> Choice:
    """Chosen again every 16 tokens, by the question and by the attention of the answer's latest tokens."""
    base, parts = _base(evidence), [(0, top(_base(evidence), count))]
    for begin in range(_EVERY, len(evidence.answer) - 1, _EVERY):
        parts.append((begin, top(base + _answer_so_far(evidence, begin), count)))
    return Choice(parts)


def _added(evidence: Evidence, count: int) -> Choice:
    """Half of the tokens at first, the other half after 16 tokens of the answer, by their attention too."""
    base, first = _base(evidence), top(_base(evidence), max(1, count // 2))
    if len(evidence.answer) - 1 <= _EVERY or count < 2:
        return Choice([(0, first)])
    later = base + _answer_so_far(evidence, _EVERY)
    later[first] = -torch.inf
    return Choice([(0, first), (_EVERY, torch.cat([first, top(later, count - len(first))]).sort().values)])


def _merged(evidence: Evidence, count: int) -> Choice:
    """`hippo`, with the tokens that are dropped merged into the kept one they are most similar to."""
    kept, tokens = top(_base(evidence), count), evidence.draft_tokens
    similarity = normalize(tokens, dim=-1) @ normalize(tokens[kept], dim=-1).T
    most, owner = similarity.max(1)
    dropped = torch.ones(len(tokens), dtype=torch.bool)
    dropped[kept] = False
    dropped &= most > _SIMILAR
    return Choice([(0, kept)], _mean_into(tokens, kept, owner, dropped, _MERGED))


def _pooled(evidence: Evidence, count: int) -> Choice:
    """Evenly spread tokens, each the mean of those around it in the video's order: ViSpec's idea, without training."""
    tokens = evidence.draft_tokens
    kept = keep_uniform(next(iter(evidence.signals.values())), count / len(tokens))
    owner = torch.bucketize(torch.arange(len(tokens)), (kept[1:] + kept[:-1]) // 2)
    return Choice([(0, kept)], _mean_into(tokens, kept, owner, torch.ones(len(tokens), dtype=torch.bool), 1.0))


def _mean_into(tokens: Tensor, kept: Tensor, owner: Tensor, which: Tensor, weight: float) -> Tensor:
    """(V, D) with the mean of the tokens `which` mixed into the kept token that owns them."""
    total = tokens.new_zeros(len(kept), tokens.shape[1]).index_add_(0, owner[which], tokens[which])
    count = tokens.new_zeros(len(kept)).index_add_(0, owner[which], tokens.new_ones(int(which.sum())))
    mixed, has = tokens.clone(), count > 0
    mixed[kept[has]] = (1 - weight) * tokens[kept[has]] + weight * total[has] / count[has, None]
    return mixed


CHOICES: dict[str, Callable[[Evidence, int], Choice]] = {
    "draft": _by_draft(early=False, with_target=False),
    "draft-early": _by_draft(early=True, with_target=False),
    "both": _by_draft(early=False, with_target=True),
    "both-early": _by_draft(early=True, with_target=True),
    "rescored": _rescored,
    "added": _added,
    "merged": _merged,
    "pooled": _pooled,
    "answer": _spoken,
}
