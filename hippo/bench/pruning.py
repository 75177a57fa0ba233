"""Which way of keeping tokens lets the target accept most, and which number of them is fastest? Every choice on the
same held-out clips."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hippo.bench.choices import CHOICES
from hippo.bench.evidence import LONGEST, Choice, Evidence, Outcome
from hippo.bench.keep_time import Chooser, Pace, measured, of_shape
from hippo.bench.oracle import search
from hippo.bench.pruners import pruner_named
from hippo.bench.replay import replay
from hippo.bench.world import KINDS, Box, film, write_film
from hippo.bench.world.mixed import write_mixed
from hippo.draft.worker import load_draft
from hippo.families import VideoGrid
from hippo.llm import VideoLLM
from hippo.pruning import PRUNERS, Pruner, budget
from hippo.video import Video, read_video

PROMPTS = ("description", "question")
DESCRIBE = "Describe the video in detail."
WITHOUT_RATIO = {"none": 1.0, "blind": 0.0}  # pruners that keep everything or nothing, whatever the ratio
ORACLE, AUTO = "oracle", "auto"  # beside the pruners: one knows the answer, one chooses how many tokens to keep
ORACLE_STEPS = 150
SHAPE = "qwen2.5-vl-7b+3b"  # for which times are predicted too
_RESAMPLES = 2000
_USUAL_RATE = 0.8  # of acceptance, before the first answer


class Asked(NamedTuple):
    """One request of a study. kind: of its clip. read: the clip with so many frames. shown: a share of the clip ->
    where it shows something; None if that is not known."""

    seed: int
    kind: str
    prompt_kind: str
    prompt: str
    read: Callable[[int], Video]
    shown: Callable[[float], list[Box]] | None


@dataclass(frozen=True)
class Sample:
    """One choice at one ratio on one request. overlap: mean of sum min(p, q) over the answer's places. edge_excess: see
    `edge_excess`; ground_edge_excess: the same among places that show no object, which have nothing but their place to
    be chosen for. scoring_share_of_prefill: seconds of scoring and choosing over those of the target's prefill.
    seconds: predicted, from the target's prefill to the end, by pair."""

    seed: int
    kind: str
    prompt_kind: str
    pruner: str
    keep_ratio: float
    tokens: int
    video_tokens: int
    tokens_per_target_forward: float
    acceptance_rate: float
    run_between_rejections: float
    overlap: float
    edge_excess: float
    ground_edge_excess: float
    scoring_share_of_prefill: float
    seconds: dict[str, float]


