"""How long a request takes with so many kept tokens: predicted, from costs that were measured or that follow from
sizes, by the package's own loop and schedule on the simulated machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from hippo.bench.evidence import Evidence
from hippo.bench.shapes import model_of_shape
from hippo.bench.simulate import Guess, Machine, simulate
from hippo.bench.traces import by_width, step_seconds
from hippo.decode import AutoSchedule, Costs
from hippo.keeping import KeepCosts
from hippo.pruning import RATIOS, Pruner, captured
from hippo.report.plan import Sizes, sizes_of_model

WIDTHS = (1, 2, 4, 8, 16, 25)
BANDWIDTH, PRODUCTS = 2.7e12, 4e14  # bytes and operations a second: an H100 at four fifths and two fifths of its best
_SHARED = 2.0  # of one memory's time, for each of two models that read from it at once
_REPEATS = 5


class Pace(NamedTuple):
    """What a pair costs at one context. target: tokens -> seconds of a forward. prefill: seconds of the target's.
    draft: length of its KV cache -> seconds of a step. prompt: its length -> seconds. beside: whether the draft works
    beside the target. growth: see `KeepCosts`."""

    name: str
    target: Callable[[int], float]
    prefill: float
    draft: Callable[[int], float]
    prompt: Callable[[int], float]
    beside: bool
    growth: float

    def seconds(self, proposals: Sequence[Guess], length: int, rate: float) -> float:
        """From the target's prefill to the answer's end, if the draft reads a prompt of so many tokens. rate: of
        acceptance, as known before."""
        prompt, slowed = self.prompt(length), (1.0, 1.0) if self.beside else (_SHARED, _SHARED)
        schedule = AutoSchedule(self.beside, costs=self.costs(length), prior=rate)
        machine = Machine(self.target, self.draft(length), slowed)
        answer = simulate(proposals, machine, schedule, prompt if self.beside else 0.0).seconds
        return self.prefill + answer + (0.0 if self.beside else prompt)

    def costs(self, length: int) -> Costs:
        """As earlier answers would have measured them, with a prompt of so many tokens."""
        costs = Costs()
        for _ in range(3):
            for width in (1, 4, 8):
                for both in {False, self.beside}:
                    costs.saw_target(width, self.target(width), both)
            for both in {False, self.beside}:
                costs.saw_draft(self.draft(length), both)
        costs.prompts.extend((tokens, self.prompt(tokens)) for tokens in (2 * length, length))
        return costs


def measured(evidence: Evidence, name: str = "tiny") -> Pace:
    """Of the pair that a request was asked of, on this machine, each model alone. The least of some tries."""
    counts = sorted({max(1, round(ratio * evidence.grid.tokens)) for ratio in RATIOS})
    prompts, steps = {}, {}
    threads = 1  # what a draft beside the target has on two cores
    for count in counts:
        read = evidence.draft_reader(torch.arange(count))
        took = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            reader = read()
            took.append(time.perf_counter() - began)
        prompts[evidence.text + count] = min(took)
        steps[evidence.text + count] = min(step_seconds(reader, 1, 8, threads) for _ in range(_REPEATS))
    forwards = {w: min(step_seconds(evidence.target, w, 8, threads) for _ in range(_REPEATS)) for w in WIDTHS}
    first, last = min(steps), max(steps)
    growth = max(0.0, (steps[last] - steps[first]) / (last - first) / steps[first])
    draft, prompt = by_width(steps), by_width(prompts)
    return Pace(name, by_width(forwards), evidence.seconds, draft, prompt, True, growth)


def of_shape(name: str, video_tokens: int, text: int) -> Pace:
    """Of a shape, in bfloat16 on one GPU whose memory both models share: bytes read and operations done, nothing
    measured."""
    target, draft = (sizes_of_model(model_of_shape(name, role), role) for role in ("target", "draft"))

    def step(one: Sizes, length: int) -> float:
        return 2 * (one.read + one.cache * length) / BANDWIDTH

    def prompt(one: Sizes, length: int) -> float:
        return max(step(one, 0), 2 * one.read * length / PRODUCTS)

    context = video_tokens + text
    return Pace(
        name,
        lambda width: step(target, context) + 2 * target.read * width / PRODUCTS,
        prompt(target, context),
        lambda length: step(draft, length),
        lambda length: prompt(draft, length),
        False,
        draft.cache / draft.read,
    )


class Chooser:
    """The keep ratio "auto", as requests one after another would have it: what earlier answers measured counts."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.rate, self._captured, self._tokens = 0.8, 1.0, 100.0
        self._length = 0

    def ratio(self, evidence: Evidence, pruner: Pruner) -> float:
        """For a request."""
        assert pruner.score is not None and pruner.attention is not None
        score, tokens = pruner.score(evidence.signals[pruner.attention]), evidence.grid.tokens
        holds = {ratio: captured([score], ratio) for ratio in RATIOS}
        length = self._length or evidence.text + tokens // 10
        pace = self._pace
        costs = KeepCosts(
            pace.costs(length), self.rate, self._captured, pace.growth, evidence.text, pace.beside, self._tokens
        )
        best = costs.best(holds, tokens, 1.0)
        self._captured, self._length = holds[best], evidence.text + round(best * tokens)
        return best

    def learn(self, accepted: float, tokens: int) -> None:
        """An answer of so many tokens had this acceptance."""
        self.rate += 0.1 * (accepted - self.rate)
        self._tokens += 0.1 * (tokens - self._tokens)
