"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

import torch


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be had on a device; of the machine's own memory a very large number where nobody tells."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62)
