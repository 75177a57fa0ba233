"""Plots of the studies, by matplotlib, which only they need."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hippo.errors import HippoError


def require() -> None:
    """Raises HippoError if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise HippoError("plots need matplotlib", "pip install 'hippo-video[bench]', or leave --out away")


def draw(result: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """accepted.png: tokens per target forward over the keep ratio, a line a pruner, a panel a kind of prompt.
    edges.png: bias, likewise. result: see `hippo.bench.pruning.summary`."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    kinds = sorted({row["prompt_kind"] for row in result["rows"]})
    for name, value, label in (
        ("accepted.png", "tokens_per_target_forward", "tokens per target forward"),
        ("edges.png", "bias", "bias"),
    ):
        figure = Figure(figsize=(6.4 * len(kinds) + 2.4, 5.6), layout="constrained")
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for panel, kind in zip(panels, kinds, strict=True):
            rows = [row for row in result["rows"] if row["prompt_kind"] == kind]
            for number, pruner in enumerate(dict.fromkeys(row["pruner"] for row in rows)):
                line = sorted((row["keep_ratio"], row[value]) for row in rows if row["pruner"] == pruner)
                style: dict[str, Any] = {"color": colormaps["tab20"](number % 20), "label": pruner}
                if len(line) == 1 and pruner in ("none", "blind"):
                    panel.axhline(line[0][1], linestyle=":", **style)
                elif pruner == "hippo":
                    panel.plot(*zip(*line, strict=True), marker="o", linewidth=3.5, zorder=3, **style | {"color": "k"})
                else:
                    dashed = "--" if pruner.startswith("hippo-") else "-"
                    panel.plot(*zip(*line, strict=True), marker=".", linewidth=1, linestyle=dashed, **style)
            panel.set(title=kind, xlabel="keep ratio", ylabel=label, xscale="log")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
        figure.savefig(folder / name, dpi=110)
