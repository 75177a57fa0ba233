"""hippo world: a clip of the procedural world, and the truth about it."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hippo.cli.common import stderr
from hippo.errors import HippoError
from hippo.world import Scene, ask, describe, facts, make_scene, write_clip


def world(
    seed: Annotated[int, typer.Option(help="Fixes everything about the clip. Below 1,000,000: never trained on.")],
    out: Annotated[Path, typer.Option(help="The clip to write, .mp4.")],
    truth: Annotated[Path | None, typer.Option(help="Where to write its exact description, as JSON.")] = None,
) -> None:
    """Render a clip of the procedural world that the bundled pair knows, and write down exactly what it shows."""
    if seed < 0:
        raise HippoError(f"seed {seed} is negative", "use a whole number from 0 on")
    for path in (out, truth):
        if path is not None and not path.resolve().parent.is_dir():
            raise HippoError(f"there is no folder {path.resolve().parent}", "make it first")
    if out.suffix != ".mp4":
        raise HippoError(f"{out} does not end in .mp4", "the clip is written as mp4")
    scene = make_scene(seed)
    try:
        with stderr.status(escape(f"drawing {out}")):
            write_clip(scene, out)
        if truth is not None:
            truth.write_text(json.dumps(_truth(scene), indent=1) + "\n")
    except OSError as error:
        raise HippoError(
            f"{error.filename or out} cannot be written ({error.strerror})", "choose another place"
        ) from None


def _truth(scene: Scene) -> dict[str, Any]:
    rng = random.Random(scene.seed)
    return {
        "seed": scene.seed,
        "seconds": scene.duration,
        "description": describe(scene, rng),
        "facts": [statement.as_dict() for statement in facts(scene)],
        "questions": [dict(zip(("question", "answer"), ask(scene, rng), strict=True)) for _ in range(5)],
        "scene": asdict(scene),
    }
