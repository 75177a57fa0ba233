"""hippo bench pruning: which video tokens should a draft see?"""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hippo.cli import common
from hippo.errors import HippoError

FIRST_SEED = 80000  # held out: never trained or tuned on


def pruning(
    keep_ratio: Annotated[list[float] | None, typer.Option(help="A share to keep; may be given several times.")] = None,
    pruners: Annotated[
        str,
        typer.Option(
            help="Names, separated by commas, all by default; auto chooses how many tokens to keep, oracle knows the "
            "answer and searches."
        ),
    ] = "",
    clips: Annotated[int, typer.Option(min=2, help="How many clips of the procedural world.")] = 120,
    first_seed: Annotated[int, typer.Option(min=0, help="The first clip's seed.")] = FIRST_SEED,
    kinds: Annotated[str, typer.Option(help="Kinds of clips, separated by commas, all by default.")] = "",
    frames: Annotated[int, typer.Option(min=2, help="Frames of each clip; two of them are 64 video tokens.")] = 16,
    video: Annotated[
        list[Path] | None, typer.Option(exists=True, help="A real clip, in place of the world; may be repeated.")
    ] = None,
    mixed: Annotated[int, typer.Option(min=0, help="How many clips to mix of the real ones.")] = 20,
    gamma: Annotated[int, typer.Option(min=1, help="Tokens drafted at a time.")] = 8,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the samples, the tables and the plots.")] = None,
    json: common.JsonOption = False,
) -> None:
    """Compare ways of keeping video tokens on held-out clips: how much the target accepts, in descriptions and answers.

    Every clip is described, and asked about one object; real clips are only described. Exact and without a clock: the
    draft's proposals are compared with the target's own text, and serial speculative decoding is replayed on them.
    Seconds are predicted: for this pair from its costs here, one model at a time, and for a 7B with a 3B from their
    sizes. Intervals are 95 % over clips.
    """
    with common.importing():
        from hippo.bench import plots
        from hippo.bench.choices import CHOICES
        from hippo.bench.pruners import ABLATIONS, pruner_named
        from hippo.bench.pruning import AUTO, ORACLE, mixes, requests, study, summary
        from hippo.bench.world import KINDS
        from hippo.pruning import PRUNERS, RATIOS

    names = [name.strip() for name in pruners.split(",")] if pruners else [*PRUNERS, *ABLATIONS, *CHOICES, AUTO]
    for name in names:
        if name not in (ORACLE, AUTO, *CHOICES):
            pruner_named(name)
    chosen = [name.strip() for name in kinds.split(",")] if kinds else list(KINDS)
    for name in chosen:
        if name not in KINDS:
            raise HippoError(f"unknown kind of clip {name!r}", f"use one of: {', '.join(KINDS)}")
    ratios = keep_ratio or list(RATIOS)
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise HippoError(f"keep_ratio {ratio:g} is not in (0, 1]", "use 0.1 to keep a tenth of the video tokens")
    common.require_draft(target, draft)
    if out is not None:
        plots.require()
        common.make_folder(out)
    count = len(video) + mixed if video else 2 * clips
    samples = []
    where = {"trust_remote_code": trust_remote_code, "attn_implementation": attn_implementation}
    with (
        common.loaded(target, draft, device="cpu", start_draft=False, **where) as llm,
        common.progressing() as progress,
    ):
        asked = mixes(video, mixed) if video else requests(first_seed, clips, chosen)
        for done, some in enumerate(study(llm, asked, names, ratios, gamma, frames), 1):
            samples += some
            progress("asking about clips", done / count)
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


def tables(result: dict[str, Any]) -> str:
    """The rows, what hippo wins over each other choice, and both by kind of clip, as Markdown."""
    pairs = list(result["rows"][0]["seconds"]) if result["rows"] else []
    lines = [
        "| prompt | pruner | keep ratio | tokens per target forward (95 %) | acceptance | run | overlap | bias "
        f"| scoring / prefill | {' | '.join(f'seconds, {pair}' for pair in pairs)} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |" + " --- |" * len(pairs),
    ]
    for row in sorted(result["rows"], key=lambda r: (r["prompt_kind"], r["keep_ratio"], r["pruner"])):
        low, high = row["interval"]
        seconds = " | ".join(f"{row['seconds'][pair]:.4f}" for pair in pairs)
        lines.append(
            f"| {row['prompt_kind']} | {row['pruner']} | {row['keep_ratio']:.3g} "
            f"| {row['tokens_per_target_forward']:.2f} ({low:.2f} to {high:.2f}) | {row['acceptance_rate']:.1%} "
            f"| {row['run_between_rejections']:.1f} | {row['overlap']:.3f} | {row['bias']:+.2f} "
            f"| {row['scoring_share_of_prefill']:.1%} | {seconds} |"
        )
    lines += [
        "",
        "| prompt | keep ratio | hippo minus | tokens per target forward (95 %) |",
        "| --- | --- | --- | --- |",
    ]
    for row in sorted(result["paired"], key=lambda r: (r["prompt_kind"], r["keep_ratio"], r["pruner"])):
        lines.append(f"| {row['prompt_kind']} | {row['keep_ratio']:g} | {row['pruner']} | {_won(row)} |")
    lines += [
        "",
        "| kind of clip | pruner | keep ratio | tokens per target forward | hippo minus it | bias |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(result["kinds"], key=lambda r: (r["keep_ratio"], r["pruner"], r["kind"])):
        lines.append(
            f"| {row['kind']} | {row['pruner']} | {row['keep_ratio']:.3g} | {row['tokens_per_target_forward']:.2f} "
            f"| {_won(row) if 'low' in row else ''} | {row['bias']:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def _won(row: dict[str, Any]) -> str:
    return f"{row['hippo_minus']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
