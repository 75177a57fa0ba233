"""hippo batch: thousands of requests, their answers in one file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hippo.cli import common
from hippo.errors import BadRequest, HippoError

if TYPE_CHECKING:
    from hippo.batch import Defaults, Row, Summary

FAILED = 3  # exit code
_GROUP_RAY = "Ray"
_EVERY = 30.0  # seconds between lines where stderr is no terminal


def batch(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES",
            help="Folders, patterns, clips and URLs; or .jsonl, .csv, .tsv and .parquet files with a request a line.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The answers, one JSON object a line. An existing file is continued.")],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="For requests without one.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="The same, from a file.")] = None,
    system: common.SystemOption = "",
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only part I of N: 1/N to N/N.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed before.")] = False,
    max_failures: Annotated[int | None, typer.Option(min=0, help="Stop when more requests than these fail.")] = None,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    drafter: common.DrafterOption = None,
    method: common.MethodOption = "hippo",
    keep_ratio: common.KeepOption = "auto",
    keep_at_most: common.KeepAtMostOption = 1.0,
    gamma: common.GammaOption = "auto",
    verify_width: common.WidthOption = "auto",
    max_new_tokens: common.TokensOption = 256,
    temperature: common.TemperatureOption = 0.0,
    top_k: common.TopKOption = 0,
    top_p: common.TopPOption = 1.0,
    repetition_penalty: common.RepetitionOption = None,
    seed: common.SeedOption = None,
    stop: common.StopOption = None,
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    max_pixels: common.PixelsOption = None,
    max_video_tokens: common.VideoTokensOption = None,
    no_fetch: common.NoFetchOption = False,
    max_running: common.RunningOption = 8,
    cache_memory: common.CacheOption = None,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    draft_timeout: common.TimeoutOption = 20.0,
    draft_worker: common.WorkerOption = "auto",
    draft_bits: common.BitsOption = "auto",
    draft_device: common.DraftDeviceOption = "auto",
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on Ray: a cluster's host:port, auto for the one that this machine is in, or local for one here.",
            rich_help_panel=_GROUP_RAY,
        ),
    ] = None,
    ray_actors: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs loaded, by default one for each GPU or machine.", rich_help_panel=_GROUP_RAY),
    ] = None,
    ray_gpus: Annotated[
        float, typer.Option(min=0, help="GPUs of each pair, where the cluster has any.", rich_help_panel=_GROUP_RAY)
    ] = 1.0,
) -> None:
    """Answer thousands of requests, several at a time, into one file. Exit code 3 if some of them failed.

    Run the same command again after a kill or an error: it goes on where it ended. A request that fails has its error
    in its line, and the others go on.

    hippo batch clips/ --out answers.jsonl

    hippo batch questions.jsonl --out answers.jsonl --target Qwen/Qwen2.5-VL-7B-Instruct

    hippo batch clips/ --out answers-2.jsonl --shard 2/8

    hippo batch clips/ --out answers.jsonl --ray auto
    """
    given = locals()
    options = common.sampling_options(given)
    prompt = _prompt(prompt, prompt_file)
    common.check_clips([], frames, fps)
    with common.importing():
        from hippo.batch import Answers, Defaults, answer_all, answered, by_subject, rows_of
        from hippo.batch import shard as part
        from hippo.inputs import MediaOptions
    rows = rows_of(sources)
    if shard is not None:
        rows = part(rows, shard)
    defaults = Defaults(
        target,
        dtype,
        prompt or common.DEFAULT_PROMPT,
        system,
        common.params_of(options),
        frames,
        fps,
        max_video_tokens,
        MediaOptions(max_pixels=max_pixels, fetch=not no_fetch),
    )
    digests = {row.custom_id: defaults.digest(row) for row in rows}
    with Answers(out, digests, retry_failed) as answers:
        left = len(rows) - len(answers.done)
        if answers.done:
            common.stderr.print(f"{len(answers.done)} of {len(rows)} were answered before", style="dim")
        if left:
            where = common.loading_options(given)
            todo = by_subject(row for row in rows if row.custom_id not in answers.done)
            with ExitStack() as stack:
                if ray is None:
                    lines = answered(stack.enter_context(common.loaded(target, draft, **where)), todo, defaults)
                else:
                    lines = _on_ray(ray, ray_actors, ray_gpus, todo, defaults, target, draft, where)
                progress = stack.enter_context(_Progress(len(rows), len(answers.done)))
                summary = answer_all(lines, answers, max_failures, progress.ended)
            common.stderr.print(
                common.facts_table({"batch": {"answers": str(out)} | _facts(summary, len(rows), answers.failures)})
            )
            if summary.stopped:
                common.warn(f"stopped after {summary.failures.total()} failures")
        if answers.failures:
            raise typer.Exit(FAILED)


def _on_ray(
    address: str,
    actors: int | None,
    gpus: float,
    rows: list[Row],
    defaults: Defaults,
    target: str,
    draft: str | None,
    where: dict[str, Any],
) -> Generator[dict[str, Any]]:
    """The lines of a job that a cluster answers. where: options of `hippo.load`."""
    if where["start_draft"]:
        common.require_draft(target, draft, where.get("drafter"))
    with common.importing():
        try:
            from hippo.ray.batch import answered
        except ModuleNotFoundError as error:
            raise HippoError(f"{error.name} is not installed", "pip install 'hippo-video[ray]'") from None
    return answered(address, rows, defaults, target, draft, where, actors, gpus)


def _prompt(prompt: str | None, file: Path | None) -> str | None:
    if file is None:
        return prompt
    if prompt is not None:
        raise BadRequest("both --prompt and --prompt-file were given", "give one of them")
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadRequest(f"{file} cannot be read ({reason})", "check --prompt-file") from None
    if not text:
        raise BadRequest(f"{file} is empty", "write the prompt into it")
    return text


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, before: int) -> None:
        self._total, self._before, self._done, self._failed = total, before, 0, 0
        self._began = self._last = time.monotonic()
        shown = common.stderr
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=shown,
            transient=True,
            disable=not shown.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=before)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def ended(self, line: dict[str, Any]) -> None:
        """A request has its line."""
        self._done += 1
        if line["error"] is not None:
            self._failed += 1
            common.warn(f"{line['custom_id']}: {line['error']['message']}")
        now = time.monotonic()
        rate = self._done / (now - self._began)
        failed = f", {self._failed} failed" if self._failed else ""
        text = f"{60 * rate:.1f} a minute{failed}"
        self._bar.update(self._task, description=text, completed=self._before + self._done)
        if self._bar.disable and now - self._last > _EVERY:
            self._last = now
            count = self._before + self._done
            left = (self._total - count) / rate
            common.stderr.print(f"{count} of {self._total}, {text}, {left / 60:.0f} minutes left", soft_wrap=True)


def _facts(summary: Summary, total: int, failures: Counter[str]) -> dict[str, str]:
    from hippo.batch.run import WARM_UP

    seconds = max(summary.seconds, 1e-9)
    accepted = summary.accepted / max(1, summary.checked)
    steady = summary.steady_rate
    facts = {
        "requests": f"{total}, of which {summary.answered} answered now in {summary.seconds:.1f} s",
        "rate": f"{60 * summary.answered / seconds:.1f} a minute"
        + ("" if steady is None else f", {60 * steady:.1f} after the first {WARM_UP}"),
        "tokens": f"{summary.tokens}, {summary.tokens / seconds:.1f} a second",
        "accepted": f"{accepted:.0%} of {summary.checked} drafted tokens",
    }
    facts |= {f"failed: {cause}": str(count) for cause, count in failures.most_common()}
    return facts
