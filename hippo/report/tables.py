"""Tables for people."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from hippo.stats import Stats

if TYPE_CHECKING:
    from hippo.report.baseline import Comparison

DISTURBED = 2.0  # runs on a machine with nothing else to do differ by less


def stats_table(stats: Stats, comparison: Comparison | None = None) -> Table:
    """What a request did, and how it compares when there is something to compare with."""
    table = Table(title=f"method {stats.method}", title_justify="left", show_header=False)
    seconds = stats.seconds
    runs = comparison.outputs if comparison else []
    total = median(run.stats.seconds.total for run in runs) if runs else seconds.total
    decode = median(run.stats.seconds.decode for run in runs) if runs else seconds.decode
    table.add_row("tokens", f"{stats.new_tokens} ({stats.finish})")
    table.add_row("seconds, all", f"{total:.2f}")
    table.add_row("seconds, decode", f"{decode:.2f}")
    kept = (
        f"none pruned: {stats.drafter} has no model"
        if stats.drafter
        else f"{stats.kept_tokens} of {stats.video_tokens}"
    )
    table.add_row("video tokens kept by the draft", kept)
    table.add_row("KV cache of the target", f"{stats.kv_cache_mib:.0f} MiB")
    table.add_row("gamma", f"{stats.gamma:.1f}")
    table.add_row("tokens per target forward", f"{stats.tokens_per_target_forward:.2f}")
    table.add_row("acceptance rate", f"{stats.acceptance_rate:.1%}")
    table.add_row("run between rejections", f"{stats.run_between_rejections:.1f}")
    if stats.draft_lost:
        table.add_row("draft lost", stats.draft_lost)
    if comparison:
        baseline, speedup = comparison.baselines, comparison.speedup
        table.add_section()
        table.add_row("transformers generate(), seconds", f"{median(b.total for b in baseline):.2f}")
        table.add_row("speedup over AR (generate()), decode", f"{speedup['decode']:.2f}x")
        table.add_row("speedup over AR (generate()), end to end", f"{speedup['end_to_end']:.2f}x" + _spread(comparison))
        if disturbed(comparison):
            note = (
                "the runs differ by more than a factor of two: do not trust the speedup; run again on an idle machine"
            )
            table.add_row("MACHINE DISTURBED", note, style="red")
        table.add_row(
            "identical to AR", {True: "yes", False: "NO", None: "not compared: sampled"}[comparison.identical]
        )
    return table


def phases_line(stats: Stats) -> str:
    """Seconds by phase in one line."""
    return "  ".join(f"{name} {value:.2f}" for name, value in vars(stats.seconds).items())


def disturbed(comparison: Comparison) -> bool:
    """Whether the runs' speedups differ so much that something else had the machine: the figure means nothing."""
    ratios = _ratios(comparison)
    return max(ratios) > DISTURBED * min(ratios)


def _ratios(comparison: Comparison) -> list[float]:
    return [b.total / o.stats.seconds.total for o, b in zip(comparison.outputs, comparison.baselines, strict=True)]


def _spread(comparison: Comparison) -> str:
    ratios = _ratios(comparison)
    return f" ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} runs)" if len(ratios) > 1 else ""
