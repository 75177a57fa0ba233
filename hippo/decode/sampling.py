"""The target's choice: greedy or sampled, after exactly the logits processing that transformers' generate() does."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from hippo.errors import HippoError


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. temperature 0 is greedy; top_k 0 and top_p 1 are off; a seed fixes the text."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", float(self.temperature))
        if not 0 <= self.temperature < math.inf:
            raise HippoError(f"temperature {self.temperature} is not a number from 0 on", "use 0 for greedy")
        if self.top_k < 0:
            raise HippoError(f"top_k {self.top_k} is negative", "use 0 for off or a positive number")
        if not 0 < self.top_p <= 1:
            raise HippoError(f"top_p {self.top_p} is not in (0, 1]", "use 1 for off")

    def seeded(self) -> Sampling:
        """The same with a seed, drawn if there was none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(64))


class Chooser:
    """Decides, row of logits by row of logits, whether a drafted token stands and what follows.

    prompt_ids: (L,), which penalties look at as generate() does. It follows the tokens committed with `commit`.
    """

    def __init__(self, sampling: Sampling, processors: LogitsProcessorList, prompt_ids: Tensor) -> None:
        self._greedy = sampling.temperature == 0
        self._processors = processors
        self._ids = prompt_ids
        seed = sampling.seeded().seed
        assert seed is not None
        self._seed = seed

    def commit(self, tokens: list[int]) -> None:
        """These tokens are now part of the text."""
        self._ids = torch.cat([self._ids, self._ids.new_tensor(tokens)])

    def choose(self, rows: Tensor, drafted: list[int]) -> tuple[int, int | None]:
        """The verify rule. rows: (n, vocabulary) logits, row i after drafted[:i]; n is len(drafted) or one more.

        The target makes its own choice from each row, greedily or by a draw from p, and drafted tokens stand as long as
        they are that choice. When sampling, x thus stands with probability p(x), and a token in a rejected one's place
        is distributed as p with x masked out and renormalised: PEARL's rule for a draft that proposes one token, with
        the acceptance and the residual taken from one draw. Since the draw depends on seed and place alone, a seed
        gives the same text whatever is drafted (our choice).
        Returns how many drafted tokens stand, and the target's own token after them: None only if all stand and there
        is no row left to choose one from.
        """
        plain = self._greedy and not self._processors
        choices = iter(rows.argmax(dim=-1).tolist() if plain else map(self._choose_at, rows, _prefixes(drafted)))
        for accepted, (token, choice) in enumerate(zip(drafted, choices, strict=False)):
            if token != choice:
                return accepted, choice
        return len(drafted), next(choices, None)

    def _choose_at(self, row: Tensor, before: list[int]) -> int:
        """The target's choice from one row of logits, (vocabulary,), after the text so far and the tokens `before`."""
        scores = self._scores(row, before)
        if self._greedy:
            return int(scores.argmax())
        scores = scores.cpu()
        mass = scores.double().softmax(dim=-1).cumsum(dim=-1)
        point = random.Random(f"{self._seed} {len(self._ids) + len(before)}").random() * mass[-1]
        return min(int(torch.searchsorted(mass, point, right=True)), int(scores.isfinite().nonzero()[-1]))

    def _scores(self, row: Tensor, drafted: list[int]) -> Tensor:
        """(vocabulary,) float32, after penalties and, when sampling, temperature, top-k and top-p."""
        if not self._processors:
            return row.float()
        ids: Any = torch.cat([self._ids, self._ids.new_tensor(drafted)])[None]
        # A copy: processors may write into what they get.
        return self._processors(ids.to(row.device), row[None].float().clone())[0]


def _prefixes(tokens: list[int]) -> Iterator[list[int]]:
    return (tokens[:count] for count in range(len(tokens) + 1))


def logits_processors(
    model: nn.Module, sampling: Sampling, prompt_ids: Tensor, max_new_tokens: int
) -> LogitsProcessorList:
    """The processors generate() would run: the checkpoint's own penalties, then temperature, top-k and top-p.

    transformers makes them itself, from the checkpoint's generation config, so that what it would do is what is done.
    """
    options: dict[str, Any] = {"do_sample": sampling.temperature > 0, "max_new_tokens": max_new_tokens}
    if sampling.temperature > 0:
        options |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
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
