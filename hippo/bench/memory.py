"""Peak memory of one answer, the draft's process included: what a machine must hold. Linux only."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def peak(arguments: list[str]) -> int | None:
    """The most bytes that `python ARGUMENTS` and the processes it starts hold at once; None where that is not known.

    Memory is PSS, the proportional share: pages that processes share are counted once between them. Looked at fifty
    times a second.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, sum(held(pid) for pid in with_children(process.pid)))
        time.sleep(0.02)
    return most if process.returncode == 0 else None


def with_children(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(grandchild for child in children for grandchild in with_children(int(child)))]


def held(pid: int) -> int:
    """Bytes of PSS of a process; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
