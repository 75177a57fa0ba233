"""hippo world: a clip of the procedural world, and the truth about it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from hippo.cli.common import stderr
from hippo.errors import BadRequest

if TYPE_CHECKING:
    from hippo.bench.world import Scene


def world(
    seed: Annotated[int, typer.Option(help="Fixes everything about the clip. Below 1,000,000: never trained on.")],
    out: Annotated[Path, typer.Option(help="The clip to write, .mp4.")],
    truth: Annotated[Path | None, typer.Option(help="Where to write its exact description, as JSON.")] = None,
) -> None:
    """Render a clip of the procedural world that the bundled pair knows, and write down exactly what it shows."""
    if seed < 0:
        raise BadRequest(f"seed {seed} is negative", "use a whole number from 0 on")
    for path in (out, truth):
        if path is not None and not path.resolve().parent.is_dir():
            raise BadRequest(f"there is no folder {path.resolve().parent}", "make it first")
    if out.suffix != ".mp4":
        raise BadRequest(f"{out} does not end in .mp4", "the clip is written as mp4")
    from hippo.bench.world import make_scene, write_clip

    scene = make_scene(seed)
    with stderr.status(escape(f"drawing {out}")), _whole(out) as clip:
        write_clip(scene, clip)
        if truth is not None:
            with _whole(truth) as file:
                file.write_text(json.dumps(_truth(scene), indent=1) + "\n")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what appears as `path` when the block ends well. A device is written to directly."""
    try:
        if path.exists() and not path.is_file():
            yield path
            return
        with TemporaryDirectory(dir=path.resolve().parent, prefix=".hippo-") as folder:
            yield (written := Path(folder) / path.name)
            written.replace(path.resolve())
    except OSError as error:
        raise BadRequest(f"{path} cannot be written ({error.strerror or error})", "choose another place") from None


def _truth(scene: Scene) -> dict[str, Any]:
    from hippo.bench.world import ask, describe, facts

    rng = random.Random(scene.seed)
    return {
        "seed": scene.seed,
        "seconds": scene.duration,
        "description": describe(scene, rng),
        "facts": [statement.as_dict() for statement in facts(scene)],
        "questions": [dict(zip(("question", "answer"), ask(scene, rng), strict=True)) for _ in range(5)],
        "scene": asdict(scene),
    }
