"""Peak memory of one answer, the draft's process included: what a machine must hold. Linux only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

EVERY = 0.02  # seconds between two looks


def peak(arguments: list[str], out: Path = Path(os.devnull)) -> int | None:
    """The most bytes that `python ARGUMENTS` and the processes it starts hold at once; None where that is not known, or
    it fails. out: where its standard output goes.

    Memory is PSS, the proportional share: pages that processes share are counted once between them.
    """
    most = 0
    with out.open("wb") as file:
        process = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            most = max(most, sum(held(pid) for pid in with_children(process.pid)))
            time.sleep(EVERY)
    return most if most and process.returncode == 0 else None


def with_children(pid: int) -> list[int]:
    """A process and its descendants."""
    try:  # a thread has those that it started
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(grandchild for child in children for grandchild in with_children(int(child)))]


def held(pid: int, kinds: tuple[str, ...] = ("Pss",)) -> int:
    """Bytes of PSS of a process; 0 if it is gone. kinds: fields of /proc/PID/smaps_rollup."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.partition(":")[0] in kinds)
