"""The token that a draft proposes: the likeliest, after the repetition penalty that the target chooses with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Repetition(NamedTuple):
    """A repetition penalty, as transformers' RepetitionPenaltyLogitsProcessor. seen: (vocabulary,) bool, the tokens of
    the text so far. penalty: () float32, by which their scores are divided, or multiplied if negative."""

    seen: Tensor
    penalty: Tensor

    def followed_by(self, ids: Tensor) -> Repetition:
        """As it is after the tokens `ids`, (n,)."""
        return self._replace(seen=self.seen.index_fill(0, ids, True))


def likeliest(logits: Tensor, limit: int | Tensor, repetition: Repetition | None = None) -> tuple[Tensor, Tensor]:
    """The likeliest id below `limit` and its probability, for each row of logits, (n, vocabulary): (n,) each. limit: a
    () tensor where it must be a value of a recorded forward, not a part of it."""
    scores = (logits[:, :limit] if isinstance(limit, int) else logits).float()
    if repetition is not None:
        seen, penalty = repetition.seen[: scores.shape[1]], repetition.penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if not isinstance(limit, int):
        beyond = torch.arange(scores.shape[1], device=scores.device) >= limit
        scores = scores.masked_fill(beyond, float("-inf"))
    probs, ids = scores.softmax(-1).max(-1)
    return ids, probs
