"""Where two answers part, and whether rounding explains it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hippo.cached_model import CachedModel
from hippo.pair import Pair


@torch.no_grad()
def first_difference(pair: Pair, inputs: dict[str, Any], theirs: list[int], ours: list[int]) -> dict[str, Any]:
    """The first step at which two token sequences differ, with the target's own margin there.

    Returns at (0-based), theirs and ours (token ids, None past an end), gap (the target's top-2 logit gap), and
    near_tie: whether the gap is within 16 units in the last place of the largest logit in the model's dtype, which
    blocks of different width can make up (our choice of bound).
    """
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    here = {k: v.to(pair.target.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    prompt = pair.family.place(pair.target, here)
    model = pair.target
    cached = CachedModel(pair.family.language_model(model), model.get_output_embeddings(), model.get_input_embeddings())
    logits = cached.prefill(pair.family.embed(model, here), prompt.positions, prompt.next_position)
    for token in theirs[:at]:
        logits = cached.extend([token])[-1]
    best = logits.float().topk(2).values
    gap = float(best[0] - best[1])
    bound = 16 * torch.finfo(model.dtype).eps * float(logits.abs().max())
    return {
        "at": at,
        "theirs": theirs[at] if at < len(theirs) else None,
        "ours": ours[at] if at < len(ours) else None,
        "gap": gap,
        "near_tie": gap <= bound,
    }
