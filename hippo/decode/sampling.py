"""The target's choice: greedy or sampled, after exactly the logits processing that transformers' generate() does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from hippo.errors import HippoError


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. temperature 0 is greedy; top_k 0 and top_p 1 are off; the seed fixes the sampled text."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise HippoError(f"temperature {self.temperature} is negative", "use 0 for greedy or a positive number")
        if self.top_k < 0:
            raise HippoError(f"top_k {self.top_k} is negative", "use 0 for off or a positive number")
        if not 0 < self.top_p <= 1:
            raise HippoError(f"top_p {self.top_p} is not in (0, 1]", "use 1 for off")


class Chooser:
    """Decides, row of logits by row of logits, whether a drafted token stands and what follows.

    prompt_ids: (L,), which penalties look at as generate() does. It follows the tokens committed with `commit`.
    """

    def __init__(self, sampling: Sampling, processors: LogitsProcessorList, prompt_ids: Tensor) -> None:
        self._greedy = sampling.temperature == 0
        self._processors = processors
        self._ids: list[int] = prompt_ids.tolist()
        self._device = prompt_ids.device
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def commit(self, tokens: list[int]) -> None:
        """These tokens are now part of the text."""
        self._ids += tokens

    def choose(self, rows: Tensor, drafted: list[int]) -> tuple[int, int | None]:
        """The verify rule. rows: (n, vocabulary) logits, row i after drafted[:i]; n is len(drafted) or one more.

        Greedy: drafted[i] stands while it is the argmax. Sampling: it stands with its probability p(x), and the token
        that takes a rejected one's place is drawn from p with x masked out and renormalised (method of PEARL for a
        one-hot draft; r < p strictly), so the text follows p exactly.
        Returns how many drafted tokens stand, and the target's own token after them: None only if all stand and there
        is no row left to draw one from.
        """
        if self._greedy and not self._processors:
            best = rows.argmax(dim=-1).tolist()
            for index, token in enumerate(drafted):
                if best[index] != token:
                    return index, best[index]
            return len(drafted), best[len(drafted)] if len(rows) > len(drafted) else None
        for index, token in enumerate(drafted):
            scores = self._scores(rows[index], drafted[:index])
            if self._greedy:
                if (own := int(scores.argmax())) != token:
                    return index, own
                continue
            probabilities = scores.softmax(dim=-1)
            if not float(torch.rand((), generator=self._random)) < float(probabilities[token]):
                probabilities[token] = 0
                return index, self._draw(probabilities)
        if len(rows) == len(drafted):
            return len(drafted), None
        scores = self._scores(rows[-1], drafted)
        return len(drafted), int(scores.argmax()) if self._greedy else self._draw(scores.softmax(dim=-1))

    def _scores(self, row: Tensor, drafted: list[int]) -> Tensor:
        """(vocabulary,) float32 on the CPU, after penalties and, when sampling, temperature, top-k and top-p."""
        row = row.float()
        if self._processors:
            ids: Any = torch.tensor([self._ids + drafted], device=self._device)
            row = self._processors(ids.to(row.device), row[None])[0]
        return row.cpu()

    def _draw(self, weights: Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=self._random))


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
