"""What pruners kept of a clip: in words, as scores, and as a clip with the kept tokens lit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from hippo.families import VideoGrid
from hippo.pruning import Signals
from hippo.pruning.fusion import fuse
from hippo.pruning.spatial import spatial_score
from hippo.pruning.temporal import temporal_score
from hippo.report.pictures import cells_of, lit
from hippo.video import Video, write_video

SMOOTH = 12  # frames per second that every player plays well
STILL = 2.0  # seconds that one frame stays at most


def caption(kept: Mapping[str, np.ndarray], grid: VideoGrid, times: Sequence[float]) -> str:
    """What the pictures show in words, a line a pruner; the first also says what it shares with the others.

    kept: a pruner's name -> (K,) indices. times: seconds, one for each of the grid's frames.
    """
    lines: list[str] = []
    edge = np.ones((grid.rows, grid.columns), bool)
    edge[1:-1, 1:-1] = False
    for name, indices in kept.items():
        line = f"{name} kept {len(indices)} of {grid.tokens} video tokens"
        if len(indices):
            cells = cells_of(indices, grid)
            at_edge = (cells & edge).sum() / len(indices)
            line += (
                f": {_spread(cells.sum((1, 2)), times)}; {at_edge:.0%} of the kept tokens lie at the frames' edges, "
                f"which are {edge.mean():.0%} of all places"
            )
        if len(indices) and len(kept) > 1 and not lines:
            shared = [f"{np.isin(indices, kept[other]).mean():.0%} with {other}" for other in kept if other != name]
            line += f"; it shares {', '.join(shared).replace(' with', ' of its tokens with', 1)}"
        lines.append(line + ".")
    return "\n".join(lines)


def _spread(counts: np.ndarray, times: Sequence[float]) -> str:
    most, none = counts.max(), int((counts == 0).sum())
    if most == counts.min():
        return f"{most} in every frame"
    best = np.flatnonzero(counts == most)
    words = f"the frame at {times[best[0]]:.1f} s got most ({most})"
    if len(best) > 1:
        words = f"{len(best)} frames got most ({most} each)"
    return words + (f", {none} frame{'s' * (none > 1)} got none" if none else "")


def scores_of(signals: Signals) -> dict[str, np.ndarray]:
    """Each score of the pruner hippo, and their fusion: (P,) float32, one for each cell."""
    assert signals.attention is not None
    attention = signals.grid.laid_out(signals.attention).flatten()
    temporal, spatial = (score(signals.features, signals.grid) for score in (temporal_score, spatial_score))
    scores = {
        "the question's attention": attention,
        "temporal novelty": temporal,
        "spatial detail": spatial,
        "all three, fused": fuse(signals.grid, attention=attention, temporal=temporal, spatial=spatial),
    }
    return {label: score.float().cpu().numpy() for label, score in scores.items()}


def write_kept(clip: Video, cells: np.ndarray, path: Path) -> None:
    """Write every sampled frame with its kept tokens lit, as mp4, as long as the clip unless frames last long.

    cells: (grid frames, rows, columns) bool.
    """
    count, height, width = clip.frames.shape[:3]
    seconds = min(clip.duration, STILL * count)
    repeats = math.ceil(SMOOTH * seconds / count)
    scale = min(max(480 / max(height, width), 1), 960 / max(height, width))
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    each = -(-count // len(cells))

    def images() -> Iterator[np.ndarray]:
        for index, frame in enumerate(clip.frames):
            picture = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
            yield from [lit(picture, cells[index // each])] * repeats

    write_video(images(), path, Fraction(count * repeats / seconds).limit_denominator(1000), size)
