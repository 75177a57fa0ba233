"""hippo demo: a bundled clip, the bundled pair, and how much faster the same words come."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hippo.cli import common

CLIP = common.BUNDLED / "demo.mp4"


def demo(
    method: Annotated[str, typer.Option(help="sd, pearl or hippo.")] = "hippo",
    runs: Annotated[int, typer.Option(min=1, help="Runs of each; the table shows medians.")] = 5,
    json: common.JsonOption = False,
) -> None:
    """Describe a bundled clip with the bundled pair, and compare with transformers' generate() on the same models.

    The two models are toys, trained on coloured shapes; the decoder is the one for every model.
    """
    options: dict[str, Any] = {"method": method}
    common.params_of(options)
    request: dict[str, Any] = {"video": CLIP}
    short = options | {"max_new_tokens": 8}
    with common.loaded("tiny", None) as llm:
        with common.stderr.status("warming up"):
            common.compare(llm, request, short, 1, llm.generate(**request, **short))
        output = llm.generate(**request, **options, on_text=None if json else common.say)
        if not json:
            common.say("\n")
        common.close(output, common.compare(llm, request, options, runs, output), json, [CLIP])
