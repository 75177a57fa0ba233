"""hippo plan: what a pair would bring on this machine, before anything is downloaded or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hippo.cli import common
from hippo.errors import BadRequest

if TYPE_CHECKING:
    from hippo.report.plan import Plan, Sizes

SHAPE = "shape:"  # before the name of one of `hippo.bench.shapes`


def plan(
    target: Annotated[
        str, typer.Option(help="A folder with a config.json, a hub id whose config is cached, shape:NAME, or tiny.")
    ],
    draft: Annotated[
        str | None, typer.Option(help="Likewise, or self: the target in 4 bits. Of a shape: its own, if not given.")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 1024,
    keep_ratio: common.ShareOption = 0.1,
    acceptance: Annotated[
        str, typer.Option(help="Chances that a drafted token is accepted, separated by commas.")
    ] = "0.6,0.7,0.8,0.9,0.95",
    device: common.DeviceOption = "auto",
    draft_device: common.DraftDeviceOption = "auto",
    draft_worker: common.WorkerOption = "auto",
    draft_bits: common.BitsOption = "auto",
    dtype: common.DtypeOption = "auto",
    json: common.JsonOption = False,
) -> None:
    """Predict a pair's speed and memory here, from configurations and this machine's measured rates.

    hippo plan --target shape:qwen2.5-vl-7b --context 16384

    hippo plan --target Qwen/Qwen2.5-VL-7B-Instruct --draft Qwen/Qwen2.5-VL-3B-Instruct
    """
    with common.importing():
        from hippo.report.plan import plan as predict
    common.quieten()
    try:
        rates = [float(one) for one in acceptance.split(",")]
    except ValueError:
        raise BadRequest(f"acceptance {acceptance!r} is no list of numbers", "use some such as 0.6,0.8,0.9") from None
    sizes, other = pair_of(target, draft)
    result = predict(
        sizes,
        other,
        context=context,
        keep_ratio=keep_ratio,
        acceptances=rates,
        device=device,
        draft_device=draft_device,
        draft_worker=draft_worker,
        draft_bits=draft_bits,
        dtype=dtype,
    )
    if json:
        common.print_json(result.as_dict())
    else:
        _show(result)


def pair_of(target: str, draft: str | None) -> tuple[Sizes, Sizes | None]:
    """The sizes of a pair by its names; None for a target that drafts for itself. Raises HippoError."""
    if draft is None and (target == "tiny" or target.startswith(SHAPE)):
        draft = target
    common.require_draft(target, draft)
    if draft == "ngram":
        raise BadRequest("ngram drafts without a model: nothing is known of it beforehand", "try it, as hippo caption")
    return _sizes(target, "target"), None if draft == "self" else _sizes(str(draft), "draft")


def _sizes(name: str, role: str) -> Sizes:
    from hippo.bench.shapes import model_of_shape
    from hippo.checkpoints import BUNDLED
    from hippo.report.plan import sizes_of, sizes_of_model

    if name.startswith(SHAPE):
        return sizes_of_model(model_of_shape(name.removeprefix(SHAPE), role), name)
    return sizes_of(str(BUNDLED / "tiny" / role) if name == "tiny" else name)


def _show(result: Plan) -> None:
    target, draft = result.target, result.draft
    ms = {f"{width} token{'s' * (width > 1)}": f"{1e3 * s:.1f}" for width, s in result.target_seconds.items()}
    used = {result.bits: " (used)"}
    steps = {f"{bits} bits{used.get(bits, '')}": f"{1e3 * s:.1f}" for bits, s in result.draft_seconds.items()}
    facts = {
        "pair": {
            "target": _line(target, result.devices[0], result.dtypes[0]),
            "draft": _line(draft, result.devices[1], result.dtypes[1]) + f", {result.bits} bits, {result.place}",
            "prompt": f"{result.context} tokens",
        },
        "ms of a target forward over": ms,
        "ms of a draft step in": steps,
        "memory": {
            device: f"{needed / 2**30:.1f} GiB needed" + (f", {free / 2**30:.1f} free" if free < 1 << 60 else "")
            for device, (needed, free) in result.memory.items()
        },
    }
    common.stderr.print(common.facts_table(facts))
    table = Table("acceptance", "in turns", "parallel", "best", "gamma")
    for choice in result.choices:
        parallel = "" if choice.parallel is None else f"{choice.parallel:.2f}x"
        gamma = {"plain": "", "in turns": choice.gamma, "parallel": choice.parallel_gamma}[choice.best]
        table.add_row(f"{choice.acceptance:g}", f"{choice.in_turns:.2f}x", parallel, choice.best, str(gamma))
    common.stderr.print(table)
    common.stderr.print("speeds are over plain decoding, predicted and not measured", style="dim")
    common.say(result.sentence + "\n")
    if result.short:
        common.warn(f"not enough memory: {result.short}")


def _line(sizes: Sizes, device: str, dtype: str) -> str:
    return f"{sizes.name}, {sizes.read / 1e9:.2f} + {sizes.rest / 1e9:.2f} billion weights, {dtype}, {device}"
