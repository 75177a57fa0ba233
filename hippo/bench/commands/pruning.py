"""hippo bench pruning: which video tokens should a draft see?"""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from functools import partial
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
        typer.Option(help="Names, separated by commas, all by default; oracle knows the answer and searches."),
    ] = "",
    clips: Annotated[int, typer.Option(min=2, help="How many clips of the procedural world.")] = 100,
    first_seed: Annotated[int, typer.Option(min=0, help="The first clip's seed.")] = FIRST_SEED,
    gamma: Annotated[int, typer.Option(min=1, help="Tokens drafted at a time.")] = 8,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the samples, the tables and the plots.")] = None,
    json: common.JsonOption = False,
) -> None:
    """Compare ways of keeping video tokens on held-out clips: how much the target accepts, in descriptions and answers.

    Every clip is described, and asked about one object. Exact and without a clock: the draft's proposals are compared
    with the target's own text, and serial speculative decoding is replayed on them. Intervals are 95 % over clips.
    """
    with common.importing():
        from hippo.bench import plots
        from hippo.bench.pruners import ABLATIONS, pruner_named
        from hippo.bench.pruning import ORACLE, study, summary
        from hippo.pruning import PRUNERS

    names = [name.strip() for name in pruners.split(",")] if pruners else list(PRUNERS | ABLATIONS)
    for name in names:
        if name != ORACLE:
            pruner_named(name)
    ratios = keep_ratio or [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise HippoError(f"keep_ratio {ratio:g} is not in (0, 1]", "use 0.1 to keep a tenth of the video tokens")
    common.require_draft(target, draft)
    if out is not None:
        plots.require()
        common.make_folder(out)
    where = {"trust_remote_code": trust_remote_code, "attn_implementation": attn_implementation}
    with (
        common.loaded(target, draft, device="cpu", start_draft=False, **where) as llm,
        common.progressing() as progress,
    ):
        report = partial(progress, "asking about clips")
        samples = list(study(llm, (first_seed, clips), names, ratios, gamma, report))
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
