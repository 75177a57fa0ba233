"""hippo bench table: what lmms-eval measured, as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hippo.cli import common


def table(
    results: Annotated[Path, typer.Option(help="A folder of lmms-eval's: what --output_path named.")],
    json: common.JsonOption = False,
) -> None:
    """Show speedup, tokens per forward and acceptance by benchmark and method, from result files of lmms-eval.

    A speedup is over method=ar with the same other arguments and the same documents.

    hippo bench table --results results/
    """
    from hippo.bench.table import rows

    found = rows(results)
    if json:
        common.print_json({"rows": found})
        return
    columns = (
        *("benchmark", "method", "answers", "failed", "tokens", "tokens a second", "speedup", "decode speedup"),
        *("tokens a target forward", "acceptance", "prompt cached"),
    )
    common.say("| " + " | ".join(columns) + " |\n" + "|" + " --- |" * len(columns) + "\n")
    for row in found:
        common.say("| " + " | ".join(_cells(row)) + " |\n")


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["benchmark"],
        row["method"],
        str(row["answered"]),
        str(row["failed"]),
        str(row["tokens"]),
        f"{row['tokens_per_second']:.1f}",
        *("" if row[name] is None else f"{row[name]:.2f}x" for name in ("speedup", "decode_speedup")),
        f"{row['tokens_per_forward']:.2f}",
        "" if row["acceptance_rate"] is None else f"{row['acceptance_rate']:.1%}",
        f"{row['cached']:.0%}",
    ]