def requests(first_seed: int, clips: int, kinds: Sequence[str] = KINDS) -> Iterator[Asked]:
    """A description of every clip, and what one of its objects does. The kinds take turns."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        for number in range(clips):
            made = film(kinds[number % len(kinds)], first_seed + number)
            write_film(made, clip)
            for prompt_kind, prompt in zip(PROMPTS, (DESCRIBE, made.question), strict=True):
                yield Asked(made.seed, made.kind, prompt_kind, prompt, partial(_read, clip), made.shown)


def mixes(clips: Sequence[Path], count: int) -> Iterator[Asked]:
    """A description of each of real clips, and of so many clips mixed of them. Nobody knows what they show."""
    for number, clip in enumerate(clips):
        yield Asked(number, "real", PROMPTS[0], DESCRIBE, partial(_read, clip), None)
    with tempfile.TemporaryDirectory() as folder:
        mixed = Path(folder) / "clip.mp4"
        for seed in range(count):
            kind = write_mixed(clips, seed, mixed)
            yield Asked(seed, kind, PROMPTS[0], DESCRIBE, partial(_read, mixed), None)


def _read(clip: Path, frames: int) -> Video:
    return read_video(clip, frames=frames)


def study(
    llm: VideoLLM,
    asked: Iterator[Asked],
    names: Sequence[str],
    ratios: Sequence[float],
    gamma: int,
    frames: int = 16,
) -> Iterator[list[Sample]]:
    """The samples of each request, one after the other.

    names: of pruners and of `CHOICES`, and ORACLE and AUTO if they are wanted. gamma: of the serial decoder that is
    replayed. frames: that are read of each clip.
    """
    own = llm.pair.require_draft()
    draft = load_draft(own.checkpoint, "float32", "cpu", own.trust_remote_code)
    studied = _Study(llm, draft, names, ratios, gamma)
    for request in asked:
        yield studied.samples(request, frames)


class _Study:
    """What a study knows from one request to the next: what a pair costs, and what "auto" has learned."""

    def __init__(self, llm: VideoLLM, draft: Any, names: Sequence[str], ratios: Sequence[float], gamma: int) -> None:
        self._llm, self._draft, self._names, self._ratios, self._gamma = llm, draft, names, ratios, gamma
        self._pruners = {name: pruner_named(name) for name in names if name not in (ORACLE, AUTO, *CHOICES)}
        self._cross = any(name in CHOICES for name in names)
        self._paces: list[Pace] = []
        self._choosers: dict[str, Chooser] = {}
        self._rate = _USUAL_RATE

    @torch.no_grad()
    def samples(self, request: Asked, frames: int) -> list[Sample]:
        """Of one request; none if its answer is empty."""
        video = request.read(frames)
        hippo = PRUNERS["hippo"]
        attentions = {one.attention for one in (hippo, *self._pruners.values()) if one.attention}
        evidence = Evidence(self._llm, self._draft, video, request.prompt, attentions, self._cross)
        if len(evidence.answer) < 2:
            return []
        if not self._paces:
            self._paces = [measured(evidence), of_shape(SHAPE, evidence.grid.tokens, evidence.text)]
            self._choosers = {pace.name: Chooser(pace) for pace in self._paces}
        one = _Request(evidence, request, video, self._gamma, self._paces, self._rate)
        found, kept = list[Sample](), dict[float, list[Tensor]]()
        for name in self._names:
            if name in (ORACLE, AUTO):
                continue
            for ratio in [WITHOUT_RATIO[name]] if name in WITHOUT_RATIO else self._ratios:
                if name in CHOICES:
                    choice, seconds = CHOICES[name](evidence, budget(ratio, evidence.grid)), 0.0
                else:
                    chosen, seconds = one.kept(self._pruners[name], ratio)
                    choice = Choice([(0, chosen)])
                    kept.setdefault(ratio, []).append(chosen)
                found.append(one.sample(name, ratio, choice, seconds))
        if ORACLE in self._names:
            for ratio in (ratio for ratio in self._ratios if ratio in kept):
                best = search(kept[ratio], one.merit, ORACLE_STEPS, request.seed)
                found.append(one.sample(ORACLE, ratio, Choice([(0, best)]), 0.0))
        if AUTO in self._names:
            for name, chooser in self._choosers.items():
                chosen, seconds = one.kept(hippo, ratio := chooser.ratio(evidence, hippo))
                sample = one.sample(f"{AUTO} for {name}", ratio, Choice([(0, chosen)]), seconds)
                chooser.learn(sample.acceptance_rate, sample.tokens)
                found.append(sample)
        rates = [sample.acceptance_rate for sample in found if sample.pruner == "hippo"]
        self._rate += 0.3 * ((rates or [self._rate])[-1] - self._rate)
        return found


class _Request:
    """Makes the samples of one request. rate: of acceptance, as known before."""

    def __init__(
        self, evidence: Evidence, asked: Asked, video: Video, gamma: int, paces: Sequence[Pace], rate: float
    ) -> None:
        self._evidence, self._asked, self._gamma, self._paces, self._rate = evidence, asked, gamma, paces, rate
        grid = evidence.grid
        self._bare = torch.ones(grid.tokens, dtype=torch.bool)
        if asked.shown is not None:
            self._bare = ground(asked.shown, [time / video.duration for time in video.timestamps], grid)

    def kept(self, pruner: Pruner, ratio: float) -> tuple[Tensor, float]:
        """What a pruner keeps, and the seconds that scoring and choosing take."""
        evidence = self._evidence
        # A copy: what another choice has computed would cost nothing here.
        signals = replace(evidence.signals[pruner.attention or PRUNERS["hippo"].attention])  # type: ignore[index]
        began = time.perf_counter()
        kept = pruner.keep(signals, ratio)
        return kept, time.perf_counter() - began + (evidence.recorded[pruner.attention] if pruner.attention else 0.0)

    def sample(self, name: str, ratio: float, choice: Choice, scoring: float) -> Sample:
        """The sample of a choice. scoring: seconds."""
        evidence, asked = self._evidence, self._asked
        outcome, kept = evidence.outcome(choice), choice.parts[0][1]
        counts = replay(outcome.right, self._gamma, LONGEST - 1)
        length = evidence.text + len(choice.parts[-1][1])
        return Sample(
            asked.seed,
            asked.kind,
            asked.prompt_kind,
            name,
            ratio,
            len(evidence.answer),
            evidence.grid.tokens,
            counts.tokens_per_target_forward,
            counts.acceptance_rate,
            counts.run_between_rejections,
            outcome.overlap,
            edge_excess(kept, evidence.grid),
            edge_excess(kept, evidence.grid, self._bare),
            scoring / evidence.seconds,
            {pace.name: pace.seconds(outcome.proposals, length, self._rate) for pace in self._paces},
        )

    def merit(self, kept: Tensor) -> float:
        """Of kept tokens, for the oracle."""
        outcome: Outcome = self._evidence.outcome(Choice([(0, kept)]))
        counts = replay(outcome.right, self._gamma, LONGEST - 1)
        return counts.tokens_per_target_forward + 0.01 * outcome.overlap  # overlap decides between equals


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


def ground(shown: Callable[[float], list[Box]], times: Sequence[float], grid: VideoGrid) -> Tensor:
    """(V,) bool: the places where nothing shows in any frame of their step. shown: a share of the clip -> boxes. times:
    of the frames, shares of the clip, equally many a step."""
    bare = torch.ones(grid.frames, grid.rows, grid.columns, dtype=torch.bool)
    left, top = torch.arange(grid.columns)[None, :] / grid.columns, torch.arange(grid.rows)[:, None] / grid.rows
    for number, moment in enumerate(times):
        step = number * grid.frames // len(times)
        for box in shown(min(1.0, moment)):
            across = (left < box[2]) & (left + 1 / grid.columns > box[0])
            bare[step] &= ~(across & (top < box[3]) & (top + 1 / grid.rows > box[1]))
    return grid.of_tokens(bare.flatten())


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over clips and its 95 % interval, by bootstrap."""
    array = np.asarray(values)
    picks = np.random.default_rng(0).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.percentile(array[picks].mean(axis=1), (2.5, 97.5))
    return float(array.mean()), float(low), float(high)


