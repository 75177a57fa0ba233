"""hippo explain: pictures of the video tokens that the draft gets to see."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.markup import escape

from hippo.cli import common
from hippo.errors import BadRequest


def explain(
    video: common.VideoArgument,
    out: Annotated[
        Path | None,
        typer.Option(help=escape("The folder for the pictures; made if it is not there. [default: CLIP-explained]")),
    ] = None,
    prompt: common.PromptOption = common.DEFAULT_PROMPT,
    target: common.TargetOption = "tiny",
    keep_ratio: common.KeepOption = 0.1,
    pruners: Annotated[
        str,
        typer.Option(help=f"Which to show, the first of them in the clip too: {common.PRUNERS}; or MODULE:FUNCTION."),
    ] = "hippo,attention,uniform",
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    start: common.StartOption = None,
    end: common.EndOption = None,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    trust_remote_code: common.TrustOption = False,
    json: common.JsonOption = False,
) -> None:
    """Show which video tokens the draft would see, and why: kept.png, scores.png, kept.mp4, caption.txt.

    hippo explain clip.mp4

    hippo explain clip.mp4 --out pictures -p "What does the red circle do?" --pruners hippo,specvlm
    """
    common.params_of({"keep_ratio": keep_ratio})
    common.check_clips([video], frames, fps, start, end)
    out = out or Path(f"{video.stem}-explained")
    with common.importing():
        from hippo.pruning import PRUNERS, pruner_named
        from hippo.report.kept import caption, scores_of, write_kept
        from hippo.report.pictures import cells_of, kept_sheet, score_sheet, shown
        from hippo.video import read_video

    chosen = [pruner_named(name) for name in dict.fromkeys(name.strip() for name in pruners.split(","))]
    with all_or_nothing(out) as folder:
        where = {"device": device, "dtype": dtype, "start_draft": False, "trust_remote_code": trust_remote_code}
        with common.loaded(target, None, **where) as llm, common.answering() as (_, progress):
            clip = read_video(
                video, frames=frames, fps=fps, start=start or 0.0, end=end, progress=partial(progress, "reading frames")
            )
            inputs = llm.inputs(clip, prompt)
            # A prefill for each kind of attention: nearly always one.
            usual = PRUNERS["hippo"].attention
            kinds = dict.fromkeys([usual, *(pruner.attention or usual for pruner in chosen)])
            signals = {kind: llm.pair.look(inputs, kind)[1][0] for kind in kinds}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kept = {
                pruner.name: pruner.keep_all_of([signals[pruner.attention or usual]], keep_ratio).cpu().numpy()
                for pruner in chosen
            }
        grid = signals[usual].grid
        steps = shown(len(clip.frames), grid.frames)
        pictures, times = [clip.frames[step] for step in steps], [clip.timestamps[step] for step in steps]
        words = f"The question: {prompt}\n{caption(kept, grid, times)}"
        cells = {name: cells_of(indices, grid) for name, indices in kept.items()}
        with common.stderr.status(escape(f"drawing {out}")):
            (folder / "caption.txt").write_text(words + "\n")
            write_kept(clip, next(iter(cells.values())), folder / "kept.mp4")
            kept_sheet(pictures, times, grid, kept).save(folder / "kept.png")
            score_sheet(pictures, times, grid, scores_of(signals[usual])).save(folder / "scores.png")
    names = ("caption.txt", "kept.mp4", "kept.png", "scores.png")
    common.warn(*clip.warnings, *(str(warning.message) for warning in caught))
    if not json:
        common.say(words + "\n")
        common.stderr.print(f"in {out}: {', '.join(names)}", style="dim", markup=False, soft_wrap=True)
        return
    common.print_json(
        {
            "kept": {name: indices.tolist() for name, indices in kept.items()},
            "per_frame": {name: one.sum((1, 2)).tolist() for name, one in cells.items()},
            "grid": [grid.frames, grid.rows, grid.columns],
            "files": [str(out / name) for name in names],
            "caption": words,
        }
    )


@contextmanager
def all_or_nothing(out: Path) -> Iterator[Path]:
    """A temporary folder whose files appear in `out` when the block ends well; else `out` is left as it was."""
    if not out.resolve().parent.is_dir():
        raise BadRequest(f"there is no folder {out.resolve().parent}", "make it first")
    if out.exists() and not out.is_dir():
        raise BadRequest(f"{out} is not a folder", "name another with --out")
    try:
        with TemporaryDirectory(dir=out if out.exists() else out.resolve().parent, prefix=".hippo-") as folder:
            yield Path(folder)
            out.mkdir(exist_ok=True)
            for path in Path(folder).iterdir():
                path.replace(out / path.name)
    except OSError as error:
        raise BadRequest(f"{out} cannot be written to ({error.strerror})", "name another with --out") from None
