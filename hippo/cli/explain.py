"""hippo explain: pictures of the video tokens that the draft gets to see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.markup import escape

from hippo.cli import common
from hippo.errors import HippoError
from hippo.families import VideoGrid
from hippo.keep import PRUNERS, Signals, pruner_named
from hippo.keep.fusion import fuse
from hippo.keep.spatial import spatial_score
from hippo.keep.temporal import temporal_score
from hippo.llm import DEFAULT_PROMPT
from hippo.options import make_options
from hippo.report.pictures import cells_of, kept_sheet, lit, score_sheet, shown
from hippo.video import Video, read_video, write_video

SMOOTH = 12  # frames per second that every player plays well
PATIENCE = 2.0  # seconds that one frame stays at most


def explain(
    video: common.VideoArgument,
    out: Annotated[Path, typer.Option(help="The folder to put the pictures in; made if it is not there.")],
    prompt: common.PromptOption = DEFAULT_PROMPT,
    target: common.TargetOption = "tiny",
    keep_ratio: common.KeepOption = 0.1,
    pruners: Annotated[
        str, typer.Option(help=f"Which to show, the first of them in the clip too: {', '.join(PRUNERS)}.")
    ] = "hippo,attention,uniform",
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    trust_remote_code: common.TrustOption = False,
    json: common.JsonOption = False,
) -> None:
    """Show which video tokens the draft would see, and why: kept.png, scores.png, kept.mp4, caption.txt.

    hippo explain clip.mp4 --out pictures

    hippo explain clip.mp4 --out pictures -p "What does the red circle do?" --pruners hippo,specvlm
    """
    make_options(keep_ratio=keep_ratio)
    chosen = [pruner_named(name) for name in dict.fromkeys(name.strip() for name in pruners.split(","))]
    common.require_clip(video, frames, fps)
    with all_or_nothing(out) as folder:
        with common.loaded(target, None, device, dtype, start_draft=False, trust_remote_code=trust_remote_code) as llm:
            with common.answering() as (_, progress):
                clip = read_video(video, frames=frames, fps=fps, progress=partial(progress, "reading frames"))
                inputs = llm.inputs(clip, prompt)
                # A prefill for each kind of attention: nearly always one.
                usual = pruner_named("hippo").attention
                kinds = dict.fromkeys([usual, *(pruner.attention or usual for pruner in chosen)])
                signals = {kind: llm.pair.look(inputs, kind)[1][0] for kind in kinds}
            with warnings.catch_warnings(record=True) as caught:
                kept = {
                    pruner.name: pruner.keep(signals[pruner.attention or usual], keep_ratio).cpu().numpy()
                    for pruner in chosen
                }
        grid = signals[usual].grid
        steps = shown(len(clip.frames), grid.frames)
        pictures, times = [clip.frames[step] for step in steps], [clip.timestamps[step] for step in steps]
        words = caption(kept, grid, times)
        with common.stderr.status("") as status:
            for name, draw in {
                "kept.png": lambda path: kept_sheet(pictures, times, grid, kept).save(path),
                "scores.png": lambda path: score_sheet(pictures, times, grid, _scores(signals[usual])).save(path),
                "kept.mp4": lambda path: _write_clip(clip, cells_of(next(iter(kept.values())), grid), path),
                "caption.txt": lambda path: path.write_text(words + "\n"),
            }.items():
                status.update(escape(f"drawing {out / name}"))
                draw(folder / name)
        names = sorted(path.name for path in folder.iterdir())
    for warning in (*clip.warnings, *(str(warning.message) for warning in caught)):
        common.stderr.print(f"warning: {warning}", style="yellow", markup=False)
    if not json:
        common.say(words + "\n")
        common.stderr.print(f"in {out}: {', '.join(names)}", style="dim", markup=False, soft_wrap=True)
        return
    per_frame = {name: cells_of(indices, grid).sum((1, 2)).tolist() for name, indices in kept.items()}
    common.print_json(
        {
            "kept": {name: indices.tolist() for name, indices in kept.items()},
            "per_frame": per_frame,
            "grid": [grid.frames, grid.rows, grid.columns],
            "files": [str(out / name) for name in names],
            "caption": words,
        }
    )


@contextmanager
def all_or_nothing(out: Path) -> Iterator[Path]:
    """A passing folder whose files appear in `out` when the block ends well; else `out` is left as it was."""
    if not out.resolve().parent.is_dir():
        raise HippoError(f"there is no folder {out.resolve().parent}", "make it first")
    if out.exists() and not out.is_dir():
        raise HippoError(f"{out} is not a folder", "name another with --out")
    made = not out.exists()
    try:
        out.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=out, prefix=".hippo-") as folder:
            yield Path(folder)
            for path in Path(folder).iterdir():
                path.replace(out / path.name)
    except OSError as error:
        raise HippoError(f"{out} cannot be written to ({error.strerror})", "name another with --out") from None
    finally:
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


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


def _scores(signals: Signals) -> dict[str, np.ndarray]:
    """Each score, (P,) float32, one for each cell; the fused one as the pruner hippo has it."""
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


def _write_clip(clip: Video, cells: np.ndarray, path: Path) -> None:
    """Every sampled frame with its kept tokens lit; as long as the clip, unless frames would stand still for long."""
    count, height, width = clip.frames.shape[:3]
    seconds = min(clip.duration, PATIENCE * count)
    repeats = math.ceil(SMOOTH * seconds / count)
    scale = min(max(480 / max(height, width), 1), 960 / max(height, width))
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    each = -(-count // len(cells))

    def images() -> Iterator[np.ndarray]:
        for index, frame in enumerate(clip.frames):
            picture = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
            yield from [lit(picture, cells[index // each])] * repeats

    write_video(images(), path, Fraction(count * repeats / seconds).limit_denominator(1000), size)
