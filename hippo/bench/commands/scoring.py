"""hippo bench scoring: what does choosing tokens cost?"""

from __future__ import annotations

from typing import Annotated

import typer

from hippo.cli import common
from hippo.errors import HippoError


def scoring(
    tokens: Annotated[list[int] | None, typer.Option(help="Video tokens, a multiple of 64; may be repeated.")] = None,
    layers: Annotated[list[int] | None, typer.Option(help="How many of the target's layers; may be repeated.")] = None,
    target: common.TargetOption = "tiny",
    runs: Annotated[int, typer.Option(min=1, help="Prefills of each kind; the table shows medians.")] = 3,
    json: common.JsonOption = False,
) -> None:
    """Measure what choosing the draft's tokens costs beside the target's prefill: seconds, and memory by layers.

    The target, on a CPU, reads random video tokens with its first layers. Each prefill runs in a process of its own.
    """
    tokens = tokens or [1024, 16384]
    for count in tokens:
        if count < 64 or count % 64:
            raise HippoError(f"{count} video tokens are not a multiple of 64", "use --tokens 1024")
    common.quieten()
    with common.importing():
        from hippo.bench.scoring import costs
        from hippo.checkpoints import resolve

    source = resolve(target, None, "cpu", "auto", "auto")[0].source
    with common.progressing() as progress:
        rows = costs(source, tokens, layers or [6, 24], runs, progress)
    if json:
        common.print_json({"rows": rows})
        return
    common.say("| video tokens | layers | prefill, s | scoring, s | share | extra memory of scoring, MiB |\n")
    common.say("| --- | --- | --- | --- | --- | --- |\n")
    for row in rows:
        common.say(
            f"| {row['video_tokens']} | {row['layers']} | {row['prefill_seconds']:.2f} | {row['scoring_seconds']:.3f} "
            f"| {row['share']:.1%} | {row['extra_mib']:.0f} |\n"
        )
