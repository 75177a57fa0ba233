"""hippo bench: studies anyone can repeat."""

from __future__ import annotations

import json as jsonlib
import math
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress

from hippo.bench import plots
from hippo.bench import speed as timing
from hippo.bench.pruning import ORACLE, Sample, study, summary
from hippo.cli import common
from hippo.cli.demo import CLIP
from hippo.errors import HippoError
from hippo.keep import PRUNERS, pruner_named
from hippo.world import make_scene, write_clip

app = typer.Typer(help="Studies anyone can repeat.", no_args_is_help=True)
FIRST_SEED = 80000  # held out: never trained or tuned on


@app.callback()
def _group() -> None:
    """Studies anyone can repeat."""


@app.command()
def pruning(
    keep_ratio: Annotated[list[float] | None, typer.Option(help="A share to keep; may be given several times.")] = None,
    pruners: Annotated[
        str,
        typer.Option(help=f"Names, separated by commas; {ORACLE} knows the answer and searches."),
    ] = ",".join(PRUNERS),
    clips: Annotated[int, typer.Option(min=2, help="How many clips of the procedural world.")] = 100,
    first_seed: Annotated[int, typer.Option(min=0, help="The first clip's seed.")] = FIRST_SEED,
    gamma: Annotated[int, typer.Option(min=1, help="Tokens drafted at a time.")] = 8,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the samples, the tables and the plots.")] = None,
    json: common.JsonOption = False,
) -> None:
    """Compare ways of keeping video tokens on held-out clips: how much the target accepts, told and asked.

    Every clip is described, and asked about one object. Exact and without a clock: the draft's proposals are compared
    with the target's own text, and serial speculative decoding is replayed on them. Intervals are 95 % over clips.
    """
    names = [name.strip() for name in pruners.split(",")]
    for name in names:
        if name != ORACLE:
            pruner_named(name)
    ratios = keep_ratio or [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise HippoError(f"keep_ratio {ratio:g} is not in (0, 1]", "use 0.1 to keep a tenth of the video tokens")
    common.require_draft(target, draft)
    if out is not None:
        _make_folder(out)
    samples: list[Sample] = []
    with (
        common.loaded(target, draft, device="cpu", start_draft=False) as llm,
        Progress(console=common.stderr, transient=True, disable=not common.stderr.is_terminal) as bar,
    ):
        task = bar.add_task("asking about clips", total=1.0)
        for sample in study(llm, (first_seed, clips), names, ratios, gamma, lambda s: bar.update(task, completed=s)):
            samples.append(sample)
    result = summary(samples)
    text = tables(result)
    if out is not None:
        (out / "samples.jsonl").write_text("".join(jsonlib.dumps(asdict(s)) + "\n" for s in samples))
        (out / "summary.json").write_text(jsonlib.dumps(result, indent=1) + "\n")
        (out / "tables.md").write_text(text)
        plots.draw(result, out)
    if json:
        common.print_json(result)
    else:
        common.say(text)


@app.command()
def speed(
    methods: Annotated[
        str,
        typer.Option(help="Names, separated by commas; DECODER+PRUNER is one too. generate and ar always run."),
    ] = ",".join(timing.USUAL),
    models: Annotated[
        str, typer.Option(help="tiny, TARGET,DRAFT, or shape:NAME: real layer shapes with random weights.")
    ] = "tiny",
    context: Annotated[
        int | None, typer.Option(min=64, help="Video tokens at least; the clip is then a larger one of the world.")
    ] = None,
    acceptance: Annotated[
        str, typer.Option(help="measured, or the chance in [0, 1] with which each drafted token is drawn to stand.")
    ] = "measured",
    video: Annotated[Path, typer.Option(help="The clip to describe.")] = CLIP,
    runs: Annotated[int, typer.Option(min=1, help="Answers of each method, in turn; one more warms up.")] = 5,
    max_new_tokens: common.TokensOption = 256,
    device: common.DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for the table and all figures.")] = None,
    json: common.JsonOption = False,
) -> None:
    """Time every method beside transformers' generate(), in turn, in one run: medians, spread, memory, efficiency.

    hippo bench speed

    hippo bench speed --models shape:qwen2.5-vl-7b --context 16384 --acceptance 0.8 --max-new-tokens 128
    """
    names = [name.strip() for name in methods.split(",")]
    timing.require_methods(names)
    rate = _rate(acceptance)
    if out is not None:
        _make_folder(out)
    common.quieten()
    with (
        TemporaryDirectory() as folder,
        Progress(console=common.stderr, transient=True, disable=not common.stderr.is_terminal) as bar,
    ):
        task = bar.add_task("loading", total=1.0)

        def progress(method: str, share: float) -> None:
            bar.update(task, description=method, completed=share)

        how = (names, runs, max_new_tokens)
        if models.startswith("shape:"):
            if rate is None:
                raise HippoError("random weights have no acceptance to measure", "name one, as --acceptance 0.8")
            shape = models.removeprefix("shape:")
            result = timing.bench_shape(shape, context or 1024, *how, rate, _device(device), progress)
        else:
            target, _, draft = models.partition(",")
            common.require_draft(target, draft or None)
            if context is not None:
                video = Path(folder) / "clip.mp4"
                write_clip(make_scene(60006), video, side=28 * math.ceil(math.sqrt(context / 8)))
            common.require_clip(video, None, None)
            result = timing.bench_pair(target, draft or None, video, *how, rate, progress)
    text = speed_table(result)
    if out is not None:
        (out / "speed.json").write_text(jsonlib.dumps(result, indent=1) + "\n")
        (out / "speed.md").write_text(text)
    if json:
        common.print_json(result)
    else:
        common.say(text)


def _rate(acceptance: str) -> float | None:
    """None for "measured". Raises HippoError."""
    if acceptance == "measured":
        return None
    try:
        rate = float(acceptance)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise HippoError(f"acceptance {acceptance!r} is neither measured nor in [0, 1]", "use --acceptance 0.8")
    return rate


def _device(device: str) -> str:
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def speed_table(result: dict[str, Any]) -> str:
    """The rows and the step costs, as Markdown; synthetic figures say so."""
    lines = [
        "| method | tokens | seconds | end to end vs generate() | decode vs generate() | end to end vs our ar "
        "| tokens a target forward | acceptance | efficiency | peak MiB | identical |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        ratios = [row[key] for key in ("speedup_vs_transformers", "decode_vs_transformers", "speedup_vs_ar")]
        memory, efficiency = row["peak_memory"], row["efficiency"]
        cells = [
            row["method"] + " (synthetic)" * row["synthetic"],
            str(row["new_tokens"]),
            f"{row['seconds']:.2f}",
            *(f"{r['median']:.2f}x ({r['low']:.2f} to {r['high']:.2f})" for r in ratios),
            "" if row["target_forwards"] is None else f"{row['tokens_per_target_forward']:.2f}",
            "" if row["target_forwards"] is None else f"{row['acceptance_rate']:.1%}",
            "" if efficiency is None else f"{efficiency:.2f}",
            "" if memory is None else f"{memory / 2**20:.0f}",
            {True: "yes", False: "NO", None: ""}[row["identical"]],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    steps = result["steps"]
    lines += ["", "| one decode step | ms |", "| --- | --- |"]
    for width, seconds in steps["target_alone"].items():
        lines.append(f"| target, {width} tokens at once, alone | {1e3 * seconds:.2f} |")
    for width, seconds in steps["target_beside"].items():
        lines.append(f"| target, {width} tokens at once, on the threads left beside a draft | {1e3 * seconds:.2f} |")
    lines += [
        f"| draft, a tenth of the video | {1e3 * steps['draft']:.2f} |",
        f"| target by transformers' own forward | {1e3 * steps['target_by_transformers']:.2f} |",
        f"| draft by transformers' own forward | {1e3 * steps['draft_by_transformers']:.2f} |",
    ]
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value)
    return "\n".join([*lines, "", machine]) + "\n"


def tables(result: dict[str, Any]) -> str:
    """The rows, and what hippo wins over each other pruner, as Markdown."""
    lines = [
        "| prompt | pruner | keep ratio | tokens per target forward (95 %) | acceptance | run | overlap | bias "
        "| scoring / prefill |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(result["rows"], key=lambda r: (r["prompt_kind"], r["keep_ratio"], r["pruner"])):
        low, high = row["interval"]
        lines.append(
            f"| {row['prompt_kind']} | {row['pruner']} | {row['keep_ratio']:g} "
            f"| {row['tokens_per_target_forward']:.2f} ({low:.2f} to {high:.2f}) | {row['acceptance_rate']:.1%} "
            f"| {row['run_between_rejections']:.1f} | {row['overlap']:.3f} | {row['bias']:+.2f} "
            f"| {row['scoring_share_of_prefill']:.1%} |"
        )
    lines += [
        "",
        "| prompt | keep ratio | hippo minus | tokens per target forward (95 %) |",
        "| --- | --- | --- | --- |",
    ]
    for row in sorted(result["paired"], key=lambda r: (r["prompt_kind"], r["keep_ratio"], r["pruner"])):
        lines.append(
            f"| {row['prompt_kind']} | {row['keep_ratio']:g} | {row['pruner']} "
            f"| {row['hippo_minus']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}) |"
        )
    return "\n".join(lines) + "\n"


def _make_folder(out: Path) -> None:
    plots.require()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HippoError(f"{out} cannot be made ({error.strerror})", "choose another place") from None
