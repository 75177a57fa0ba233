"""Where two answers part, and whether rounding explains it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hippo.decode import Sampling, logits_processors
from hippo.forward import CachedModel
from hippo.inputs import on_device
from hippo.pair import Pair


@torch.no_grad()
def first_difference(pair: Pair, inputs: dict[str, Any], theirs: list[int], ours: list[int]) -> dict[str, Any]:
    """The first step at which two greedy answers differ, with the target's own margin there.

    Returns at (0-based), theirs and ours (token ids, None past an end), gap (the target's top-2 logit gap, after the
    checkpoint's penalties), rounding (how far the same logits move when the same tokens are read in one block by our
    forward instead of one by one by transformers'), and near_tie: whether the two tokens' logits are closer than twice
    that (our choice of bound).
    """
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    here = on_device(inputs, pair.target.device)
    prompt = pair.family.place(pair.target, here)
    processors = logits_processors(pair.target, Sampling(), prompt.input_ids, len(theirs))
    ids: Any = torch.cat([prompt.input_ids, prompt.input_ids.new_tensor(theirs[:at])])[None]

    def row(blocks: list[list[int]], may_fuse: bool) -> Tensor:
        cached = CachedModel.of(pair.family, pair.target, may_fuse)
        embeds = pair.family.embed(pair.target, here)
        logits = cached.read(embeds, prompt)
        for block in blocks:
            logits = cached.extend(block)[-1]
        return processors(ids, logits[None].float().clone())[0]

    singly, at_once = row([[token] for token in theirs[:at]], False), row([theirs[:at]] if at else [], True)
    finite = singly.isfinite()
    rounding = float((singly - at_once)[finite].abs().max())
    best = singly.topk(2).values
    their, our = (tokens[at] if at < len(tokens) else None for tokens in (theirs, ours))
    apart = None if their is None or our is None else abs(float(singly[their] - singly[our]))
    return {
        "at": at,
        "theirs": their,
        "ours": our,
        "gap": float(best[0] - best[1]),
        "rounding": rounding,
        "near_tie": apart is not None and apart <= 2 * rounding,
    }
