"""hippo bench gpu: all that a short time on a GPU can answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hippo.cli import common
from hippo.errors import HippoError


def gpu(
    out: Annotated[Path, typer.Option(help="Folder for the results, as they come, and report.md.")],
    minutes: Annotated[float, typer.Option(min=0, help="For all steps together; each has its share.")] = 10,
    steps: Annotated[str, typer.Option(help="Names, separated by commas; all by default.")] = "",
    size: Annotated[str, typer.Option(help="full, tiny, or auto: tiny on a CPU.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measure what matters on a GPU in ten steps, most telling first, each in a process of its own with a time limit.

    The report is written anew after every step. A step that fails or takes too long is in it with its error.

    Exit code 1 if anything that was tried failed.
    """
    with common.importing():
        from hippo.bench.gpu import REPORT, STEPS, study

    names = [name.strip() for name in steps.split(",")] if steps else list(STEPS)
    for given, known in ((names, list(STEPS)), ([size], ["auto", "tiny", "full"])):
        for name in given:
            if name not in known:
                raise HippoError(f"there is no {name!r} here", f"use some of: {', '.join(known)}")
    common.make_folder(out)
    with common.progressing() as progress:
        good = study(out, minutes, names, size, device, progress)
    common.say((out / REPORT).read_text())
    if not good:
        raise typer.Exit(1)
