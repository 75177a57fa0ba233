"""Put the newest trained pair, and the demo's clip, where the package ships them.

python training/bundle.py --demo-seed 60020
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tiny import TARGET_LAYERS, grow, make_model, make_processor, save
from train import RUNS, STAGES
from transformers import AutoProcessor

from hippo.bench.world import make_scene, write_clip
from hippo.checkpoints import BUNDLED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo-seed", type=int, default=60020)
    parser.add_argument("--bundled", action="store_true", help="keep the tokenizer: the runs began --bundled too")
    args = parser.parse_args()
    processor = AutoProcessor.from_pretrained(BUNDLED / "tiny" / "target") if args.bundled else make_processor()
    for role in ("target", "draft"):
        stages = [stage for stage in STAGES if (RUNS / f"{role}.{stage}.pt").exists()]
        model = make_model(role, processor)
        state = torch.load(RUNS / f"{role}.{stages[-1]}.pt", weights_only=True)
        if role == "target" and stages[-1] != "grow":
            model.load_state_dict(state["model"])
            model = grow(model, TARGET_LAYERS)
        else:
            model = grow(model, TARGET_LAYERS) if role == "target" else model
            model.load_state_dict(state["model"])
        save(model, processor, BUNDLED / "tiny" / role)
        print(json.dumps({"role": role, "stage": stages[-1], "step": state["step"]}))
    write_clip(make_scene(args.demo_seed), Path(BUNDLED / "demo.mp4"))


if __name__ == "__main__":
    main()
