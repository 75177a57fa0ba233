"""How much of what matters a number of kept tokens holds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

RATIOS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # that "auto" chooses among
USUAL = 0.1  # the paper's; where nothing was measured yet
_VIDEO = 0.2  # of its acceptance, what a draft loses that sees no video token


def captured(scores: Sequence[Tensor], ratio: float) -> float:
    """Share of all score above the mean that the best `ratio` of each video's tokens hold, 0 to 1.

    scores: (V,) of each video. Where few tokens stand out, a small ratio holds most of it; where the score is flat or
    only noise, it takes many. Our choice.
    """
    held = total = 0.0
    for score in scores:
        above = (score.float() - score.float().mean()).clamp(min=0).nan_to_num(0.0).sort(descending=True).values
        count = max(1, min(len(score), round(ratio * len(score))))
        held, total = held + float(above[:count].sum()), total + float(above.sum())
    return held / total if total else ratio


def relative_acceptance(captured: float) -> float:
    """Acceptance of a draft that sees so much of the score, over that of a draft that sees all tokens.

    Fitted to the bundled pair on twelve kinds of clips (docs/token-preservation.md); a real pair may differ.
    """
    return 1 - _VIDEO * (1 - captured) ** 2
