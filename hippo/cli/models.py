"""hippo models: the families of models there are, pairs to use, and what was run of each."""

from __future__ import annotations

from json import loads
from typing import Any

from rich.table import Table

from hippo.checkpoints import BUNDLED
from hippo.cli.common import JsonOption, print_json, stderr
from hippo.families import FAMILIES, Family, Released

RUN = (
    "random models of 3 layers, width 64, on a CPU: every method equal to generate() in float32; in bfloat16 too, but "
    "for near ties"
)
RUN_BUNDLED = (
    "the bundled pair, tiny, on a CPU: equal as well, in float32 and bfloat16, and with its target quantised by "
    "bitsandbytes, torchao and quanto; timed in float32"
)
NOT_RUN = "the pairs named here, and any other released checkpoint, of any size: no hub was at hand; float16; a GPU"
MEMORY = "of both models' weights in bfloat16, 2 bytes a parameter: by parameter count, not measured"


def models(json: JsonOption = False) -> None:
    """List the families of models there are, pairs of checkpoints to use, and what was run of each."""
    rows = [_row(family) for family in FAMILIES]
    if json:
        print_json({"families": rows, "memory": MEMORY, "not run": NOT_RUN})
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(f"[bold]{row['family']}[/bold]", ", ".join(row["model_types"]))
        for pair in row["pairs"]:
            target, draft = pair["target"], pair["draft"]
            sizes = f"{target['billions']:.1f} + {draft['billions']:.1f} billion parameters, {pair['gib']:.0f} GiB"
            table.add_row("  target + draft", f"{target['id']} + {draft['id']}\n  {sizes}")
        for title in ("run", "notes"):
            table.add_row(f"  {title}", "\n".join(row[title]))
    table.add_row("[bold]all[/bold]", "")
    table.add_row("  not run", NOT_RUN)
    table.add_row("  GiB", MEMORY)
    stderr.print(table)


def _row(family: Family) -> dict[str, Any]:
    bundled = loads((BUNDLED / "tiny" / "target" / "config.json").read_text())["model_type"]
    return {
        "family": family.card.name,
        "model_types": list(family.model_types),
        "pairs": [
            {"target": vars(target), "draft": vars(draft), "gib": _gib(target, draft)}
            for target, draft in family.card.pairs
        ],
        "run": [RUN, RUN_BUNDLED] if bundled in family.model_types else [RUN],
        "notes": list(family.card.notes),
    }


def _gib(*checkpoints: Released) -> float:
    return round(sum(checkpoint.billions for checkpoint in checkpoints) * 2e9 / 2**30, 1)
