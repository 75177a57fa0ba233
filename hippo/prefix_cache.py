"""What requests on one video have in common is read once: the target's keys and values, and the embeddings.

An entry is found by the pixels that the model saw, by token ids and by positions, so neither a file that changed nor
another way of sampling it can give a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hippo.device import free_memory
from hippo.families import Embeds, Prompt
from hippo.forward import CachedModel

_LEAST = 16  # tokens that two prompts must have in common
_FEW = 4  # tokens of a question; fewer new ones do not say which video tokens matter
_SHARE = 0.2  # of the free memory, by default


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a prompt's beginning. count: tokens. keys_and_values: see `CachedModel.keys_and_values`. embeds:
    of the whole prompt, if it holds no media beyond those of the beginning."""

    count: int
    keys_and_values: Tensor
    embeds: Embeds | None


@dataclass(frozen=True, eq=False)
class _Entry:
    media: bytes
    ids: Tensor
    positions: Tensor
    keys_and_values: Tensor
    embeds: Embeds  # as far as the last token that is not text

    @property
    def size(self) -> int:
        deep = self.embeds.arguments.get("deepstack_visual_embeds", [])
        return self.keys_and_values.nbytes + sum(rows.nbytes for rows in (self.embeds.tokens, *deep))


class PrefixCache:
    """The keys and values of answered requests, least recently used first out.

    budget: bytes; None: a fifth of the memory that is free when the first entry comes.
    """

    def __init__(self, budget: int | None = None) -> None:
        self._budget, self._entries = budget, list[_Entry]()  # the latest used is the last

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(entry.size for entry in self._entries)

    def find(self, prompt: Prompt, media: bytes, lookup: Any) -> Known | None:
        """The entry that has most in common with a prompt. media: see `hippo.inputs.media_key`. lookup: ids ->
        embeddings."""
        best, most = None, _LEAST - 1
        for entry in self._entries:
            if entry.media == media and (count := _in_common(entry, prompt)) > most:
                best, most = entry, count
        if best is None:
            return None
        self._entries.remove(best)
        self._entries.append(best)
        count = min(most, len(prompt.input_ids) - 1)
        if len(prompt.video_at) and int((prompt.question_at >= count).sum()) < _FEW:
            count = min(count, int(prompt.question_at[0]))
        if count < _LEAST:
            return None
        embeds, media_end = None, len(best.embeds)
        if media_end <= count:
            embeds = best.embeds.followed_by(lookup(prompt.input_ids[media_end:]))
        return Known(count, best.keys_and_values, embeds)

    def put(self, prompt: Prompt, answer: list[int], media: bytes, embeds: Embeds, target: CachedModel) -> None:
        """Keep what a request leaves behind. answer: its tokens; the target may have read only some of them."""
        length = target.length
        if length < _LEAST:
            return
        if self._budget is None:
            self._budget = int(_SHARE * free_memory(embeds.tokens.device))
        ids = torch.cat([prompt.input_ids, prompt.input_ids.new_tensor(answer)])[:length]
        new = torch.arange(length - len(prompt.input_ids), device=prompt.positions.device)
        positions = torch.cat([prompt.positions, prompt.next_position[:, None] + new], dim=1)
        same = {id(other): _shared(other.ids, ids) for other in self._entries if other.media == media}
        if len(ids) in same.values():
            return  # it begins an entry that is there
        if target.size > self._budget or (tensor := target.keys_and_values()) is None:
            return
        entry = _Entry(media, ids, positions, tensor, embeds)
        self._entries = [other for other in self._entries if same.get(id(other)) != len(other.ids)]
        self._entries.append(entry)
        while self._entries and self.size > self._budget:
            self._entries.pop(0)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def media_end(prompt: Prompt, embeds: Embeds, lookup: Any) -> int:
    """Where the text after the last video or image begins."""
    other = (embeds.tokens != lookup(prompt.input_ids)).any(dim=-1).nonzero()
    return int(other[-1]) + 1 if len(other) else 0


def _shared(one: Tensor, other: Tensor) -> int:
    """How many ids two texts have in common at their beginning."""
    count = min(len(one), len(other))
    differ = (one[:count] != other[:count]).nonzero()
    return int(differ[0]) if len(differ) else count


def _in_common(entry: _Entry, prompt: Prompt) -> int:
    count = _shared(entry.ids, prompt.input_ids)
    differ = (entry.positions[:, :count] != prompt.positions[:, :count]).any(dim=0).nonzero()
    return int(differ[0]) if len(differ) else count
