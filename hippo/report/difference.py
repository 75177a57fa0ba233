"""Where two answers part, and whether rounding explains it."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from hippo.checkpoints import quantisation_of
from hippo.decode import logits_processors
from hippo.forward import CachedModel
from hippo.inputs import on_device
from hippo.pair import Pair
from hippo.params import SamplingParams

# How far rounding may move a logit: so many times the dtype's epsilon, the largest logit of its row, and the square
# root of the number of layers, since each rounds once more and rounding errors add up like a random walk. Seen, with
# blocks of 1 to 24 tokens, in random models of all families with 3 layers, of one with 28, and in the bundled pair: at
# most 1.2 in bfloat16, 1.8 in float16, 15 in float32, where sums of another order weigh more. Positions off by one move
# random models' logits by 2.5 and more, 22 and more, 180,000 and more; the bundled pair's by less, so that bfloat16 can
# hide a small error there and float32 cannot. Where rounding makes a layer choose other experts, it moves them by up to
# 15 in bfloat16, and a difference there is not taken for a near tie. Our choice.
_ROUNDINGS = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 32}


def near_tie_bound(dtype: torch.dtype, logits: Tensor, layers: int) -> float:
    """How far rounding may move a logit of this row, (vocabulary,), of a model computing in `dtype`. Two tokens nearer
    to each other are a near tie: either may come out first."""
    largest = float(logits[~logits.isinf()].abs().max())
    return _ROUNDINGS.get(dtype, 2) * torch.finfo(dtype).eps * largest * sqrt(layers)


@torch.no_grad()
def first_difference(pair: Pair, inputs: dict[str, Any], theirs: list[int], ours: list[int]) -> dict[str, Any]:
    """The first step at which two greedy answers differ, theirs being generate()'s, with its own margin there.

    Returns at (0-based), theirs and ours (token ids, None past an end), gap (between the two tokens in generate()'s own
    logits, after the checkpoint's penalties; None past an end), moved (how far our logits are from generate()'s, with
    the same tokens read one by one or in one block, whichever is more), bound (how far rounding may move them), and
    near_tie: whether neither gap nor moved is more than that.
    """
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    their, our = (tokens[at] if at < len(tokens) else None for tokens in (theirs, ours))
    target = pair.target
    here = on_device(inputs, target.device)
    prompt = pair.family.prepare_prompt(target.config, here)
    processors = logits_processors(target, SamplingParams(), prompt.input_ids)
    ids: Any = torch.cat([prompt.input_ids, prompt.input_ids.new_tensor(theirs[:at])])[None]

    def row(blocks: list[list[int]], may_fuse: bool) -> Tensor:
        cached = CachedModel.of(pair.family, target, may_fuse)
        embeds = pair.family.embed(target, here)
        logits = cached.read(embeds, prompt)
        for block in blocks:
            logits = cached.extend(block)[-1]
        return processors(ids, logits[None].float().clone())[0]

    right = _generates_own(target, here, at)
    rows = row([[token] for token in theirs[:at]], False), row([theirs[:at]] if at else [], True)
    moved = float((torch.stack(rows) - right)[:, ~right.isinf()].abs().max())
    # Where weights are packed, activations may be as well, in steps of 1/127: as coarse as bfloat16.
    dtype = torch.bfloat16 if quantisation_of(target) else target.dtype
    bound = near_tie_bound(dtype, right, target.config.get_text_config().num_hidden_layers)
    gap = None if their is None or our is None else abs(float(right[their] - right[our]))
    return {
        "at": at,
        "theirs": their,
        "ours": our,
        "gap": gap,
        "moved": moved,
        "bound": bound,
        "near_tie": gap is not None and gap <= bound and moved <= bound,  # neither where a logit is not a number
    }


def _generates_own(target: Any, inputs: dict[str, Any], at: int) -> Tensor:
    """(vocabulary,) float32, what generate() itself chooses its token `at` from."""
    rows = target.generate(
        **inputs, do_sample=False, max_new_tokens=at + 1, return_dict_in_generate=True, output_scores=True
    ).scores
    return rows[at][0].float()
