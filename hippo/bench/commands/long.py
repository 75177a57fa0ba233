"""hippo bench long: how much memory does a long video take?"""

from __future__ import annotations

from typing import Annotated

import typer

from hippo.cli import common


def long(
    minutes: Annotated[float, typer.Option(min=0.05, help="Length of the clip, which is drawn.")] = 10,
    fps: Annotated[float, typer.Option(min=0.1, max=2, help="Frames to sample a second.")] = 1,
    max_new_tokens: common.TokensOption = 64,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    json: common.JsonOption = False,
) -> None:
    """Describe a long clip on a CPU by `hippo`, by `ar` and by transformers' generate(): peak memory above the models'
    weights, seconds by phase.

    Exit code 1 if a token differs.
    """
    common.require_draft(target, draft)
    with common.importing():
        from hippo.bench.long import long_clip

    with common.progressing() as progress:
        rows = long_clip(target, draft, round(60 * minutes), fps, max_new_tokens, progress)
    same = rows[0]["token_ids"] == rows[1]["token_ids"] == rows[1]["expected"]
    if json:
        common.print_json({"rows": rows, "identical": same})
    else:
        columns = (
            "method | video tokens | KV cache, MiB | peak above weights, MiB | reading | vision | prefill | decode"
        )
        common.say(f"| {columns} |\n{'| --- ' * 8}|\n")
        for row in rows:
            name = row["method"] + (", then generate()" if row["expected"] else "")
            above = "" if row["above_weights"] is None else f"{row['above_weights'] / 2**20:.0f}"
            times = [f"{row['seconds'][phase]:.1f} s" for phase in ("video", "vision", "prefill", "decode")]
            cells = [name, str(row["video_tokens"]), f"{row['kv_cache_mib']:.0f}", above, *times]
            common.say(f"| {' | '.join(cells)} |\n")
        common.say(f"identical to generate(): {'yes' if same else 'NO'}\n")
    if not same:
        raise typer.Exit(1)
