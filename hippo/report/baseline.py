"""The yardstick: the installed transformers' generate() on the same models, clip and machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from hippo.inputs import on_device
from hippo.llm import VideoLLM
from hippo.params import SamplingParams
from hippo.request import Output


@dataclass(frozen=True)
class Baseline:
    """An answer of generate(). decode: seconds from its first token to its last; total: reading the clip included."""

    text: str
    token_ids: list[int]
    decode: float
    total: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"text": self.text, "token_ids": self.token_ids, "seconds": {"decode": self.decode, "total": self.total}}


class _Clock(BaseStreamer):
    """Notes when each token of generate() arrives; the first arrival is the prompt."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    def put(self, value: Any) -> None:
        self.arrivals.append(time.perf_counter())

    def end(self) -> None:
        pass


def transformers_generate(
    llm: VideoLLM, params: SamplingParams, also: dict[str, Any] | None = None, **request: Any
) -> Baseline:
    """Answer by `model.generate()`, greedily or with the same sampling settings; times what a caller waits for.
    also: more options of generate(), such as an assistant_model. request: what `VideoLLM.inputs` takes."""
    began, tokenizer = time.perf_counter(), llm.processor.tokenizer
    inputs = llm.inputs(**request)
    choices: dict[str, Any] = {"do_sample": not params.greedy, "max_new_tokens": params.max_new_tokens}
    if not params.greedy:
        choices |= {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
        choices |= {"min_p": params.min_p} if params.min_p else {}
        if params.seed is not None:
            torch.manual_seed(params.seed)
    if params.repetition_penalty is not None:
        choices["repetition_penalty"] = params.repetition_penalty
    if params.stop:
        choices |= {"stop_strings": list(params.stop), "tokenizer": tokenizer}
    token_ids, decode, _ = generate_ids(llm.pair.target, inputs, choices | (also or {}))
    total = time.perf_counter() - began
    return Baseline(tokenizer.decode(token_ids, skip_special_tokens=True), token_ids, decode, total)


def generate_ids(model: Any, inputs: dict[str, Any], choices: dict[str, Any]) -> tuple[list[int], float, float]:
    """(ids, decode seconds, all seconds) of `model.generate()`. inputs: a processor's output; choices: its options."""
    began, clock = time.perf_counter(), _Clock()
    inputs = on_device(inputs, model.device)
    ids = model.generate(**inputs, **choices, streamer=clock)
    token_ids = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return token_ids, clock.arrivals[-1] - clock.arrivals[1], time.perf_counter() - began


@dataclass(frozen=True)
class Comparison:
    """Runs of one method beside runs of generate(), in turn. Speedups are medians over the pairs of runs."""

    outputs: list[Output]
    baselines: list[Baseline]
    sampled: bool = False

    @property
    def identical(self) -> bool | None:
        """Whether every run gave generate()'s token ids; None when sampled, where they need not."""
        return (
            None
            if self.sampled
            else all(o.token_ids == b.token_ids for o, b in zip(self.outputs, self.baselines, strict=True))
        )

    @property
    def speedup(self) -> dict[str, float]:
        """decode and end_to_end, generate()'s seconds over ours at equal token counts."""
        return {
            "decode": self._ratio(lambda o, b: b.decode / max(o.stats.seconds.decode, 1e-9)),
            "end_to_end": self._ratio(lambda o, b: b.total / o.stats.seconds.total),
        }

    def _ratio(self, of: Any) -> float:
        # Per token, so that sampled texts of unequal length compare fairly.
        return median(
            of(o, b) * len(o.token_ids) / len(b.token_ids) for o, b in zip(self.outputs, self.baselines, strict=True)
        )
