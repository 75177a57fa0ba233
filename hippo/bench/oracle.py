"""The best choice of tokens that can be found when the answer is known: what any pruner could at most hope for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def search(starts: Sequence[Tensor], merit: Callable[[Tensor], float], steps: int, seed: int) -> Tensor:
    """The kept tokens with the most merit, by climbing: begin with the best of `starts`, exchange some tokens, keep
    what is better.

    starts: sorted indices, all equally many; exchanged tokens come from any of them, so what no start holds is not
    tried. merit: of kept tokens, higher is better. Never worse than the best start, but only a lower bound on the true
    optimum. Returns sorted indices, int64. Our choice.
    """
    best = max(starts, key=merit)
    most = merit(best)
    dice = torch.Generator().manual_seed(seed)
    pool = torch.cat(list(starts)).unique()
    for step in range(steps):
        others = pool[~torch.isin(pool, best)]
        # Many at first, one by one in the end.
        count = min(max(1, round(len(best) * 0.2 * (1 - step / steps))), len(others))
        if not count:
            break
        stays = best[torch.randperm(len(best), generator=dice)[count:]]
        comes = others[torch.randperm(len(others), generator=dice)[:count]]
        tried = torch.cat([stays, comes]).sort().values
        if (gain := merit(tried)) > most:
            best, most = tried, gain
    return best
