"""What choosing the draft's tokens costs beside the target's prefill: seconds, and memory by the number of layers.

    python bench/scoring.py --tokens 1024 16384

The target reads a prompt of so many video tokens, random ones, with its first 6 layers and with all; each prefill runs
in a process of its own, with and without scoring, in turn. Memory is the process's peak, so that of the prefill too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from statistics import median
from typing import Any

import torch

from hippo.checkpoints import BUNDLED
from hippo.clock import clock
from hippo.families import VideoGrid, family_of
from hippo.forward import CachedModel
from hippo.keep import Listener, Signals, listening, pruner_named

PLACES, QUESTION = 8, 16  # a frame is 8 x 8 tokens; so many tokens of text follow the video


@torch.inference_mode()
def prefill(target: str, tokens: int, layers: int, pruner: str) -> dict[str, float]:
    """One prefill, here: its seconds without scoring, those of scoring and choosing, and the peak memory in MiB."""
    import transformers

    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32).eval()
    family = family_of(model)
    text = family.language_model(model)
    del text.layers[layers:]
    text.config.num_hidden_layers = layers
    text.config.layer_types = text.config.layer_types[:layers]
    grid = VideoGrid(tokens // PLACES**2, PLACES, PLACES)
    frame, place = torch.arange(grid.tokens) // PLACES**2, torch.arange(grid.tokens) % PLACES**2
    video = torch.stack([frame, place // PLACES, place % PLACES])
    words = grid.frames + torch.arange(QUESTION).expand(3, -1)
    positions = torch.cat([video, words], dim=1)
    embeds = torch.randn(positions.shape[1], text.config.hidden_size, generator=torch.Generator().manual_seed(0))
    way = pruner_named(pruner)
    at = torch.arange(positions.shape[1])
    listeners = [Listener(at[grid.tokens :], at[: grid.tokens], way.attention, layers)] if way.attention else []
    began = clock(model.device)
    with listening(text, *listeners):
        CachedModel.of(family, model).prefill(embeds, positions, positions[:, -1] + 1)
    read = clock(model.device)
    way.keep(Signals(grid, embeds[: grid.tokens], listeners[0].scores if listeners else None), 0.1)
    heard = sum(listener.seconds for listener in listeners)
    return {
        "prefill": read - began - heard,
        "scoring": heard + clock(model.device) - read,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(BUNDLED / "tiny" / "target"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 16384], help="of video; multiples of 64")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 24])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--here", nargs=3, metavar=("TOKENS", "LAYERS", "PRUNER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(prefill(args.target, int(args.here[0]), int(args.here[1]), args.here[2])))
        return
    print("| video tokens | layers | prefill, s | scoring, s | share | extra memory of scoring, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for tokens in args.tokens:
        for layers in args.layers:
            runs: dict[str, list[dict[str, float]]] = {"hippo": [], "none": []}
            for _ in range(args.runs):
                for pruner, seen in runs.items():
                    command = [sys.executable, __file__, "--target", args.target, "--here"]
                    out = subprocess.run(
                        [*command, str(tokens), str(layers), pruner], check=True, stdout=subprocess.PIPE
                    )
                    seen.append(json.loads(out.stdout))
            ours = {key: median(run[key] for run in runs["hippo"]) for key in runs["hippo"][0]}
            share = median(run["scoring"] / run["prefill"] for run in runs["hippo"])
            extra = ours["peak_mib"] - median(run["peak_mib"] for run in runs["none"])
            print(
                f"| {tokens} | {layers} | {ours['prefill']:.2f} | {ours['scoring']:.3f} | {share:.1%} | {extra:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