def summary(samples: Sequence[Sample]) -> dict[str, list[dict[str, Any]]]:
    """rows: means over the clips for each choice, ratio and kind of prompt. paired: how much more tokens a target
    forward brings with `hippo` than with each other choice on the same request, with the 95 % interval. kinds: both by
    kind of clip, over both kinds of prompt. "auto" has one row, whatever it chose: keep_ratio is the mean then."""
    groups: dict[tuple[str, float, str], list[Sample]] = {}
    for sample in samples:
        ratio = -1.0 if sample.pruner.startswith(AUTO) else sample.keep_ratio
        groups.setdefault((sample.pruner, ratio, sample.prompt_kind), []).append(sample)
    rows, paired = [], []
    for (pruner, ratio, prompt), group in groups.items():
        rows.append({"pruner": pruner, "keep_ratio": _mean(group, "keep_ratio"), "prompt_kind": prompt} | _row(group))
        for at in sorted({r for p, r, k in groups if p == "hippo" and k == prompt}):
            if pruner == "hippo" or (pruner not in WITHOUT_RATIO and at != ratio):
                continue
            won = _won(groups["hippo", at, prompt], group)
            paired.append({"pruner": pruner, "keep_ratio": at, "prompt_kind": prompt} | won)
    kinds = []
    for kind in dict.fromkeys(sample.kind for sample in samples):
        for pruner, ratio in dict.fromkeys(key[:2] for key in groups):
            group = [s for p in PROMPTS for s in groups.get((pruner, ratio, p), ()) if s.kind == kind]
            if not group:
                continue
            ours = [s for p in PROMPTS for s in groups.get(("hippo", ratio, p), ()) if s.kind == kind]
            row = {"kind": kind, "pruner": pruner, "keep_ratio": _mean(group, "keep_ratio")} | _row(group)
            kinds.append(row | (_won(ours, group) if ours and pruner != "hippo" else {}))
    return {"rows": rows, "paired": paired, "kinds": kinds}


def _mean(group: Sequence[Sample], name: str) -> float:
    return float(np.mean([getattr(sample, name) for sample in group]))


def _row(group: Sequence[Sample]) -> dict[str, Any]:
    mean, low, high = interval([s.tokens_per_target_forward for s in group])
    names = ("acceptance_rate", "run_between_rejections", "overlap", "edge_excess")
    return {
        "clips": len(group),
        "video_tokens": _mean(group, "video_tokens"),
        "tokens_per_target_forward": mean,
        "interval": [low, high],
        **{name: _mean(group, name) for name in names},
        "bias": _mean(group, "ground_edge_excess"),
        "scoring_share_of_prefill": float(np.median([s.scoring_share_of_prefill for s in group])),
        "seconds": {pair: float(np.mean([s.seconds[pair] for s in group])) for pair in group[0].seconds},
    }


def _won(ours: Sequence[Sample], others: Sequence[Sample]) -> dict[str, float]:
    """How much more tokens a target forward brings by ours, paired by request."""
    known = {(s.seed, s.prompt_kind): s.tokens_per_target_forward for s in ours}
    mean, low, high = interval([known[s.seed, s.prompt_kind] - s.tokens_per_target_forward for s in others])
    return {"hippo_minus": mean, "low": low, "high": high}
