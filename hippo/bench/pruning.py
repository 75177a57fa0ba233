"""Which way of keeping tokens lets the target accept most? Every pruner at every ratio on the same held-out clips."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hippo.bench.oracle import search
from hippo.bench.pruners import pruner_named
from hippo.bench.replay import Counts, replay
from hippo.bench.traces import draft_rows
from hippo.bench.world import Scene, ask, make_scene, write_clip
from hippo.bench.world.render import SIDE
from hippo.draft.worker import load_draft
from hippo.families import VideoGrid, family_of
from hippo.forward import CachedModel
from hippo.inputs import on_device
from hippo.llm import VideoLLM
from hippo.pruning import Pruner, Signals, recording
from hippo.video import read_video

KINDS = ("description", "question")
WITHOUT_RATIO = {"none": 1.0, "blind": 0.0}  # pruners that keep everything or nothing, whatever the ratio
ORACLE = "oracle"  # beside the pruners: it knows the answer
ORACLE_STEPS = 150
_RESAMPLES = 2000


@dataclass(frozen=True)
class Sample:
    """One pruner at one ratio on one request. overlap: mean of sum min(p, q) over the answer's places. edge_excess: see
    `edge_excess`; ground_edge_excess: the same among places that show no object, which have nothing but their place to
    be chosen for. scoring_share_of_prefill: seconds of scoring and choosing over those of the target's prefill."""

    seed: int
    prompt_kind: str
    pruner: str
    keep_ratio: float
    tokens: int
    tokens_per_target_forward: float
    acceptance_rate: float
    run_between_rejections: float
    overlap: float
    edge_excess: float
    ground_edge_excess: float
    scoring_share_of_prefill: float


def requests(first_seed: int, clips: int) -> Iterator[tuple[int, str, str]]:
    """(seed, kind, prompt) of each request: a description of every clip, and what one of its objects does."""
    for seed in range(first_seed, first_seed + clips):
        yield seed, "description", "Describe the video in detail."
        rng, question = random.Random(seed), ""
        while not question.startswith("What does"):
            question = ask(make_scene(seed), rng)[0]
        yield seed, "question", question


