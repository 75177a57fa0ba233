"""hippo bench speed: how much faster?"""

from __future__ import annotations

import json as jsonlib
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from hippo.cli import common
from hippo.cli.demo import CLIP
from hippo.errors import HippoError

USUAL = "generate,static,assisted,ar,sd,specvlm,pearl,hippo,wrong-draft"


def speed(
    methods: Annotated[
        str,
        typer.Option(help="Names, separated by commas; DECODER+PRUNER is one too. generate and ar always run."),
    ] = USUAL,
    models: Annotated[
        str,
        typer.Option(help="tiny, TARGET,DRAFT (which may be ngram), or shape:NAME: real layer shapes, random weights."),
    ] = "tiny",
    context: Annotated[
        int | None, typer.Option(min=64, help="Video tokens at least; the clip is then a larger one of the world.")
    ] = None,
    acceptance: Annotated[
        str, typer.Option(help="measured, or the chance in [0, 1] that a drafted token is drawn as accepted.")
    ] = "measured",
    video: Annotated[
        Path | None, typer.Option(help="The clip; the demo's, unless --prompts are asked without one.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts, one a line; each is one run, in place of --runs.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The --prompts are the turns of one conversation about the clip.")
    ] = False,
    runs: Annotated[int, typer.Option(min=1, help="Answers of each method, in turn; one more warms up.")] = 5,
    max_new_tokens: common.TokensOption = 256,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Answers go on past their end, up to --max-new-tokens.")
    ] = False,
    draft_bits: common.BitsOption = "auto",
    device: common.DeviceOption = "auto",
    attn_implementation: common.AttentionOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the table and all figures.")] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="Picture of who worked when in each method's last answer: .svg, .png or .pdf.")
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Time every method beside transformers' generate(), in turn, in one run: medians, spread, memory, efficiency.

    hippo bench speed

    hippo bench speed --models TARGET,DRAFT --prompts questions.txt --max-new-tokens 128

    hippo bench speed --models tiny,ngram --methods ar,hippo --prompts questions.txt --chat

    hippo bench speed --models shape:qwen2.5-vl-7b --context 16384 --acceptance 0.8 --max-new-tokens 128
    """
    with common.importing():
        from hippo.bench import plots
        from hippo.bench import speed as timing
        from hippo.bench.world import make_scene, write_clip

    rate, questions = _rate(acceptance), questions_of(prompts)
    if questions and (rate is not None or models.startswith("shape:")):
        raise HippoError("drawn verdicts say nothing of prompts", "leave --prompts or --acceptance out")
    if chat and not questions:
        raise HippoError("a conversation needs its questions", "name a file of --prompts")
    if ignore_eos and (rate is not None or models.startswith("shape:")):
        raise HippoError("answers with drawn verdicts have no end to ignore", "leave --ignore-eos or --acceptance out")
    if attn_implementation is not None and models.startswith("shape:"):
        raise HippoError("a shape has the attention that transformers chooses", "leave --attn-implementation out")
    names = [name.strip() for name in methods.split(",")]
    timing.require_methods(names)
    if out is not None:
        common.make_folder(out)
    if timeline is not None:
        plots.require_picture(timeline)
    common.quieten()
    with (
        TemporaryDirectory() as folder,
        common.progressing("loading") as progress,
    ):
        how = (names, runs, max_new_tokens)
        if models.startswith("shape:"):
            if rate is None:
                raise HippoError("random weights have no acceptance to measure", "name one, as --acceptance 0.8")
            shape = models.removeprefix("shape:")
            result = timing.bench_shape(shape, context or 1024, *how, rate, draft_bits, _device(device), progress)
        else:
            target, _, draft = models.partition(",")
            common.require_draft(target, draft or None)
            video = video or (None if questions and not chat else CLIP)
            if context is not None:
                video = Path(folder) / "clip.mp4"
                write_clip(make_scene(60020), video, side=28 * math.ceil(math.sqrt(context / 8)))
            if video is not None:
                common.check_clips([video], None, None)
            result = timing.bench_pair(
                target,
                draft or None,
                video,
                *how,
                rate,
                draft_bits,
                progress,
                questions,
                ignore_eos,
                attn_implementation,
                chat,
            )
    spans = {row["method"]: row.pop("timeline") for row in result["rows"]}
    if timeline is not None:
        plots.draw_timeline({method: own for method, own in spans.items() if own}, timeline)
    text = table(result)
    if out is not None:
        (out / "speed.json").write_text(jsonlib.dumps(result, indent=1) + "\n")
        (out / "speed.md").write_text(text)
    if json:
        common.print_json(result)
    else:
        common.say(text)


def questions_of(file: Path | None) -> list[str]:
    """The lines of a file that hold something. Raises HippoError."""
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise HippoError(f"{file} cannot be read ({why})", "name a text file") from None
    if not lines:
        raise HippoError(f"{file} holds no prompt", "write one a line")
    return lines


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
    import torch

    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def table(result: dict[str, Any]) -> str:
    """The rows and the step costs, as Markdown; synthetic figures say so."""
    lines = [
        "| method | tokens | seconds | end to end vs generate() | decode vs generate() | end to end vs our ar "
        "| decode vs our ar | tokens a target forward | acceptance | efficiency | undisturbed | peak MiB | identical |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        if row["cannot_run"]:
            lines.append(f"| {row['method']} | cannot run: {row['cannot_run'].replace('|', '/')} |" + " |" * 11)
            continue
        keys = ("speedup_vs_transformers", "decode_vs_transformers", "speedup_vs_ar", "decode_vs_ar")
        ratios = [row[key] for key in keys]
        memory, efficiencies = row["peak_memory"], (row["efficiency"], row["efficiency_undisturbed"])
        cells = [
            row["method"] + " (synthetic)" * row["synthetic"],
            str(row["new_tokens"]),
            f"{row['seconds']:.2f}",
            *(f"{r['median']:.2f}x ({r['low']:.2f} to {r['high']:.2f})" for r in ratios),
            "" if row["target_forwards"] is None else f"{row['tokens_per_target_forward']:.2f}",
            "" if row["target_forwards"] is None else f"{row['acceptance_rate']:.1%}",
            *("" if efficiency is None else f"{efficiency:.2f}" for efficiency in efficiencies),
            "" if memory is None else f"{memory / 2**20:.0f}",
            {True: "yes", False: "NO" + _equals(row), None: ""}[row["identical"]],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += _steps(result["steps"]) if result["steps"] else []
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value)
    return "\n".join([*lines, "", machine]) + "\n"


def _equals(row: dict[str, Any]) -> str:
    return f" ({row['identical_answers']} answers are, {row['identical_to_ar']} to our ar)"


def _steps(steps: dict[str, Any]) -> list[str]:
    """The step costs, line by line."""
    lines = ["", "| one decode step | ms |", "| --- | --- |"]
    lines.append(
        f"| target's weights and KV cache read once, as a copy reads | {1e3 * steps['target_read_once']:.2f} |"
    )
    for width, seconds in steps["target_alone"].items():
        lines.append(f"| target, {width} tokens at once, alone | {1e3 * seconds:.2f} |")
    for width, seconds in steps["target_beside"].items():
        idle = f"{1e3 * steps['target_undisturbed'][width]:.2f}"
        lines.append(
            f"| target, {width} tokens at once, beside a draft at work (idle) | {1e3 * seconds:.2f} ({idle}) |"
        )
    return [
        *lines,
        f"| draft, a tenth of the video, beside a target at work | {1e3 * steps['draft_beside']:.2f} |",
        f"| draft, a tenth of the video, alone | {1e3 * steps['draft']:.2f} |",
        f"| target by transformers' own forward | {1e3 * steps['target_by_transformers']:.2f} |",
        f"| draft by transformers' own forward | {1e3 * steps['draft_by_transformers']:.2f} |",
    ]
