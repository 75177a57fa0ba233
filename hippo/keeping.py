"""Which of a request's video tokens the draft sees: how many, and when they are chosen."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hippo import tensor_parallel
from hippo.decode import Costs, in_turns_speed, parallel_speed, plain_speed
from hippo.device import clock
from hippo.draft import Drafter, kept_prompt
from hippo.families import Embeds, Prompt
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.pruning import (
    RATIOS,
    USUAL,
    AttentionRecorder,
    Pruner,
    captured,
    pruner_named,
    relative_acceptance,
    signals_of,
)
from hippo.stats import Stats
from hippo.trace import Kept


class KeepCosts:
    """What keeping so many tokens would cost and bring in an answer, by what earlier ones measured.

    costs, acceptance: of the pair. captured: see `hippo.pruning.captured`, of the answers that acceptance is from.
    growth: what a token in the draft's KV cache adds to a draft step, over a step without any. text: tokens of the
    prompt that are not video. beside: whether the draft works beside the target, which then need not wait for it.
    tokens: of the answer.
    """

    def __init__(
        self, costs: Costs, acceptance: float, captured: float, growth: float, text: int, beside: bool, tokens: float
    ) -> None:
        self._costs, self._beside, self._tokens, self._text, self._growth = costs, beside, tokens, text, growth
        self._acceptance = acceptance / relative_acceptance(captured)

    @property
    def known(self) -> bool:
        """Whether all was measured that `seconds` needs."""
        costs = self._costs
        return bool(costs.prompts) and (costs.known(both=False) or costs.known(both=True))

    def seconds(self, kept: int, captured: float) -> float:
        """From the choice of tokens to the end of the answer, if so many are kept that hold so much of the score."""
        rate = min(0.99, self._acceptance * relative_acceptance(captured))
        length, before = self._text + kept, self._costs.prompts[-1][0]
        costs = self._costs.with_draft((1 + self._growth * length) / (1 + self._growth * before))
        plain = plain_speed(costs)
        speed = max(plain, in_turns_speed(costs, [rate])[0], parallel_speed(costs, [rate])[0] if self._beside else 0.0)
        prompt = self._costs.prompt(length)
        # Beside a draft that reads its prompt, the target decodes alone.
        return prompt * (1 - plain / speed if self._beside else 1) + self._tokens / speed

    def best(self, holds: dict[float, float], video_tokens: int, most: float) -> float:
        """The keep ratio of the shortest answer. holds: what each ratio captures. most: the largest that may be
        chosen."""
        allowed = [ratio for ratio in holds if ratio <= most]
        if not self.known or not allowed:
            return min(USUAL, most)
        return min(allowed, key=lambda ratio: self.seconds(round(ratio * video_tokens), holds[ratio]))


def keep_costs(draft: Draft, text: int, longest: int) -> KeepCosts:
    """Of a pair's draft, for a request with so many tokens of text and an answer of at most `longest`."""
    return KeepCosts(
        draft.costs,
        draft.acceptance,
        draft.captured,
        draft.growth,
        text,
        draft.place != "inline",
        min(longest, draft.answer_tokens),
    )


class Keeping:
    """Chooses the video tokens that the draft sees, as soon as the target's prefill has shown what they are worth.

    prunes: whether there is a draft that sees video. begin: tokens of the prompt that are known already.
    """

    def __init__(
        self,
        pair: Pair,
        params: SamplingParams,
        prunes: bool,
        prompt: Prompt,
        embeds: Embeds,
        drafter: Drafter,
        stats: Stats,
        inputs: dict[str, Any],
        begin: int,
    ) -> None:
        self._pair, self._params, self._prompt, self._embeds = pair, params, prompt, embeds
        self._drafter, self._stats, self._inputs = drafter, stats, inputs
        # A drafter without a model sees no video: there is nothing to choose.
        self._pruner: Pruner = pruner_named(params.pruner if prunes else "none")
        self._seconds = 0.0
        self.recorders: list[AttentionRecorder] = []
        self._chosen = not prunes
        if self._pruner.attention is not None and len(prompt.video_at):
            # A draft beside the target reads its prompt as soon as its tokens are chosen, which can be before the
            # target's prefill ends.
            beside = pair.draft is not None and pair.draft.place != "inline"
            self.recorders = [
                pair.recorder(prompt, self._pruner.attention, self._choose if beside else lambda: None, begin)
            ]
        elif prunes:
            self._choose()

    @property
    def seconds(self) -> float:
        """What recording and choosing took."""
        return self._seconds + sum(recorder.seconds for recorder in self.recorders)

    def finish(self) -> None:
        """The target's prefill has ended."""
        if not self._chosen:
            self._choose()

    def _choose(self) -> None:
        """Choose the kept tokens and send the draft its prompt."""
        self._chosen = True
        prompt, embeds, drafter, device = self._prompt, self._embeds, self._drafter, self._pair.target.device
        began = clock(device)
        # Under tensor parallelism each process has some of the heads.
        attention = tensor_parallel.all_mean(self.recorders[0].scores) if self.recorders else None
        videos = signals_of(prompt, embeds.tokens[prompt.video_at], attention)
        scores = [self._pruner.score(signals) for signals in videos] if self._pruner.score else []
        kept = self._pruner.keep_all_of(videos, self._ratio(scores))
        self._seconds += clock(device) - began
        if drafter.shared_vision and not embeds.arguments:
            drafter.read(kept_prompt(prompt, embeds, kept, self._pair.target.get_input_embeddings()))
        else:
            if drafter.shared_vision:
                drafter.begin(self._inputs)
            drafter.prefill(kept, prompt.grids)
        self._stats.kept_tokens, self._stats.trace.kept = len(kept), Kept(kept.cpu(), prompt.grids)

    def _ratio(self, scores: list[Tensor]) -> float:
        """The request's keep ratio. scores: of each video, none if the pruner ranks by nothing."""
        params, draft, tokens = self._params, self._pair.draft, len(self._prompt.video_at)
        ratio = params.keep_ratio
        if ratio == "auto" and scores and draft is not None:
            holds = {one: captured(scores, one) for one in RATIOS}
            costs = keep_costs(draft, len(self._prompt.input_ids) - tokens, params.max_new_tokens)
            ratio = tensor_parallel.broadcast(costs.best(holds, tokens, params.keep_at_most))
        elif ratio == "auto":
            ratio = min(USUAL, params.keep_at_most)
        self._stats.captured = captured(scores, float(ratio)) if scores else 1.0
        return float(ratio)
