"""hippo doctor: what is installed, what was found, what will be used and why."""

from __future__ import annotations

import platform

import torch
from rich.table import Table

from hippo.checkpoints import BUNDLED, pick_device
from hippo.cli.common import JsonOption, print_json, stderr, versions
from hippo.draft.child import may_fork
from hippo.families import FAMILIES
from hippo.products import onednn_gain
from hippo.threads import cores, shares
from hippo.video import available_backends


def doctor(json: JsonOption = False) -> None:
    """Show versions, devices and video decoders, and what hippo will use and why."""
    facts = {
        "versions": versions(),
        "video decoders": available_backends(),
        "devices": _devices(),
        "will use": _plan(),
    }
    if json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for title, rows in facts.items():
        table.add_row(f"[bold]{title}[/bold]", "")
        for name, value in rows.items():
            table.add_row("  " + name, value)
    stderr.print(table)


def _devices() -> dict[str, str]:
    found = {"cpu": f"{platform.processor() or platform.machine()}, {cores()} cores"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return found


def _plan() -> dict[str, str]:
    device, gpus = pick_device("auto"), torch.cuda.device_count()
    target, draft = shares()
    decoder = "torchcodec" if _works("torchcodec") else "pyav"
    why = "it imports" if decoder == "torchcodec" else "torchcodec does not work here"
    plan = {"video decoder": f"{decoder}: {why}"}
    if gpus == 0:
        plan["target"] = f"cpu, {target} of {cores()} threads: there is no GPU"
        plan["draft"] = f"cpu, in its own process, {draft} of {cores()} threads: so that the two do not fight for cores"
        plan["draft's process"] = "a fork of this one" if may_fork("cpu", draft) else "a fresh interpreter"
        plan["dtype"] = "float32: half precision is slow on a CPU and makes near ties frequent"
        gain = onednn_gain()
        faster = f"oneDNN's, {gain:.1f} times as fast here" if gain else "torch's own: oneDNN's are no faster here"
        plan["matrix products"] = faster
        plan["forwards"] = "fused while decoding, for layers laid out like Llama's; `hippo verify` says if yours are"
    else:
        others = "; all of them if it is too large for one, or a part on each under torchrun" if gpus > 1 else ""
        plan["target"] = f"{device}: the first GPU{others}"
        plan["draft"] = (
            "cuda:1, in its own process: a GPU of its own"
            if gpus > 1
            else f"{device}, in a thread, on a stream of its own: there is no second GPU, and two processes take turns"
        )
        plan["dtype"] = "the checkpoint's own"
        plan["forwards"] = "recorded as CUDA graphs while decoding, for layers laid out like Llama's"
    plan["families"] = ", ".join(name for family in FAMILIES for name in family.model_types)
    there = all(any((BUNDLED / "tiny" / role).glob("*.safetensors")) for role in ("target", "draft"))
    plan["bundled pair"] = "there" if there else "missing: reinstall hippo-video"
    return plan


def _works(backend: str) -> bool:
    return available_backends()[backend][:1].isdigit()
