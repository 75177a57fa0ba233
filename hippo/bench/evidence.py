"""All that is known of one request before tokens are chosen for the draft, and what follows from a choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hippo.bench.simulate import Guess
from hippo.bench.traces import guesses, prefilled
from hippo.families import Embeds, VideoGrid, family_of
from hippo.forward import CachedModel
from hippo.forward.observe import observing
from hippo.inputs import on_device
from hippo.llm import VideoLLM
from hippo.pruning import Attention, AttentionRecorder, Signals, recording
from hippo.pruning.attention import attention_score, outer_layers
from hippo.video import Video

LONGEST = 256  # tokens of an answer


class Choice(NamedTuple):
    """What a draft sees. parts: from which token of the answer on, (K,) kept tokens; the first is from 0 on. tokens:
    (V, D), all video tokens as the draft receives them, if some are changed."""

    parts: Sequence[tuple[int, Tensor]]
    tokens: Tensor | None = None


class Outcome(NamedTuple):
    """What a draft that sees a choice would propose. right: whether each token of the answer after its first would be
    proposed. overlap: mean of sum min(p, q) over their places. proposals: as `hippo.bench.simulate` has them."""

    right: list[bool]
    overlap: float
    proposals: list[Guess]


class Evidence:
    """One request with the target's own greedy answer.

    grid: of its video, V tokens. features: (V, D) of the target. signals: what pruners judge by, for each attention
    that was asked for. seconds: of the target's prefill, without recording. recorded: seconds of recording, by
    attention. cross: signals beyond a pruner's are taken too: spoken, (n, V), the attention of each token of the answer
    in the target's layers that count; drafts, (layers, V), the question's attention in each layer of a draft that sees
    all tokens; late, (V,), the question's attention in the target's last quarter.
    """

    def __init__(
        self, llm: VideoLLM, draft: Any, video: Video, question: str, attentions: set[Attention], cross: bool
    ) -> None:
        pair = llm.pair
        inputs = llm.inputs(video, question)
        self.answer = llm.generate(video, question, method="ar", max_new_tokens=LONGEST).token_ids
        here = on_device(inputs, pair.target.device)
        prompt = pair.family.prepare_prompt(pair.target.config, here)
        self.grid: VideoGrid = prompt.grids[0]
        embeds = pair.family.embed(pair.target, here)
        self.text = len(prompt.input_ids) - self.grid.tokens
        self.features = embeds.tokens[prompt.video_at]
        self._draft, self._family = draft, family_of(draft)
        there = on_device(inputs, draft.device)
        self._prompt, self._embeds = self._family.prepare_prompt(draft.config, there), self._family.embed(draft, there)
        # A fused forward shows no attention.
        self.target = CachedModel.of(pair.family, pair.target, not cross)
        recorders = {one: pair.recorder(prompt, one) for one in attentions}
        self.seconds = self._read(embeds, prompt, recorders)
        self.recorded = {one: recorder.seconds for one, recorder in recorders.items()}
        self.signals = {one: Signals(self.grid, self.features, recorder.scores) for one, recorder in recorders.items()}
        layers = pair.target.config.get_text_config().num_hidden_layers
        if len(self.answer) > 1:
            spoken = _Spoken(outer_layers(layers), prompt.video_at) if cross else None
            with observing(*([spoken] if spoken else [])):
                self._expected = self.target.extend(self.answer[:-1])
            self.target.rollback(len(self.answer) - 1)
            self.spoken = spoken.mean if spoken else None
        self.drafts = self._seen_by_draft() if cross else None

    def _read(self, embeds: Embeds, prompt: Any, recorders: dict[Attention, AttentionRecorder]) -> float:
        began = time.perf_counter()
        with recording(*recorders.values()):
            self.target.read(embeds, prompt)
        return time.perf_counter() - began - sum(recorder.seconds for recorder in recorders.values())

    def _seen_by_draft(self) -> Tensor:
        layers, asked, video = _depth(self._draft), self._prompt.question_at, self._prompt.video_at
        seen = torch.zeros(layers, len(video))

        def observe(layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
            begin = key.shape[2] - query.shape[2]
            if key.shape[2] > asked[-1] and begin <= asked[0]:
                seen[layer] = attention_score(query[0][:, asked - begin], key[0][:, video], scaling)

        with observing(observe):
            CachedModel.of(self._family, self._draft, False).read(self._embeds, self._prompt)
        return seen

    @property
    def draft_tokens(self) -> Tensor:
        """(V, D) the draft's own video tokens."""
        return self._embeds.tokens[self._prompt.video_at]

    def outcome(self, choice: Choice) -> Outcome:
        """What a draft that sees this would do."""
        embeds = self._embeds
        if choice.tokens is not None:
            embeds = embeds[:]
            embeds.tokens = embeds.tokens.clone()
            embeds.tokens[self._prompt.video_at] = choice.tokens
        ends = [begin for begin, _ in choice.parts[1:]] + [len(self.answer) - 1]
        parts = []
        for (begin, kept), end in zip(choice.parts, ends, strict=True):
            reader = prefilled(self._family, self._draft, self._prompt, embeds, kept)
            parts.append(reader.extend(self.answer[:-1])[begin:end])
        rows = torch.cat(parts).cpu()
        common = min(self._expected.shape[-1], rows.shape[-1])  # one may be padded
        rows, expected = rows[:, :common].float(), self._expected[:, :common].cpu().float()
        proposals = guesses(rows, self.answer[1:])
        overlap = torch.minimum(expected.softmax(-1), rows.softmax(-1)).sum(-1).mean()
        return Outcome([one.right for one in proposals], float(overlap), proposals)

    def draft_reader(self, kept: Tensor) -> Callable[[], CachedModel]:
        """Reads the draft's prompt with these tokens, each time it is called."""
        return lambda: prefilled(self._family, self._draft, self._prompt, self._embeds, kept)


class _Spoken:
    """An observer of the attention of tokens after the prompt, over the video tokens only. weights: by layer."""

    def __init__(self, weights: dict[int, float], video_at: Tensor) -> None:
        self._weights, self._video_at, self._parts = weights, video_at, list[Tensor]()

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        if layer in self._weights:
            heads, keys = len(key[0]), key[0][:, None, self._video_at].float()
            scores = query[0].view(heads, -1, *query.shape[2:]).float() @ keys.transpose(2, 3) * scaling
            self._parts.append(self._weights[layer] * scores.softmax(-1).mean((0, 1)))

    @property
    def mean(self) -> Tensor:
        """(n, V)."""
        return torch.stack(self._parts).sum(0) / sum(self._weights.values())


def _depth(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)
