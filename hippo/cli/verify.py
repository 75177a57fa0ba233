"""hippo verify: is the output really the target's own?"""

from __future__ import annotations

from typing import Any

import torch
import transformers
import typer
from rich.table import Table

from hippo.cli import common
from hippo.forward import why_not_fused
from hippo.llm import DEFAULT_PROMPT, VideoLLM
from hippo.options import METHODS, make_options
from hippo.report.baseline import transformers_generate
from hippo.report.difference import first_difference


def verify(
    videos: common.SourcesArgument,
    prompt: common.PromptOption = DEFAULT_PROMPT,
    system: common.SystemOption = "",
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    keep_ratio: common.KeepOption = 0.1,
    gamma: common.GammaOption = "auto",
    max_new_tokens: common.TokensOption = 256,
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    max_video_tokens: common.VideoTokensOption = None,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    json: common.JsonOption = False,
) -> None:
    """Run transformers' generate() and every method on one clip or several: identical, or the first difference.

    Exit code 0 if every method gave generate()'s tokens, or differed only at a near tie; 1 if not.
    """
    options: dict[str, Any] = {
        "keep_ratio": keep_ratio,
        "gamma": common.parse_gamma(gamma),
        "max_new_tokens": max_new_tokens,
    }
    make_options(**options)
    common.require_draft(target, draft)
    request = common.request_of(videos, prompt, system, frames, fps, max_video_tokens)
    with common.loaded(target, draft, device, dtype) as llm:
        report = _report(llm, request, options)
    if json:
        common.print_json(report)
    else:
        _show(report)
    raise typer.Exit(0 if all(row["identical"] or row["near_tie"] for row in report["methods"]) else 1)


def _report(llm: VideoLLM, request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    rows = []
    with common.stderr.status("transformers' generate()") as status:
        baseline = transformers_generate(llm, make_options(**options), **request)
        for method in METHODS:
            status.update(f"method {method}")
            output = llm.generate(**request, method=method, **options)
            row: dict[str, Any] = {
                "method": method,
                "tokens": len(output.token_ids),
                "identical": True,
                "near_tie": False,
            }
            if output.token_ids != baseline.token_ids:
                inputs = llm.inputs(**request)
                row |= {"identical": False} | first_difference(llm.pair, inputs, baseline.token_ids, output.token_ids)
            if output.stats.draft_lost:
                row["draft_lost"] = output.stats.draft_lost
            rows.append(row)
    model = llm.pair.target
    reason = why_not_fused(llm.pair.family.language_model(model))
    return {
        "target": model.name_or_path,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "forwards": f"transformers' own, since {reason}" if reason else "fused",
        "baseline_tokens": len(baseline.token_ids),
        "methods": rows,
    }


def _show(report: dict[str, Any]) -> None:
    facts = ("device", "dtype", "torch", "transformers", "forwards")
    table = Table(title="against transformers' generate(): " + ", ".join(f"{k} {report[k]}" for k in facts))
    for heading in ("method", "tokens", "verdict"):
        table.add_column(heading)
    for row in report["methods"]:
        verdict = "identical" if row["identical"] else _explained(row)
        if "draft_lost" in row:
            verdict += f"; but the draft was lost: {row['draft_lost']}"
        table.add_row(row["method"], str(row["tokens"]), verdict)
    common.stderr.print(table)


def _explained(row: dict[str, Any]) -> str:
    cause = "a near tie, within rounding" if row["near_tie"] else "a bug, please report it"
    return (
        f"differs from token {row['at']} on: {row['ours']} for {row['theirs']}; the target's top-2 logit gap there is "
        f"{row['gap']:.2e}, rounding moves its logits by {row['rounding']:.2e}: {cause}"
    )
