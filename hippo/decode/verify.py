"""The verify rule: which drafted tokens the target accepts, and its own token after them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hippo.params import SamplingParams
from hippo.trace import Logprob

# (1, L) ids and (1, vocabulary) scores -> scores; an empty list is none.
Processors = LogitsProcessorList | Callable[[Any, Any], Any]
# What these make of a row depends on which tokens are in its text, not on their order or number.
_OF_A_SET = (
    *(RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper),
    *(TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper),
)


class Verdict(NamedTuple):
    """What the target says about drafted tokens.

    accepted: the drafted tokens that are kept. bonus_token: the target's own token after them, a correction if
    `rejected`; None if all were accepted and no row of logits was left to choose it from.
    """

    accepted: list[int]
    bonus_token: int | None
    rejected: bool

    @property
    def tokens(self) -> list[int]:
        """All of them: token i was judged by row i of the logits."""
        return self.accepted + ([] if self.bonus_token is None else [self.bonus_token])


class Verifier:
    """The target's choice, greedy or sampled, row of logits by row of logits, for one request.

    processors: called once for each place of the text, in order, so they may have state; transformers' own that have
    none, once for all rows. prompt_ids: (L,), which penalties use as generate() does.
    """

    def __init__(self, params: SamplingParams, processors: Processors, prompt_ids: Tensor) -> None:
        self._greedy, self._processors, self._ids = params.greedy, processors, prompt_ids
        known = isinstance(processors, LogitsProcessorList)
        self._at_once = known and all(type(processor) in _OF_A_SET for processor in processors)  # type: ignore
        self._seed = params.seeded().seed

    def commit(self, tokens: Sequence[int]) -> None:
        """Add tokens to the text that penalties and draws depend on."""
        self._ids = torch.cat([self._ids, self._ids.new_tensor(tokens)])

    def verify(self, logits: Tensor, drafted: Sequence[int]) -> Verdict:
        """Compare drafted tokens with the target's choices.

        logits: (n, vocabulary), row i after drafted[:i]; n is len(drafted) or one more.

        When sampling, the target draws from p at each place, and a drafted token x is accepted if it is what was drawn:
        with probability p(x). The token in a rejected one's place is then distributed as p with x masked out and
        renormalised, which is the usual rule for a draft that proposes one token. The draw depends on seed and place
        alone, so a seed gives the same text whatever is drafted.
        """
        drafted = list(drafted)
        choices = self._choices(logits, drafted)
        for place, (token, choice) in enumerate(zip(drafted, choices, strict=False)):
            if token != choice:
                return Verdict(drafted[:place], choice, True)
        return Verdict(drafted, next(choices, None), False)

    def _choices(self, logits: Tensor, drafted: list[int]) -> Iterator[int]:
        """The target's choice from each row of logits, (n, vocabulary)."""
        if self._at_once:
            yield from self._chosen(self._scores(logits, drafted), 0)
            return
        for place, row in enumerate(logits):  # none after a rejected token is asked for
            ids: Any = torch.cat([self._ids, self._ids.new_tensor(drafted[:place])])[None].to(row.device)
            yield from self._chosen(self._processors(ids, row[None].float().clone()), place)

    def _chosen(self, scores: Tensor, place: int) -> list[int]:
        """The choice from each row of scores, (n, vocabulary), of which the first is of the text's next place but
        `place`. Only the choices leave the device."""
        if self._greedy:
            return scores.argmax(dim=-1).tolist()
        begin = len(self._ids) + place
        mass = scores.double().softmax(dim=-1).cumsum(dim=-1)
        points = [random.Random(f"{self._seed} {begin + row}").random() for row in range(len(scores))]
        drawn = mass.new_tensor(points)[:, None] * mass[:, -1:]
        last = torch.arange(scores.shape[1], device=scores.device).where(scores.isfinite(), 0).amax(dim=-1)
        return torch.searchsorted(mass, drawn, right=True)[:, 0].minimum(last).tolist()

    def _scores(self, logits: Tensor, drafted: list[int]) -> Tensor:
        """(n, vocabulary) after penalties and, when sampling, temperature, top-k, top-p and min-p."""
        if not self._processors:
            return logits
        rows, more = logits.float().clone(), len(logits) - 1  # a copy: processors may write into what they get
        text, own = self._ids.to(rows.device), torch.tensor(drafted[:more], dtype=torch.long, device=rows.device)
        # Row i follows i of the drafted tokens; a token that is in the text anyway takes the place of the others.
        follows = torch.ones(len(rows), more, dtype=torch.bool, device=rows.device).tril(-1)
        ids: Any = torch.cat([text.expand(len(rows), -1), own.where(follows, text[-1])], dim=1)
        return self._processors(ids, rows)


def logprobs_of(logits: Tensor, tokens: Sequence[int], count: int) -> list[Logprob]:
    """The log probability of each token by its row of logits, (n, vocabulary) with n at least the number of tokens, and
    the `count` likeliest in its place."""
    rows = logits[: len(tokens)].float().log_softmax(-1)
    chosen = rows.gather(1, torch.tensor(tokens, device=rows.device)[:, None])[:, 0].tolist()
    best = rows.topk(min(count, rows.shape[1]))
    top = [tuple(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return [Logprob(*one) for one in zip(chosen, top, strict=True)]


def logits_processors(model: nn.Module, params: SamplingParams, prompt_ids: Tensor) -> LogitsProcessorList:
    """What generate() would run on its logits: the checkpoint's own penalties, then temperature, top-k, top-p, min-p.

    transformers makes them itself from the checkpoint's generation config, so they are the installed version's.
    """
    options: dict[str, Any] = {"do_sample": not params.greedy, "max_new_tokens": params.max_new_tokens}
    if not params.greedy:
        options |= {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
        options |= {"min_p": params.min_p} if params.min_p else {}
    if params.repetition_penalty is not None:
        options["repetition_penalty"] = params.repetition_penalty
    maker: Any = model
    config, _ = maker._prepare_generation_config(None, **options)
    maker._prepare_special_tokens(config, True, device=prompt_ids.device)
    return maker._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(prompt_ids),
        encoder_input_ids=prompt_ids[None],
        prefix_allowed_tokens_fn=None,
        logits_processor=LogitsProcessorList(),
        device=str(prompt_ids.device),
        model_kwargs={},
    )
