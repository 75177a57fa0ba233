"""hippo explain: pictures of the video tokens that the draft gets to see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from hippo.cli import common
from hippo.errors import BadRequest

if TYPE_CHECKING:
    from hippo.llm import VideoLLM


def explain(
    videos: common.SourcesArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            help=escape(
                "The folder for the pictures, or of several clips for a folder of each; made if it is not there. "
                "[default: CLIP-explained, or with a number if that is there]"
            )
        ),
    ] = None,
    prompt: common.PromptOption = common.DEFAULT_PROMPT,
    system: common.SystemOption = "",
    target: common.TargetOption = "tiny",
    keep_ratio: common.ShareOption = 0.1,
    pruners: Annotated[
        str,
        typer.Option(help=f"Which to show, the first of them in the clip too: {common.PRUNERS}; or MODULE:FUNCTION."),
    ] = "hippo,attention,uniform",
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    start: common.StartOption = None,
    end: common.EndOption = None,
    max_pixels: common.PixelsOption = None,
    max_video_tokens: common.VideoTokensOption = None,
    no_fetch: common.NoFetchOption = False,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
    json: common.JsonOption = False,
) -> None:
    """Show which video tokens the draft would see, and why: kept.png, scores.png, kept.mp4, caption.txt.

    hippo explain clip.mp4

    hippo explain clip.mp4 --out pictures -p "What does the red circle do?" --pruners hippo,specvlm
    """
    requests = common.Requests("explain", locals() | {"start_draft": False})
    with common.importing():
        from hippo.inputs import split_options
        from hippo.pruning import pruner_named
        from hippo.report.kept import explained
        from hippo.request import Request

    chosen = [pruner_named(name) for name in dict.fromkeys(name.strip() for name in pruners.split(","))]
    folders = _folders(requests.clips, out)
    if requests.several and out is not None:
        common.make_folder(out)

    def show(llm: VideoLLM, request: dict[str, Any], clips: list[str]) -> None:
        folder = folders[clips[0]]
        with all_or_nothing(folder) as there:
            with common.answering() as (_, progress):
                frames_read = partial(progress, "reading frames")
                media, rest = split_options(request)
                found = explained(llm, Request(**rest, media=media), chosen, keep_ratio, frames_read, clips[0])
            with common.stderr.status(escape(f"drawing {folder}")):
                words = f"The question: {prompt}\n{found.words}"
                (there / "caption.txt").write_text(words + "\n")
                found.draw(there)
        common.warn(*found.warnings)
        names = ("caption.txt", "kept.mp4", "kept.png", "scores.png")
        if json:
            files = {"files": [str(folder / name) for name in names], "caption": words}
            common.print_json(common.named(clips) | found.as_dict() | files)
            return
        common.say(words + "\n")
        common.stderr.print(f"in {folder}: {', '.join(names)}", style="dim", markup=False, soft_wrap=True)

    requests.run(show)


def _folders(clips: list[str], out: Path | None) -> dict[str, Path]:
    """A folder for the pictures of each clip."""
    if len(clips) == 1 and out is not None:
        return {clips[0]: out}
    folders: dict[str, Path] = {}
    for clip in clips:
        stem = Path(urlsplit(clip).path).stem if "://" in clip else "" if clip.startswith("data:") else Path(clip).stem
        stem = {"-": "stdin"}.get(stem, stem or "clip")[:100]
        names = chain([f"{stem}-explained"], (f"{stem}-explained-{number}" for number in count(2)))
        places = ((out or Path()) / name for name in names)
        # Only a folder that was asked for by name may be there already.
        folders[clip] = next(p for p in places if p not in folders.values() and (out is not None or not p.exists()))
    return folders


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