def study(
    llm: VideoLLM,
    seeds: tuple[int, int],
    pruners: Sequence[str],
    ratios: Sequence[float],
    gamma: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Iterator[Sample]:
    """Samples, request by request. seeds: (first, number of clips). pruners: names, ORACLE among them if it is wanted.
    gamma: of the serial decoder that is replayed."""
    todo = list(requests(*seeds))
    chosen = [pruner_named(name) for name in pruners if name != ORACLE]
    steps = ORACLE_STEPS if ORACLE in pruners else 0
    draft = load_draft(
        llm.pair.require_draft().checkpoint, "float32", "cpu", llm.pair.require_draft().trust_remote_code
    )
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        for done, (seed, kind, prompt) in enumerate(todo):
            if kind == "description":
                write_clip(make_scene(seed), clip)
            yield from _request(llm, draft, clip, prompt, (seed, kind), chosen, ratios, gamma, steps)
            progress((done + 1) / len(todo))


@torch.no_grad()
def _request(
    llm: VideoLLM,
    draft: Any,
    clip: Path,
    question: str,
    labels: tuple[int, str],
    pruners: Sequence[Pruner],
    ratios: Sequence[float],
    gamma: int,
    oracle_steps: int,
) -> Iterator[Sample]:
    limit = 256
    video = read_video(clip)
    inputs = llm.inputs(video, question)
    answer = llm.generate(video, question, method="ar", max_new_tokens=limit).token_ids
    here = on_device(inputs, llm.pair.target.device)
    prompt = llm.pair.family.prepare_prompt(llm.pair.target.config, here)
    grid = prompt.grids[0]
    scene = make_scene(labels[0])
    bare = ground(scene, [time / scene.duration for time in video.timestamps], grid)
    embeds = llm.pair.family.embed(llm.pair.target, here)
    reader = CachedModel.of(llm.pair.family, llm.pair.target)
    wanted = {pruner.attention for pruner in pruners if pruner.attention}
    recorders = {attention: llm.pair.recorder(prompt, attention) for attention in wanted}
    began = time.perf_counter()
    with recording(*recorders.values()):
        reader.read(embeds, prompt)
    prefill = time.perf_counter() - began - sum(recorder.seconds for recorder in recorders.values())
    if len(answer) < 2:
        return
    expected = reader.extend(answer[:-1])
    common = min(expected.shape[-1], draft.get_output_embeddings().weight.shape[0])  # one may be padded
    family = family_of(draft)
    there = on_device(inputs, draft.device)
    draft_prompt, draft_embeds = family.prepare_prompt(draft.config, there), family.embed(draft, there)

    def outcome(kept: Tensor) -> tuple[Counts, float]:
        """What the replayed decoder counts, and the overlap, if the draft sees the video tokens `kept`."""
        rows = draft_rows(family, draft, draft_prompt, draft_embeds, kept, answer[:-1])[:, :common].cpu()
        right = (rows.argmax(-1) == torch.tensor(answer[1:])).tolist()
        both = torch.minimum(expected[:, :common].cpu().softmax(-1), rows.softmax(-1))
        return replay(right, gamma, limit - 1), float(both.sum(-1).mean())

    def sample(pruner: str, ratio: float, kept: Tensor, scoring: float) -> Sample:
        counts, overlap = outcome(kept)
        return Sample(
            *labels,
            pruner,
            ratio,
            len(answer),
            counts.tokens_per_target_forward,
            counts.acceptance_rate,
            counts.run_between_rejections,
            overlap,
            edge_excess(kept, grid),
            edge_excess(kept, grid, bare),
            scoring / prefill,
        )

    def merit(kept: Tensor) -> float:
        counts, overlap = outcome(kept)
        return counts.tokens_per_target_forward + 0.01 * overlap  # overlap decides between equals

    chosen: dict[float, list[Tensor]] = {}
    for pruner in pruners:
        recorder = recorders.get(pruner.attention) if pruner.attention else None
        signals = Signals(grid, embeds.tokens[prompt.video_at], recorder.scores if recorder else None)
        for ratio in [WITHOUT_RATIO[pruner.name]] if pruner.name in WITHOUT_RATIO else ratios:
            began = time.perf_counter()
            kept = pruner.keep(signals, ratio)
            scoring = time.perf_counter() - began + (recorder.seconds if recorder else 0.0)
            chosen.setdefault(ratio, []).append(kept)
            yield sample(pruner.name, ratio, kept, scoring)
    if oracle_steps:
        for ratio in ratios:
            if ratio in chosen:
                yield sample(ORACLE, ratio, search(chosen[ratio], merit, oracle_steps, labels[0]), 0.0)


def edge_excess(kept: Tensor, grid: VideoGrid, among: Tensor | None = None) -> float:
    """How much oftener than chance kept tokens lie in the first or last frame or at a frame's edge: their share of the
    kept tokens over their share of all places, less one. 0 is no bias; nothing kept counts as 0. Our choice.

    among: (V,) bool, count only these places.
    """
    edge = torch.zeros(grid.frames, grid.rows, grid.columns)
    edge[[0, -1]] = edge[:, [0, -1]] = edge[:, :, [0, -1]] = 1.0
    edge = grid.of_tokens(edge.flatten())
    among = torch.ones(grid.tokens, dtype=torch.bool) if among is None else among
    kept = kept[among[kept]]
    return float(edge[kept].mean() / edge[among].mean() - 1) if len(kept) else 0.0


def ground(scene: Scene, times: Sequence[float], grid: VideoGrid) -> Tensor:
    """(V,) bool: the places where no object shows in any frame of their step. times: of the frames, shares of the clip,
    equally many a step."""
    bare = torch.ones(grid.frames, grid.rows, grid.columns, dtype=torch.bool)
    across = ((torch.arange(grid.columns) + 0.5) / grid.columns)[None, :]
    down = ((torch.arange(grid.rows) + 0.5) / grid.rows)[:, None]
    reach = 0.71 / min(grid.rows, grid.columns)  # from a place's centre to its corner
    for number, moment in enumerate(times):
        step = number * grid.frames // len(times)
        for thing in scene.things:
            look = thing.look(moment)
            if look.visible:
                bare[step] &= (across - look.x) ** 2 + (down - look.y) ** 2 > (look.radius / SIDE + reach) ** 2
    return grid.of_tokens(bare.flatten())


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over clips and its 95 % interval, by bootstrap."""
    array = np.asarray(values)
    picks = np.random.default_rng(0).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.percentile(array[picks].mean(axis=1), (2.5, 97.5))
    return float(array.mean()), float(low), float(high)


def summary(samples: Sequence[Sample]) -> dict[str, list[dict[str, Any]]]:
    """rows: means over the clips for each pruner, ratio and kind of prompt. paired: how much more tokens a target
    forward brings with `hippo` than with each other pruner on the same request, with the 95 % interval."""
    groups: dict[tuple[str, float, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.pruner, sample.keep_ratio, sample.prompt_kind), []).append(sample)
    rows, paired = [], []
    for (pruner, ratio, kind), group in groups.items():
        mean, low, high = interval([s.tokens_per_target_forward for s in group])
        rows.append(
            {
                "pruner": pruner,
                "keep_ratio": ratio,
                "prompt_kind": kind,
                "clips": len(group),
                "tokens_per_target_forward": mean,
                "interval": [low, high],
                "acceptance_rate": float(np.mean([s.acceptance_rate for s in group])),
                "run_between_rejections": float(np.mean([s.run_between_rejections for s in group])),
                "overlap": float(np.mean([s.overlap for s in group])),
                "bias": float(np.mean([s.ground_edge_excess for s in group])),
                "edge_excess": float(np.mean([s.edge_excess for s in group])),
                "scoring_share_of_prefill": float(np.median([s.scoring_share_of_prefill for s in group])),
            }
        )
        for at in sorted({r for p, r, k in groups if p == "hippo" and k == kind}):
            if pruner == "hippo" or (pruner not in WITHOUT_RATIO and at != ratio):
                continue
            ours = {s.seed: s.tokens_per_target_forward for s in groups["hippo", at, kind]}
            mean, low, high = interval([ours[s.seed] - s.tokens_per_target_forward for s in group])
            paired.append(
                {"pruner": pruner, "keep_ratio": at, "prompt_kind": kind, "hippo_minus": mean, "low": low, "high": high}
            )
    return {"rows": rows, "paired": paired}
