"""hippo models: the families of models, pairs to use, and what was run of each."""

from __future__ import annotations

from json import loads
from typing import TYPE_CHECKING, Any

from hippo.cli.common import BUNDLED, JsonOption, facts_table, importing, print_json, stderr

if TYPE_CHECKING:
    from hippo.families import Family

RUN = (
    "random models of 3 layers, width 64, on a CPU: every method equal to generate() in float32; in bfloat16 too, but "
    "for near ties"
)
RUN_BUNDLED = (
    "the bundled pair, tiny, on a CPU: equal as well, in float32 and bfloat16, and with its target quantised by "
    "bitsandbytes, torchao and quanto; timed in float32"
)
NOT_RUN = "the pairs named here, and any other released checkpoint, of any size: no hub was at hand; float16; a GPU"
TOGETHER = (
    "in one target forward, for every family; a checkpoint with layers that do not keep every token (a sliding window, "
    "linear attention) has a forward for each request, one after another"
)
MEMORY = "of both models' weights in bfloat16, 2 bytes a parameter: by parameter count, not measured"


def models(json: JsonOption = False) -> None:
    """List the families of models, pairs of checkpoints to use, and what was run of each."""
    with importing():
        from hippo.families import FAMILIES

    rows = [_row(family) for family in FAMILIES]
    if json:
        print_json({"families": rows, "memory": MEMORY, "together": TOGETHER, "not run": NOT_RUN})
        return
    facts = {
        row["family"]: {
            "model types": ", ".join(row["model_types"]),
            "target + draft": "\n".join(map(_pair_line, row["pairs"])),
            "run": "\n".join(row["run"]),
            "notes": "\n".join(row["notes"]),
        }
        for row in rows
    }
    stderr.print(facts_table(facts | {"all": {"several requests": TOGETHER, "not run": NOT_RUN, "GiB": MEMORY}}))


def _row(family: Family) -> dict[str, Any]:
    bundled = loads((BUNDLED / "tiny" / "target" / "config.json").read_text())["model_type"]
    return {
        "family": family.card.name,
        "model_types": list(family.model_types),
        "pairs": [
            {
                "target": vars(target),
                "draft": vars(draft),
                "gib": round((target.billions + draft.billions) * 2e9 / 2**30, 1),
            }
            for target, draft in family.card.pairs
        ],
        "run": [RUN, RUN_BUNDLED] if bundled in family.model_types else [RUN],
        "notes": list(family.card.notes),
    }


def _pair_line(pair: dict[str, Any]) -> str:
    target, draft = pair["target"], pair["draft"]
    sizes = f"{target['billions']:.1f} + {draft['billions']:.1f} billion parameters, {pair['gib']:.0f} GiB"
    return f"{target['id']} + {draft['id']}\n  {sizes}"
