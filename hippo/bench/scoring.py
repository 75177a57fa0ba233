"""What choosing the draft's tokens costs beside the target's prefill: seconds, and memory by the number of layers."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from hippo.device import clock
from hippo.draft.worker import load_draft
from hippo.families import Embeds, Family, VideoGrid, family_of
from hippo.forward import CachedModel
from hippo.pruning import AttentionRecorder, Signals, pruner_named, recording

PLACES, QUESTION = 8, 16  # a frame is 8 x 8 tokens; so many tokens of text follow the video


def costs(
    target: str,
    tokens: Sequence[int],
    layers: Sequence[int],
    runs: int,
    progress: Callable[[str, float], None],
) -> list[dict[str, Any]]:
    """Rows, one for each number of video tokens (multiples of 64) and of the target's first layers: the seconds of a
    prefill over random tokens, those of scoring and choosing, and the extra peak memory in MiB of scoring. Each prefill
    runs in a process of its own, with and without scoring, in turn; memory is the process's peak."""
    rows = []
    todo = [(count, depth) for count in tokens for depth in layers]
    for done, (count, depth) in enumerate(todo):
        seen: dict[str, list[dict[str, float]]] = {"hippo": [], "none": []}
        for _ in range(runs):
            for pruner, ones in seen.items():
                progress(f"{count} video tokens, {depth} layers", done / len(todo))
                arguments = ["-m", "hippo.bench.scoring", target, str(count), str(depth), pruner]
                out = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE)
                ones.append(json.loads(out.stdout))
        ours, others = seen["hippo"], seen["none"]
        rows.append(
            {
                "video_tokens": count,
                "layers": depth,
                "prefill_seconds": median(run["prefill"] for run in ours),
                "scoring_seconds": median(run["scoring"] for run in ours),
                "share": median(run["scoring"] / run["prefill"] for run in ours),
                "extra_mib": median(run["peak_mib"] for run in ours) - median(run["peak_mib"] for run in others),
            }
        )
    return rows


@torch.inference_mode()
def prefill(target: str, tokens: int, layers: int, pruner: str) -> dict[str, float]:
    """One prefill, here, after a small one: its seconds without scoring, those of scoring and choosing, and the peak
    memory in MiB."""
    model: Any = load_draft(target, "float32", "cpu")
    family = family_of(model)
    text: Any = family.language_model(model)
    del text.layers[layers:]
    text.config.num_hidden_layers = layers
    text.config.layer_types = text.config.layer_types[:layers]
    _measured(family, model, 4 * PLACES**2, layers, pruner)  # to warm up, far below the peak
    return _measured(family, model, tokens, layers, pruner)


def _measured(family: Family, model: Any, tokens: int, layers: int, pruner: str) -> dict[str, float]:
    text: Any = family.language_model(model)
    grid = VideoGrid(tokens // PLACES**2, PLACES, PLACES)
    frame, place = torch.arange(grid.tokens) // PLACES**2, torch.arange(grid.tokens) % PLACES**2
    video = torch.stack([frame, place // PLACES, place % PLACES])
    words = grid.frames + torch.arange(QUESTION).expand(3, -1)
    positions = torch.cat([video, words], dim=1)
    embeds = torch.randn(positions.shape[1], text.config.hidden_size, generator=torch.Generator().manual_seed(0))
    way = pruner_named(pruner)
    at = torch.arange(positions.shape[1])
    recorders = (
        [AttentionRecorder(at[grid.tokens :], at[: grid.tokens], way.attention, layers)] if way.attention else []
    )
    began = clock(model.device)
    with recording(*recorders):
        CachedModel.of(family, model).prefill(Embeds(embeds), positions, positions[:, -1] + 1)
    read = clock(model.device)
    way.keep(Signals(grid, embeds[: grid.tokens], recorders[0].scores if recorders else None), 0.1)
    scoring = sum(recorder.seconds for recorder in recorders)
    return {
        "prefill": read - began - scoring,
        "scoring": scoring + clock(model.device) - read,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    _, source, count, depth, pruner = sys.argv
    print(json.dumps(prefill(source, int(count), int(depth), pruner)))
