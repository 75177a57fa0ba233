"""hippo doctor: what is installed, what was found, what will be used and why."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from hippo.cli.common import BUNDLED, JsonOption, facts_table, importing, print_json, quieten, stderr, versions
from hippo.cli.plan import pair_of


def doctor(
    target: Annotated[
        str | None, typer.Option(help="Also say what this pair would bring; names as in hippo plan.")
    ] = None,
    draft: Annotated[str | None, typer.Option(help="Its draft, or self: the target in 4 bits.")] = None,
    json: JsonOption = False,
) -> None:
    """Show versions, devices and video decoders, and what hippo will use and why.

    With a pair, also what to expect of it here; `hippo plan` has the whole table.
    """
    with importing():
        import hippo.llm  # noqa: F401, for what is imported below
        from hippo.video import available_backends

    decoders = available_backends()
    facts = {
        "versions": versions(),
        "video decoders": decoders,
        "devices": _devices(),
        "will use": _plan(torchcodec=decoders["torchcodec"][:1].isdigit()),
    }
    if target is not None:
        facts["pair"] = _pair(target, draft)
    if json:
        print_json(facts)
    else:
        stderr.print(facts_table(facts))


def _pair(target: str, draft: str | None) -> dict[str, str]:
    from hippo.report.plan import plan

    quieten()
    result = plan(*pair_of(target, draft))
    return {"expect": result.sentence, "memory": result.short or "both models fit"}


def _devices() -> dict[str, str]:
    import torch

    from hippo.device import cores

    found = {"cpu": f"{platform.processor() or platform.machine()}, {cores()} cores"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return found


def _graphs(device: str) -> str:
    """Whether forwards can be recorded there, and why the last that could not was not."""
    import torch

    from hippo.forward.cuda_graphs import last_failure, why_no_graphs

    reason, last = why_no_graphs(torch.device(device)), last_failure()
    now = f"not used, {reason}" if reason else "can be recorded"
    return now + (f"; a model went on without them on {last}" if last else "")


def _plan(torchcodec: bool) -> dict[str, str]:
    import torch

    from hippo.checkpoints import pick_device
    from hippo.device import cores, has_bfloat16, shares
    from hippo.draft.child import may_fork
    from hippo.families import FAMILIES

    device, gpus = pick_device("auto"), torch.cuda.device_count()
    target, draft = shares()
    plan = {"video decoder": "torchcodec: it imports" if torchcodec else "pyav: torchcodec does not work here"}
    if gpus == 0:
        plan["target"] = f"cpu, {target} of {cores()} threads: there is no GPU"
        plan["draft"] = f"cpu, in its own process, {draft} of {cores()} threads: each model has cores of its own"
        plan["draft's process"] = "a fork of this one" if may_fork("cpu", draft) else "a fresh interpreter"
        half = "bfloat16 for models that are stored so and are large: this CPU has products for it; else "
        plan["dtype"] = (half if has_bfloat16() else "") + "float32"
        plan["draft of a large pair"] = "inline, in turns with the target: both read from one memory"
        plan["forwards"] = "fused while decoding, for layers laid out like Llama's; `hippo verify` says if yours are"
        plan["CUDA graphs"] = "not used, there is no GPU"
    else:
        others = "; all of them if it is too large for one, or a part on each under torchrun" if gpus > 1 else ""
        plan["target"] = f"{device}: the first GPU{others}"
        plan["draft"] = (
            "cuda:1, in its own process: a GPU of its own"
            if gpus > 1
            else f"{device}, in a thread, on a stream of its own: there is no second GPU, and two processes take turns"
        )
        plan["dtype"] = "the checkpoint's own"
        plan["forwards"] = "fused and recorded as CUDA graphs while decoding, for layers laid out like Llama's"
        plan["CUDA graphs"] = _graphs(device)
    plan["families"] = ", ".join(name for family in FAMILIES for name in family.model_types)
    there = all(any((BUNDLED / "tiny" / role).glob("*.safetensors")) for role in ("target", "draft"))
    plan["bundled pair"] = "there" if there else "missing: reinstall hippo-video"
    return plan
