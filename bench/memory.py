"""Peak memory of a method and of plain AR, draft's process included: what a machine must hold (Linux only).

    python bench/memory.py

Memory is PSS, the proportional share: pages that processes share are counted once between them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from hippo.checkpoints import BUNDLED
from hippo.cli.demo import CLIP


def family_of(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(grandchild for child in children for grandchild in family_of(int(child)))]


def held(pid: int) -> int:
    """Bytes of PSS of a process; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def peak(method: str, target: str, draft: str, video: str) -> int:
    """Peak bytes over a whole `hippo caption`."""
    command = [sys.executable, "-m", "hippo", "caption", video, "--target", target, "--draft", draft]
    command += ["--method", method]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, sum(held(pid) for pid in family_of(process.pid)))
        time.sleep(0.02)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(BUNDLED / "tiny" / "target"))
    parser.add_argument("--draft", default=str(BUNDLED / "tiny" / "draft"))
    parser.add_argument("--video", default=str(CLIP))
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    bytes_of = {
        m: median(peak(m, args.target, args.draft, args.video) for _ in range(args.runs)) for m in ("ar", "hippo")
    }
    # bfloat16 on disk, float32 on a CPU.
    weights = 2 * sum(file.stat().st_size for file in Path(args.draft).glob("*.safetensors"))
    over = (bytes_of["hippo"] - weights) / bytes_of["ar"] - 1
    megabytes = {method: round(value / 2**20) for method, value in bytes_of.items()}
    print(
        json.dumps({"peak_mib": megabytes, "draft_weights_mib": round(weights / 2**20), "over_ar_beyond_weights": over})
    )


if __name__ == "__main__":
    main()
