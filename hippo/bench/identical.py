"""Is it lossless, and faster on other clips than the demo's? Each method against transformers' generate()."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hippo.bench.world import make_scene, write_clip
from hippo.llm import VideoLLM
from hippo.params import SamplingParams
from hippo.report.baseline import transformers_generate


@dataclass(frozen=True)
class Verdict:
    """One clip. identical, speedup: by method, the latter end to end against generate(). tokens_per_target_forward: of
    the last method."""

    seed: int
    tokens: int
    tokens_per_target_forward: float
    identical: dict[str, bool]
    speedup: dict[str, float]


def verdicts(llm: VideoLLM, seeds: range, methods: Sequence[str]) -> Iterator[Verdict]:
    """Describe a clip of each seed by generate() and by every method."""
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            clip = Path(folder) / "clip.mp4"
            write_clip(make_scene(seed), clip)
            if number == 0:
                llm.generate(clip)  # warms up
            expected = transformers_generate(llm, SamplingParams.of(), video=clip)
            outputs = {method: llm.generate(clip, method=method) for method in methods}
            yield Verdict(
                seed,
                len(expected.token_ids),
                outputs[methods[-1]].stats.tokens_per_target_forward,
                {method: output.token_ids == expected.token_ids for method, output in outputs.items()},
                {method: expected.total / output.stats.seconds.total for method, output in outputs.items()},
            )
