"""What several commands share: options, quiet loading with a sign of progress, printing."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress

from hippo import __version__
from hippo.errors import HippoError
from hippo.inputs import messages_of, read_messages
from hippo.llm import Output, VideoLLM, load
from hippo.options import make_options
from hippo.report.baseline import Comparison, transformers_generate
from hippo.report.tables import phases_line, stats_table
from hippo.video import check_request, read_video

stderr = Console(stderr=True, highlight=False)

VideoArgument = Annotated[Path, typer.Argument(help="The clip: mp4, mkv, webm, avi, mpg and what else FFmpeg reads.")]
SourcesArgument = Annotated[
    list[Path], typer.Argument(metavar="VIDEO", help="One clip or several, or images (jpg, png, webp), in order.")
]
PromptOption = Annotated[str, typer.Option("-p", "--prompt", help="What to ask about the video.")]
SystemOption = Annotated[str, typer.Option("--system", help="What to tell the model before all else.")]
TargetOption = Annotated[str, typer.Option(help="The model whose words you want: a folder, a hub id, or tiny.")]
DraftOption = Annotated[str | None, typer.Option(help="A smaller model with the same tokenizer; tiny brings its own.")]
FramesOption = Annotated[int | None, typer.Option(help="Frames to sample, evenly spread. [default: 16]")]
FpsOption = Annotated[float | None, typer.Option(help="Frames to sample a second, instead of --frames.")]
VideoTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Take fewer frames where they would be more tokens. [default: what the free memory holds]"
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or all. auto: the first GPU, or all for a large target.")
]
DraftDeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:N. auto: the second GPU if there is one.")
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16. auto: float32 on a CPU.")]
TokensOption = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
KeepOption = Annotated[float, typer.Option(help="Share of the video tokens that the draft sees, in (0, 1].")]
GammaOption = Annotated[str, typer.Option(help="Tokens drafted at a time; auto measures the best as it goes.")]
TimeoutOption = Annotated[
    float, typer.Option(min=0.1, help="Seconds of silence after which the draft is given up; the target goes on alone.")
]
WorkerOption = Annotated[
    str, typer.Option(help="Where the draft works: process, thread, or auto: a thread if both models are on one GPU.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code run that a checkpoint brings. Only if you trust it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text and tables.")]


def parse_gamma(gamma: str) -> int | str:
    """ "auto" or a whole number."""
    try:
        return gamma if gamma == "auto" else int(gamma)
    except ValueError:
        raise HippoError(f"gamma {gamma!r} is neither a whole number nor auto", "use --gamma auto") from None


def require_clip(video: Path, frames: int | None, fps: float | None) -> None:
    """Refuse a clip or a sampling that cannot work before any model is loaded."""
    check_request(frames, fps)
    read_video(video, frames=1)


def request_of(
    sources: list[Path],
    prompt: str,
    system: str,
    frames: int | None,
    fps: float | None,
    max_video_tokens: int | None = None,
) -> dict[str, Any]:
    """What `VideoLLM.generate` takes for it. Refuses what cannot be read before any model is loaded."""
    check_request(frames, fps)
    messages = messages_of(sources, prompt, system)
    read_messages(messages, frames=1)
    return {"messages": messages, "frames": frames, "fps": fps, "max_video_tokens": max_video_tokens}


def require_draft(target: str, draft: str | None) -> None:
    """Refuse a target without a draft before it is loaded."""
    if draft is None and target != "tiny":
        raise HippoError("there is no draft model", "name one with --draft, or use --method ar")


def versions() -> dict[str, str]:
    """Of what an answer depends on."""
    names = ("torch", "torchvision", "transformers", "tokenizers", "av")
    return {"hippo-video": __version__, "python": platform.python_version()} | {name: version(name) for name in names}


def quieten() -> None:
    """Keep transformers' notes and bars off the terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextmanager
def loaded(
    target: str,
    draft: str | None,
    device: str = "auto",
    dtype: str = "auto",
    start_draft: bool = True,
    draft_timeout: float = 20.0,
    draft_worker: str = "auto",
    draft_device: str = "auto",
    trust_remote_code: bool = False,
) -> Iterator[VideoLLM]:
    """A loaded pair, ended with the block; says on stderr that it is loading."""
    quieten()
    text = escape(f"loading {target}" + (f" and {draft}" if draft else "") + " ...")
    # Not stderr.status: its thread would keep the draft's process from being a fork (see hippo.draft.child).
    with Live(text, console=stderr, auto_refresh=False, transient=True):
        llm = load(
            target,
            draft,
            device=device,
            dtype=dtype,
            start_draft=start_draft,
            draft_timeout=draft_timeout,
            draft_worker=draft_worker,
            draft_device=draft_device,
            trust_remote_code=trust_remote_code,
        )
    with llm:
        yield llm


@contextmanager
def answering() -> Iterator[tuple[Callable[[str], None], Callable[[str, float], None]]]:
    """Callbacks (on_text, progress) for an answer on its way: a bar on stderr until the first words, then the words."""
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("reading frames", total=1.0)

        def progress(phase: str, share: float) -> None:
            known = share < 1
            bar.update(task, description=phase if known else "watching", completed=share, total=1.0 if known else None)

        def on_text(piece: str) -> None:
            bar.stop()
            say(piece)

        yield on_text, progress


def compare(llm: VideoLLM, request: dict[str, Any], options: dict[str, Any], runs: int, first: Output) -> Comparison:
    """`runs` answers, `first` among them, each beside one of generate(), in turn."""
    outputs, baselines = [first], []
    with stderr.status("the same by transformers' generate(), to compare") as status:
        for run in range(runs):
            status.update(f"the same by transformers' generate(), to compare ({run + 1} of {runs})")
            if run:
                outputs.append(llm.generate(**request, **options))
            baselines.append(transformers_generate(llm, make_options(**options), **request))
    return Comparison(outputs, baselines, sampled=options.get("temperature", 0) > 0)


def as_json(output: Output, comparison: Comparison | None = None) -> dict[str, Any]:
    """What --json prints."""
    stats = output.stats
    result: dict[str, Any] = {
        "text": output.text,
        "token_ids": output.token_ids,
        "method": stats.method,
        "stats": stats.as_dict(),
        "warnings": list(output.warnings),
    }
    if comparison is not None:
        result["baseline"] = comparison.baselines[0].as_dict()
        result["identical"] = comparison.identical
        result["speedup"] = comparison.speedup
    return result


def say(piece: str) -> None:
    """A piece of the answer, to stdout, at once."""
    try:
        sys.stdout.write(piece)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise HippoError("whoever read the output closed it early", "let the reader take all of it") from None


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    say(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def close(output: Output, comparison: Comparison | None, json: bool) -> None:
    """What follows an answer: its warnings on stderr, then its table there, or one JSON object on stdout."""
    for warning in output.warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False)
    if json:
        print_json(as_json(output, comparison))
    else:
        stderr.print(stats_table(output.stats, comparison))
        stderr.print("seconds:  " + phases_line(output.stats), style="dim")


def make_folder(out: Path) -> None:
    """A folder for results, made if it is not there. Raises HippoError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HippoError(f"{out} cannot be made ({error.strerror})", "choose another place") from None
