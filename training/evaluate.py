"""Score a checkpoint on held-out clips: greedy descriptions against the truth, by rule.

    python training/evaluate.py runs/target --clips 200 --out logs/target.quality.json

Clips are written as mp4 and read back, as a user's would be. Seeds 70000 and up were never trained on, nor used for
anything else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import hippo
from hippo.bench.world import Score, make_scene, score, write_clip


def evaluate(job: tuple[str, list[int]]) -> tuple[Score, list[dict[str, object]]]:
    """Describe and score the clips of some seeds, on one thread."""
    checkpoint, seeds = job
    torch.set_num_threads(1)
    total, rows = Score(), []
    with hippo.load(checkpoint) as llm, tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            scene, clip = make_scene(seed), Path(folder) / "clip.mp4"
            write_clip(scene, clip)
            text = llm.generate(clip, method="ar").text
            one = score(text, scene)
            total += one
            rows.append({"seed": seed, "text": text, **vars(one)})
    return total, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--first-seed", type=int, default=70000)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.clips)
    jobs = [(args.checkpoint, list(seeds[start :: args.processes])) for start in range(args.processes)]
    total, rows = Score(), []
    with ProcessPoolExecutor(args.processes) as pool:
        for part, texts in pool.map(evaluate, jobs):
            total, rows = total + part, rows + texts
    summary = {
        "checkpoint": args.checkpoint,
        "seeds": [seeds[0], seeds[-1]],
        "right": {name: round(share, 4) for name, share in total.shares().items()},
        "counts": {name: list(pair) for name, pair in vars(total).items()},
    }
    print(json.dumps(summary, indent=1))
    if args.out:
        args.out.write_text(json.dumps(summary | {"clips": sorted(rows, key=lambda row: row["seed"])}, indent=1) + "\n")


if __name__ == "__main__":
    main()
