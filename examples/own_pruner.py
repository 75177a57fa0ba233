"""Write a pruner and use it. The output stays the target's own; only the acceptance rate can change."""

from pathlib import Path

import torch

import hippo
from hippo.pruning import Pruner, Signals

DEMO = Path(hippo.__file__).parent / "bundled" / "demo.mp4"


def keep_moving(signals: Signals, keep_ratio: float) -> torch.Tensor:
    """The tokens that differ most from the mean over time of their place. Returns sorted indices, int64."""
    grid = signals.grid
    cells = grid.laid_out(signals.features.float())  # (frames, rows, columns, width)
    score = grid.of_tokens((cells - cells.mean(dim=0)).norm(dim=-1).flatten()).cpu()  # (V,)
    return score.topk(max(1, round(keep_ratio * grid.tokens))).indices.sort().values


def main() -> None:
    with hippo.load("tiny") as llm:
        for pruner in ("hippo", "uniform", Pruner("moving", keep_moving)):
            stats = llm.generate(DEMO, pruner=pruner, keep_ratio=0.05).stats
            name = pruner if isinstance(pruner, str) else pruner.name
            print(f"{name:8} {stats.kept_tokens} tokens kept, {stats.tokens_per_target_forward:.1f} tokens per forward")


if __name__ == "__main__":
    main()
