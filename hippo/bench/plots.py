"""Plots of the studies, by matplotlib, which only they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hippo.errors import HippoError
from hippo.trace import Span

PICTURES = (".svg", ".png", ".pdf")
_COLOURS = {"vision": "tab:gray", "prefill": "tab:olive", "verify": "tab:blue", "propose": "tab:orange"}
_ROUNDS = 16  # target forwards after the prompt that are shown enlarged


def require() -> None:
    """Raises HippoError if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise HippoError("plots need matplotlib", "pip install 'hippo-video[bench]', or ask for no plots")


def require_picture(file: Path) -> None:
    """Raises HippoError unless a picture can be drawn into this file."""
    require()
    if file.suffix not in PICTURES:
        raise HippoError(f"{file} is no picture that can be drawn", f"end its name in {', '.join(PICTURES)}")
    if not file.resolve().parent.is_dir():
        raise HippoError(f"there is no folder {file.resolve().parent}", "make it first")


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


def draw_timeline(timelines: Mapping[str, Sequence[Span]], file: Path) -> None:
    """Who worked when: a row of panels for each name, the target above the draft. Left the whole request, right its
    first target forwards after the prompt. file: its end, one of PICTURES, says what kind of picture."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(13, 1 + 1.4 * len(timelines)), layout="constrained")
    for (name, spans), panels in zip(timelines.items(), figure.subplots(len(timelines), 2, squeeze=False), strict=True):
        for panel in panels:
            for row, who in enumerate(("draft", "target")):
                for what, colour in _COLOURS.items():
                    bars = [(s.began, s.ended - s.began) for s in spans if (s.who, s.what) == (who, what)]
                    panel.broken_barh(bars, (row + 0.1, 0.8), color=colour, edgecolor="white", linewidth=0.2)
            panel.set(yticks=(0.5, 1.5), yticklabels=("draft", "target"), ylim=(0, 2), title=name)
        verified = [span for span in spans if span.what == "verify"][:_ROUNDS]
        if verified:
            panels[1].set_xlim(verified[0].began, verified[-1].ended)
            panels[1].set_title(f"{name}, {len(verified)} target forwards after the prompt")
    for panel in figure.axes[-2:]:
        panel.set_xlabel("seconds since the request was submitted")
    handles = [Patch(color=colour, label=what) for what, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    figure.savefig(file, dpi=110)
