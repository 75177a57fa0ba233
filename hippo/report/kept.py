"""What pruners kept of a clip: in words, as scores, and as a clip with the kept tokens lit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hippo.errors import BadRequest
from hippo.families import VideoGrid
from hippo.inputs import parts_of
from hippo.llm import VideoLLM
from hippo.pruning import PRUNERS, Pruner, Signals, captured
from hippo.pruning.fusion import fuse
from hippo.pruning.pruners import fused_score
from hippo.pruning.spatial import spatial_score
from hippo.pruning.temporal import temporal_score
from hippo.report.pictures import cells_of, kept_sheet, lit, score_sheet, shown
from hippo.request import Request
from hippo.video import Video, write_video

SMOOTH = 12  # frames per second that every player plays well
_SHARES = (0.05, 0.1, 0.2)  # of the tokens, whose part of the score is named
STILL = 2.0  # seconds that one frame stays at most


@dataclass
class Explained:
    """What pruners kept of one clip. signals: what they judged by, with the attention of the pruner hippo. kept: a
    pruner's name -> (K,) indices. warnings: what the user should know."""

    clip: Video
    signals: Signals
    kept: dict[str, np.ndarray]
    warnings: tuple[str, ...]

    def __post_init__(self) -> None:
        self._grid = self.signals.grid
        self._steps = shown(len(self.clip.frames), self._grid.frames)
        self._times = [self.clip.timestamps[step] for step in self._steps]

    @property
    def words(self) -> str:
        """See `caption`; and what the scores say of how many tokens matter, by which "auto" chooses the keep ratio."""
        score = fused_score(self.signals)
        shares = ", ".join(f"{ratio:.0%} of the tokens {captured([score], ratio):.0%}" for ratio in _SHARES)
        held = f"How much of the score above its mean the best tokens hold: {shares}."
        return f"{caption(self.kept, self._grid, self._times)}\n{held}"

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        counts = {name: cells_of(kept, self._grid).sum((1, 2)).tolist() for name, kept in self.kept.items()}
        return {
            "kept": {name: kept.tolist() for name, kept in self.kept.items()},
            "per_frame": counts,
            "times": self._times,
            "grid": [self._grid.frames, self._grid.rows, self._grid.columns],
        }

    def draw(self, folder: Path) -> None:
        """Write kept.mp4, kept.png and scores.png."""
        pictures = [self.clip.frames[step] for step in self._steps]
        write_kept(self.clip, cells_of(next(iter(self.kept.values())), self._grid), folder / "kept.mp4")
        kept_sheet(pictures, self._times, self._grid, self.kept).save(folder / "kept.png")
        score_sheet(pictures, self._times, self._grid, scores_of(self.signals)).save(folder / "scores.png")


def explained(
    llm: VideoLLM,
    request: Request,
    pruners: Sequence[Pruner],
    ratio: float,
    progress: Callable[[float], None],
    name: str = "it",
) -> Explained:
    """What each pruner keeps of a request's video. name: for errors. Raises HippoError, also where there is no
    video."""
    turns, inputs, notes = llm.read(request, progress)
    if not (clips := parts_of(turns, "video")):
        raise BadRequest(f"{name} is a picture, not a video", "name a clip")
    # A prefill for each kind of attention: nearly always one.
    usual = PRUNERS["hippo"].attention
    kinds = dict.fromkeys([usual, *(pruner.attention or usual for pruner in pruners)])
    signals = {kind: llm.pair.look(inputs, kind)[1][0] for kind in kinds}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = {one.name: [signals[one.attention or usual]] for one in pruners}
        kept = {one.name: one.keep_all_of(seen[one.name], ratio).cpu().numpy() for one in pruners}
    return Explained(clips[0], signals[usual], kept, (*notes, *(str(warning.message) for warning in caught)))


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
