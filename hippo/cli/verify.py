"""hippo verify: is the output really the target's own?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from hippo.cli import common

if TYPE_CHECKING:
    from hippo.llm import VideoLLM


def verify(
    videos: common.SourcesArgument,
    prompt: common.PromptOption = common.DEFAULT_PROMPT,
    system: common.SystemOption = "",
    together: common.TogetherOption = False,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    drafter: common.DrafterOption = None,
    keep_ratio: common.KeepOption = "auto",
    keep_at_most: common.KeepAtMostOption = 1.0,
    gamma: common.GammaOption = "auto",
    verify_width: common.WidthOption = "auto",
    max_new_tokens: common.TokensOption = 256,
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    start: common.StartOption = None,
    end: common.EndOption = None,
    max_pixels: common.PixelsOption = None,
    max_video_tokens: common.VideoTokensOption = None,
    no_fetch: common.NoFetchOption = False,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    draft_worker: common.WorkerOption = "auto",
    draft_bits: common.BitsOption = "auto",
    draft_device: common.DraftDeviceOption = "auto",
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
    json: common.JsonOption = False,
) -> None:
    """Run transformers' generate() and every method on each clip: identical, or the first difference.

    The report on stderr, or --json on stdout, has all that an issue needs: one for each clip, or one for all of them
    with --together.

    Exit code 0 if every method gave generate()'s tokens, or differed only at a near tie; 1 if not; 2 if a clip could
    not be used.
    """
    requests = common.Requests("verify", locals())

    def check(llm: VideoLLM, request: dict[str, Any], clips: list[str]) -> bool:
        report = common.named(clips) | _report(llm, request, requests.options)
        if json:
            common.print_json(report)
        else:
            _show(report)
        return all(row["identical"] or row["near_tie"] for row in report["methods"])

    raise typer.Exit(0 if all(requests.run(check)) else 1)


def _report(llm: VideoLLM, request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    from hippo.checkpoints import quantisation_of
    from hippo.forward import why_not_fused, why_not_recorded
    from hippo.params import METHODS
    from hippo.report.baseline import transformers_generate
    from hippo.report.difference import first_difference

    rows = []
    with common.stderr.status("transformers' generate()") as status:
        baseline = transformers_generate(llm, common.params_of(options), **request)
        for method in METHODS:
            status.update(f"method {method}")
            output = llm.generate(**request, method=method, **options)
            row: dict[str, Any] = {
                "method": method,
                "tokens": len(output.token_ids),
                "kept_tokens": output.stats.kept_tokens,
                "identical": output.token_ids == baseline.token_ids,
                "near_tie": False,
            }
            if not row["identical"]:
                row |= first_difference(llm.pair, llm.inputs(**request), baseline.token_ids, output.token_ids)
            if output.stats.draft_lost:
                row["draft_lost"] = output.stats.draft_lost
            rows.append(row)
    model, family = llm.pair.target, llm.pair.family
    reason, unrecorded = (why(family.language_model(model)) for why in (why_not_fused, why_not_recorded))
    recorded = f"not recorded: {unrecorded}" if unrecorded else "recorded as CUDA graphs"
    return {
        "versions": common.versions(),
        "family": family.card.name,
        "target": model.name_or_path,
        "draft": llm.pair.require_draft().name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantised": quantisation_of(model),
        "forwards": f"transformers' own, since {reason}" if reason else f"fused, {recorded}",
        "video_tokens": output.stats.video_tokens,
        "baseline_tokens": len(baseline.token_ids),
        "methods": rows,
    }


def _show(report: dict[str, Any]) -> None:
    clips = report["video"] if "video" in report else ", ".join(report["videos"])
    facts = Table(
        title=escape(f"{clips} against transformers' generate()"), title_justify="left", show_header=False, box=None
    )
    facts.add_row("versions", ", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    for name in ("family", "target", "draft", "device", "dtype", "quantised", "forwards"):
        facts.add_row(name, escape(report[name] or "no"))
    table = Table("method", "tokens", f"video tokens kept of {report['video_tokens']}", "verdict")
    for row in report["methods"]:
        verdict = "identical" if row["identical"] else _explained(row)
        if "draft_lost" in row:
            verdict += f"; but the draft was lost: {row['draft_lost']}"
        table.add_row(row["method"], str(row["tokens"]), str(row["kept_tokens"]), escape(verdict))
    common.stderr.print(facts, table)


def _explained(row: dict[str, Any]) -> str:
    cause = "near tie (rounding)" if row["near_tie"] else "not a near tie: a bug, please report"
    where = f"differs from token {row['at']} on, {row['ours']} for {row['theirs']}"
    if row["gap"] is None:
        return f"{where}: {cause}"
    return (
        f"{where}: their logits are {row['gap']:.2g} apart, ours are off by {row['moved']:.2g}, rounding explains "
        f"{row['bound']:.2g}: {cause}"
    )
