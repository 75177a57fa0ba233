"""What several commands share: options, loading, one answer for each clip, printing."""

from __future__ import annotations

import gc
import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from hippo import __version__
from hippo.errors import BadRequest, HippoError

if TYPE_CHECKING:  # `hippo --help` imports this file, and torch, transformers and av take seconds
    from hippo.llm import VideoLLM
    from hippo.params import SamplingParams
    from hippo.report.baseline import Comparison
    from hippo.request import Output

T = TypeVar("T")
stderr = Console(stderr=True, highlight=False)
DEFAULT_PROMPT = "Describe the video in detail."
PRUNERS = "none, uniform, attention, specvlm or hippo"
OPTIONS = (
    *(
        "method",
        "decoder",
        "pruner",
        "keep_ratio",
        "keep_at_most",
        "gamma",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
    ),
    *("repetition_penalty", "seed", "stop", "verify_width"),
)  # of `VideoLLM.generate`
WHERE = (  # of `hippo.load`
    *("drafter", "device", "dtype", "draft_timeout", "draft_worker", "draft_bits", "draft_device", "trust_remote_code"),
    "attn_implementation",
)
BUNDLED = Path(__file__).parents[1] / "bundled"

VideoArgument = Annotated[Path, typer.Argument(help="The clip: mp4, mkv, webm, avi, mpg and what else FFmpeg reads.")]
SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO",
        help="A clip or an image (jpg, png, webp), by path or URL, or - for standard input; or several: one answer "
        "for each.",
    ),
]
PromptOption = Annotated[str, typer.Option("-p", "--prompt", help="What to ask about the video.")]
SystemOption = Annotated[str, typer.Option("--system", help="The system prompt.")]
TogetherOption = Annotated[bool, typer.Option("--together", help="Put all clips and images into one prompt.")]
TargetOption = Annotated[str, typer.Option(help="The model that decides the answer: a folder, a hub id, or tiny.")]
DraftOption = Annotated[
    str | None,
    typer.Option(
        help="A smaller model with the same tokenizer; self: the target in 4 bits; ngram: what followed the same words "
        "before, without a model."
    ),
]
DrafterOption = Annotated[
    str | None, typer.Option(help="Your own drafter in place of a draft model: MODULE:CLASS, or an entry point's name.")
]
FramesOption = Annotated[int | None, typer.Option(help=escape("Frames to sample, evenly spread. [default: 16]"))]
StartOption = Annotated[float | None, typer.Option("--start", help="Seconds into each clip where to begin.")]
EndOption = Annotated[float | None, typer.Option("--end", help="Seconds into each clip where to end.")]
PixelsOption = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Scale frames down to so many pixels, width times height.")
]
NoFetchOption = Annotated[bool, typer.Option("--no-fetch", help="Refuse http:// and https:// URLs.")]
FpsOption = Annotated[float | None, typer.Option(help="Frames to sample per second, instead of --frames.")]
VideoTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=escape("Scale frames down, then take fewer, if they are more. [default: what the free memory holds]"),
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or all. auto: the first GPU, or all for a large target.")
]
DraftDeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:N. auto: the second GPU if there is one.")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16 or float16. auto on a CPU: bfloat16 for large models if it is fast here."
    ),
]
MethodOption = Annotated[
    str, typer.Option(help="ar, sd (serial), pearl (parallel) or hippo (the fastest of these, pruned).")
]
TokensOption = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy: the most likely token every time.")]
TopKOption = Annotated[int, typer.Option(help="Sample among the k likeliest tokens only; 0 is off.")]
TopPOption = Annotated[float, typer.Option(help="Sample among the likeliest tokens that reach this mass.")]
RepetitionOption = Annotated[
    float | None,
    typer.Option(help="Above 1: repeated tokens are less likely. Without it, the checkpoint's own."),
]
SeedOption = Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")]
StopOption = Annotated[list[str] | None, typer.Option(help="End the answer at this string; may be repeated.")]
ShareOption = Annotated[float, typer.Option(help="Share of the video tokens that the draft sees, in (0, 1].")]
KeepOption = Annotated[
    str,
    typer.Option(help="Share of the video tokens that the draft sees, in (0, 1]; auto chooses it for each request."),
]
KeepAtMostOption = Annotated[float, typer.Option(help="The largest share that auto may choose.")]
GammaOption = Annotated[str, typer.Option(help="Tokens drafted at a time; auto adapts it to measured speeds.")]
TimeoutOption = Annotated[
    float, typer.Option(min=0.1, help="Seconds without a sign of the draft after which the target goes on alone.")
]
WorkerOption = Annotated[
    str,
    typer.Option(
        help="Where the draft runs: process, thread, inline (in turns with the target), or auto: inline where both "
        "models read large weights from one memory."
    ),
]
BitsOption = Annotated[
    str, typer.Option(help="Bits of the draft's weights: 4, 8, 16, or auto: what is fastest here. No words are lost.")
]
WidthOption = Annotated[
    str,
    typer.Option(
        help="Pad every target forward to so many tokens: the same text in half precision whatever was drafted. 0 is "
        "off, auto is 8 on a GPU, and on a CPU where that is free."
    ),
]
RunningOption = Annotated[int, typer.Option(min=1, help="Requests answered together.")]
CacheOption = Annotated[
    int | None, typer.Option(min=0, help="MiB for what further questions use again; by default a share of the free.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings. Only if you trust it.")
]
AttentionOption = Annotated[
    str | None,
    typer.Option(
        "--attn-implementation",
        help=escape(
            "Attention of both models, as transformers has it: sdpa, eager, flash_attention_2, ..., or JSON such as "
            '{"vision_config": "eager"}. [default: transformers\' own choice]'
        ),
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text and tables: one object per line.")]


@contextmanager
def importing() -> Iterator[None]:
    """Hold Ctrl-C back: inside the start-up code of a library it can crash Python."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def params_of(options: dict[str, Any]) -> SamplingParams:
    """Options for `VideoLLM.generate` as the library checks them. Raises BadRequest."""
    from hippo.params import SamplingParams

    return SamplingParams.of(**options)


def check_clips(
    clips: list[Path],
    frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> None:
    """Refuse paths and a sampling that cannot work, without reading a clip."""
    with importing():
        from hippo.video import check_request
        from hippo.video.files import check_file

    check_request(frames, fps, start or 0.0, end)
    for clip in clips:
        check_file(clip)


def _given(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of a command's arguments that have a value."""
    return {name: given[name] for name in names if given.get(name) is not None}


def sampling_options(given: dict[str, Any]) -> dict[str, Any]:
    """Of a command's arguments, those of `VideoLLM.generate`. Raises BadRequest."""
    options = _given(given, *OPTIONS)
    for name in ("gamma", "verify_width"):
        if options.get(name, "").lstrip("-").isdecimal():
            options[name] = int(options[name])
    if "keep_ratio" in options:
        with suppress(ValueError):
            options["keep_ratio"] = float(options["keep_ratio"])
    params_of(options)
    return options


def loading_options(given: dict[str, Any]) -> dict[str, Any]:
    """Of a command's arguments, those of `loaded`. cache_memory is in MiB, and None is a share of the free memory."""
    options = _given(given, *WHERE, "max_running")
    if options.get("draft_bits", "").isdecimal():
        options["draft_bits"] = int(options["draft_bits"])
    if "cache_memory" in given:
        options["cache_memory"] = None if given["cache_memory"] is None else given["cache_memory"] << 20
    drafts = params_of(sampling_options(given)).decoder != "ar"
    return options | {"start_draft": given.get("start_draft", drafts)}


class Requests:
    """The requests of one command: one for each clip, or one for all of them; checked before anything is loaded.

    given: the command's arguments; None leaves one to the library. The error of one of several requests is a line on
    stderr, the others go on, and the command ends with exit code 2.
    """

    def __init__(self, command: str, given: dict[str, Any]) -> None:
        self.given = given
        self.options = sampling_options(given)
        self._where = loading_options(given)
        self.clips = clips = given["videos"]
        self.groups = [clips] if given.get("together") else [[clip] for clip in clips]
        self.several, self._failed = len(self.groups) > 1, False
        for clip in clips:
            if os.path.isdir(clip):  # of a name that is too long, too
                run = f"hippo {command} {shlex.quote(clip)}/*.mp4"
                raise BadRequest(f"{clip} is a folder, not a video", f"run {run}, or name a file in it")
        check_clips([], given["frames"], given["fps"], given["start"], given["end"])
        self._sources: dict[str, Any] = {}
        self._each(lambda group: [self._source(clip) for clip in group])

    def run(self, act: Callable[[VideoLLM, dict[str, Any], list[str]], T]) -> list[T]:
        """What `act` returns for each request, given the pair, what `VideoLLM.generate` takes, and the clips."""
        if self.groups:
            with loaded(self.given["target"], self.given.get("draft"), **self._where) as llm:
                results = self._each(lambda clips: act(llm, self._request(clips), clips))
        if self._failed:
            raise typer.Exit(2)
        return results

    def _source(self, clip: str) -> Any:
        """A clip that was found to be there; what has no path is read once, whatever is then done with it."""
        if clip not in self._sources:
            with importing():
                from hippo.inputs import stored
                from hippo.video.files import check_file
            with progressing("fetching") as progress:
                given = sys.stdin.buffer if clip == "-" else clip
                source = stored(given, not self.given.get("no_fetch"), lambda share: progress("fetching", share))
            check_file(source)
            self._sources[clip] = source
        return self._sources[clip]

    def _request(self, clips: list[str]) -> dict[str, Any]:
        from hippo.inputs import messages_of

        messages = messages_of([self._source(clip) for clip in clips], self.given["prompt"], self.given["system"])
        named = {"start": "video_start", "end": "video_end"}
        media = {
            named.get(name, name): value for name, value in _given(self.given, "start", "end", "max_pixels").items()
        }
        return {"messages": messages} | _given(self.given, "frames", "fps", "max_video_tokens") | media

    def _each(self, act: Callable[[list[str]], T]) -> list[T]:
        results, passed = [], []
        for group in self.groups:
            try:
                results.append(act(group))
                passed.append(group)
            except HippoError as error:
                if not self.several:
                    raise
                self._failed = True
                clip = "" if Path(group[0]).name in str(error) else f"{group[0]}: "
                stderr.print(f"hippo: {clip}{error}", markup=False, soft_wrap=True)
        self.groups = passed
        return results


def named(clips: Sequence[str | Path]) -> dict[str, Any]:
    """The clips of a request, for --json."""
    return {"video": str(clips[0])} if len(clips) == 1 else {"videos": [str(clip) for clip in clips]}


def require_draft(target: str, draft: str | None, drafter: str | None = None) -> None:
    """Refuse a target without a draft before it is loaded."""
    if draft is None and drafter is None and target != "tiny":
        raise BadRequest("there is no draft model", "name one with --draft (ngram needs none), or use --method ar")


def versions() -> dict[str, str]:
    """Of what an answer depends on."""
    names = ("torch", "torchvision", "transformers", "tokenizers", "av")
    return {"hippo-video": __version__, "python": platform.python_version()} | {name: version(name) for name in names}


def quieten() -> None:
    """Keep transformers' notes and bars off the terminal."""
    with importing():
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextmanager
def loaded(target: str, draft: str | None, **where: Any) -> Iterator[VideoLLM]:
    """A loaded pair, ended with the block; says on stderr that it is loading. where: options of `hippo.load`. Without
    cache_memory nothing is kept from one answer for the next: repeated answers are timed."""
    where.setdefault("cache_memory", 0)
    if where.get("start_draft", True):
        require_draft(target, draft, where.get("drafter"))
    text = escape(f"loading {target}" + (f" and {draft}" if draft else "") + " ...")
    # Not stderr.status: its thread would keep the draft's process from being a fork.
    with Live(text, console=stderr, auto_refresh=False, transient=True):
        with importing():
            from hippo.llm import load
        quieten()
        # The draft's process is a fork. A collection of what was imported would write to all that both share.
        if not gc.get_freeze_count():
            gc.freeze()
        llm = load(target, draft, **where)
    with llm:
        yield llm


def bar() -> Progress:
    """A bar on stderr, if that is a terminal."""
    return Progress(console=stderr, transient=True, disable=not stderr.is_terminal)


@contextmanager
def progressing(text: str = "") -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr; yields a function that takes what is being done and the share of it that is done."""
    with bar() as shown:
        task = shown.add_task(text, total=1.0)
        yield lambda what, share: shown.update(task, description=what, completed=share)


@contextmanager
def answering() -> Iterator[tuple[Callable[[str], None], Callable[[str, float], None]]]:
    """Callbacks (on_text, progress) for an answer: a bar on stderr until the first words, then the words on stdout."""
    with bar() as shown:
        task = shown.add_task("reading frames", total=1.0)

        def progress(phase: str, share: float) -> None:
            total = 1.0 if share < 1 else None  # after the last frame nothing is known of how long it takes
            shown.update(task, description=phase if total else "watching", completed=share, total=total)

        def on_text(piece: str) -> None:
            shown.stop()
            say(piece)

        yield on_text, progress


def compare(llm: VideoLLM, request: dict[str, Any], options: dict[str, Any], runs: int, first: Output) -> Comparison:
    """`runs` answers, `first` among them, each beside one of generate(), in turn."""
    from hippo.report.baseline import Comparison, transformers_generate

    outputs, baselines = [first], []
    with stderr.status("") as status:
        for run in range(runs):
            status.update(f"the same by transformers' generate(), to compare ({run + 1} of {runs})")
            if run:
                outputs.append(llm.generate(**request, **options))
            baselines.append(transformers_generate(llm, params_of(options), **request))
    return Comparison(outputs, baselines, sampled=options.get("temperature", 0) > 0)


def as_json(output: Output, comparison: Comparison | None = None) -> dict[str, Any]:
    """What --json prints of an answer."""
    from hippo.report.tables import disturbed

    result: dict[str, Any] = {
        "text": output.text,
        "token_ids": output.token_ids,
        "method": output.stats.method,
        "stats": output.stats.as_dict(),
        "warnings": list(output.warnings),
    }
    if comparison is not None:
        result["baseline"] = comparison.baselines[0].as_dict()
        result["identical"] = comparison.identical
        result["speedup"] = comparison.speedup
        result["disturbed"] = disturbed(comparison)
    return result


def say(piece: str) -> None:
    """A piece of the answer, to stdout, at once. `hippo.cli.main` reports what stdout refuses."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    say(json.dumps(value, ensure_ascii=False) + "\n")


def warn(*warnings: str) -> None:
    """Lines on stderr."""
    for warning in warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)


def close(output: Output, comparison: Comparison | None, json: bool, clips: Sequence[str | Path]) -> None:
    """What follows an answer: its warnings on stderr, then its table there, or one JSON object on stdout."""
    from hippo.report.tables import phases_line, stats_table

    warn(*output.warnings)
    if json:
        print_json(named(clips) | as_json(output, comparison))
    else:
        stderr.print(stats_table(output.stats, comparison))
        stderr.print("seconds:  " + phases_line(output.stats), style="dim")


def facts_table(facts: dict[str, dict[str, str]]) -> Table:
    """Titles, each with its rows of names and values."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, rows in facts.items():
        table.add_row(escape(title), "", style="bold")
        for name, value in rows.items():
            table.add_row("  " + escape(name), escape(value))
    return table


def make_folder(out: Path) -> None:
    """A folder for results, made if it is not there. Raises BadRequest."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"{out} cannot be made ({error.strerror})", "choose another place") from None
