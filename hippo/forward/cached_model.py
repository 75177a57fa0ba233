"""A text model with its KV cache and positions: prefill once, extend by a few tokens, roll back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hippo import tensor_parallel
from hippo.device import bytes_per_token, clock, free_memory, total_memory
from hippo.errors import BadRequest
from hippo.families import Embeds, Family, Prompt
from hippo.forward.attention import attending_apart, attending_by_token, without_mask
from hippo.forward.batch_invariant import MOST_ROWS, least_rows
from hippo.forward.cuda_graphs import DRAFTING, RUN, WIDTHS, Recorded, prepare, recorded_for, records
from hippo.forward.fused import FusedDecoder, fused
from hippo.forward.kv_cache import KVCache, PassedOn, cache_argument
from hippo.forward.likeliest import Repetition, likeliest
from hippo.forward.observe import Observer, observing, wrapping

_MOST_SPARE = 4096  # tokens; upper bound of the room made in advance for an answer
Progress = Callable[[str, float], None]

_WHOLE = 8192 * 18944  # tokens x MLP width that one prefill forward reads on a CPU: 8192 tokens of a 7B model
_OF_GPU, _OF_FREE = 1 / 8, 1 / 2  # shares of a GPU's memory, all and free, that one prefill forward may take
_PART = 2048  # tokens per forward of a longer prompt: bounds memory, and is slower
_FEW = 512  # tokens; prompts up to this length use the fused forward, whose attention memory is quadratic
_TABLE = 512  # positions by which the rotary table grows
_MASKED = ("sdpa", "eager")  # attention functions that take any additive mask


class CachedModel:
    """One request's view of a language model. Positions and keys are kept here; the shared module is never changed.

    language_model: inputs_embeds, position_ids, attention_mask, a KV cache -> last_hidden_state.
    head: hidden states -> logits. lookup: token ids -> input embeddings. may_fuse: false for transformers' own forward.
    spare: tokens that are likely to follow the prompt.
    fixed_width: after the prefill every forward is padded to so many tokens and sees the whole room of the KV cache, so
    that a token's logits have the same bits wherever it is in a window; 0 is off.
    drafts: whether it is a draft's, which decides what is recorded on a GPU.
    """

    def __init__(
        self,
        language_model: Any,
        head: nn.Module,
        lookup: nn.Module,
        may_fuse: bool = True,
        spare: int = 256,
        fixed_width: int = 0,
        drafts: bool = False,
    ) -> None:
        self._language_model, self._head, self._lookup = language_model, head, lookup
        # Only what is recorded has fused forwards of one shape.
        like = next(language_model.parameters())
        self._may_fuse = may_fuse and (not fixed_width or records(like.device))
        self._half_on_cpu = like.device.type == "cpu" and like.dtype in (torch.bfloat16, torch.float16)
        self._drafts = drafts
        self._fixed_width, self._capacity = fixed_width, 0
        self._widths = DRAFTING if drafts else (fixed_width,) if fixed_width else WIDTHS
        config = language_model.config
        self._intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        self._fused: FusedDecoder | None = None
        devices = {parameter.device for parameter in language_model.parameters()}
        # At a fixed width the room must not grow: its size is part of the shapes.
        self._together, self._spare = len(devices) == 1, spare if fixed_width else min(spare, _MOST_SPARE)
        self._kv = KVCache(config, self._together, self._spare, clear=bool(fixed_width))
        self._recorded: Recorded | None = None
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._first = 0
        self._next: Tensor = torch.zeros(1, dtype=torch.long)
        self.forwards = 0
        self.seconds, self.width, self.longest = 0.0, 0, 0  # of the last extend; the mean and largest of all requests

    @classmethod
    def of(
        cls,
        family: Family,
        model: Any,
        may_fuse: bool = True,
        spare: int = 256,
        fixed_width: int = 0,
        drafts: bool = False,
    ) -> CachedModel:
        """A fresh one for a model of a family."""
        head, lookup = model.get_output_embeddings(), model.get_input_embeddings()
        return cls(family.language_model(model), head, lookup, may_fuse, spare, fixed_width, drafts)

    def prepare(self) -> None:
        """Make now what all requests share, rather than in the first of them: fused forwards, and on a GPU recordings
        of them."""
        decoder = fused(self._language_model)
        if decoder is not None and self._together and records(decoder.keys.device):
            prepare(decoder, self._lookup, self._head, self._widths)

    @property
    def widest(self) -> int:
        """Tokens that one `extend` takes at most; 0 for any number."""
        return self._fixed_width

    def read(self, embeds: Embeds, prompt: Prompt, progress: Progress | None = None) -> Tensor:
        """Read a whole prompt. Returns (vocabulary,) logits."""
        *_, logits = self.reading(embeds, prompt, progress)
        return logits

    def reading(
        self,
        embeds: Embeds,
        prompt: Prompt,
        progress: Progress | None = None,
        part: int | None = None,
        known: tuple[Tensor, int] | None = None,
    ) -> Iterator[Tensor]:
        """Read a prompt part by part; one forward reads its question, so that its attention can be recorded. Yields
        (vocabulary,) logits after each part. progress, part: see `prefilling`. known: keys and values of another
        request (see `keys_and_values`), and how many tokens the two have in common, which are not read again."""
        begin = 0
        question = len(embeds) - int(prompt.question_at[0]) if len(prompt.video_at) else 1
        if known is not None:
            begin, question = known[1], min(question, len(embeds) - known[1])
        return self.prefilling(
            embeds, prompt.positions, prompt.next_position, question, progress, part, known and known[0], begin
        )

    def prefill(self, embeds: Embeds, positions: Tensor, next_position: Tensor, question: int = 1) -> Tensor:
        """See `prefilling`. Returns (vocabulary,) logits."""
        *_, logits = self.prefilling(embeds, positions, next_position, question)
        return logits

    @torch.inference_mode()
    def prefilling(
        self,
        embeds: Embeds,
        positions: Tensor,
        next_position: Tensor,
        question: int = 1,
        progress: Progress | None = None,
        part: int | None = None,
        known: Tensor | None = None,
        begin: int = 0,
    ) -> Iterator[Tensor]:
        """Read a prompt of L tokens. positions: (axes, L); next_position: (axes,). question: tokens at its end that one
        forward reads. progress: called with a phase and its share, if the prompt is long. part: tokens that one
        forward reads, unless the question is longer; None: as many as memory allows. known, begin: keys and values
        whose first `begin` tokens are this prompt's. Yields (vocabulary,) logits after each part."""
        self._begin(len(embeds), next_position)
        padded = self._fixed_width and self._recorded is None  # by transformers' own forward
        if padded and self._attention and self._attention not in _MASKED:
            hint = "leave verify_width out, or attn_implementation"
            raise BadRequest(f"attention {self._attention!r} takes no mask, which a fixed width needs", hint)
        if known is not None:
            self._kv.load(known[..., :begin, :])
        for rows in prefill_parts(self._first - begin, question, self._longest(embeds.tokens), part):
            rows = slice(rows.start + begin, rows.stop + begin)
            with observing(*([self._reporter(progress, rows)] if progress and self._first > _PART else [])):
                logits = self._forward(embeds[rows], positions[:, rows], last_only=True)
            if padded and rows.stop == self._first:
                self._capacity = self._kv.show_whole()
                if not self._capacity:
                    raise BadRequest("this model's cache does not allow a fixed width", "leave verify_width out")
            yield logits[0]

    @torch.inference_mode()
    def prefill_few(self, embeds: Embeds, positions: Tensor, next_position: Tensor) -> Tensor:
        """As `prefill`, by the fused forward if there is one and the prompt is short, as a draft's is after pruning."""
        if self._may_fuse and len(embeds) <= _FEW and not embeds.arguments:
            self._fused = fused(self._language_model)
        if self._fused is None:
            return self.prefill(embeds, positions, next_position)
        self._begin(len(embeds), next_position)
        hidden = self._fused.forward(embeds.tokens, self._fused.rotary(positions), (self._kv, len(embeds)))
        return self._head(hidden[-1:])[0]

    def _begin(self, first: int, next_position: Tensor) -> None:
        """Prepare for a prompt of `first` tokens."""
        self._next, self._first = next_position, first
        if self._may_fuse and self._together and records(next_position.device):
            self._fused = fused(self._language_model)
            if self._fused is not None and (self._fixed_width or not self._fused.unrecorded):
                config, tokens = self._language_model.config, first + self._spare + WIDTHS[-1]
                exact = self._fixed_width > 0
                self._recorded = recorded_for(self, self._fused, self._lookup, self._head, tokens, exact)
                self._recorded.begin(first, next_position, self._widths)
                self._kv = KVCache(config, True, room=self._recorded.room)
                return
        self._kv.expect(first)

    @torch.inference_mode()
    def extend(self, ids: Sequence[int]) -> Tensor:
        """Append n generated tokens, all or none. Returns (n, vocabulary) logits, row i for the token after ids[i]."""
        device = self._next.device
        began = clock(device)
        recording = 0.0
        with _all_or_none([self]):
            if self._recorded is not None and self._recorded.takes(len(ids)):
                logits = self._recorded.extend(ids, self.length)
                self._kv.lengthen(len(ids))
                recording = self._recorded.recording
            else:
                logits = self._extend(ids)
        self.forwards += 1
        self.width = self.longest = len(ids)
        self.seconds = clock(device) - began - recording
        return logits

    @torch.inference_mode()
    def draft(
        self, ids: Sequence[int], count: int, limit: int, repetition: Repetition | None = None
    ) -> list[tuple[int, float]]:
        """Append `ids`, then the likeliest tokens one by one. Returns these with their probabilities: at least one, at
        most `count`. All but the last are then in the cache. limit: only ids below it are proposed. repetition: of the
        text, `ids` included."""
        if self._recorded is not None and count >= RUN:
            if len(ids) > 1:
                self.extend(ids[:-1])
            tokens, probs = self._recorded.draft(ids[-1], self.length, limit, repetition)
            self._kv.lengthen(RUN)
            self.forwards += RUN
            return list(zip(tokens, probs, strict=True))
        token, prob = (number.item() for number in likeliest(self.extend(ids)[-1:], limit, repetition))
        return [(int(token), prob)]

    def _extend(self, ids: Sequence[int]) -> Tensor:
        """`extend` without CUDA graphs."""
        if self._fixed_width:
            return self._extend_padded(ids)
        if (decoder := self._fuses()) is None and self._by_token:
            return _logits_by_layers([(self, ids)])
        device, begin = self._next.device, self.length - self._first
        embeds = self._lookup(torch.tensor(ids, device=device))
        if decoder is not None:
            hidden = decoder.forward(embeds, self._rotary_at(begin, begin + len(ids)), (self._kv, len(ids)))
            return self._head(hidden)
        positions = self._next[:, None] + torch.arange(begin, begin + len(ids), device=device)
        return self._forward(Embeds(embeds), positions)

    def _extend_padded(self, ids: Sequence[int]) -> Tensor:
        """`extend` at the fixed width. The order in which a product adds up depends on its shape, which is always the
        same here, and not on the other rows; what is masked adds exact zeros."""
        device, width, length = self._next.device, self._fixed_width, self.length
        embeds = self._lookup(torch.tensor([*ids, *[ids[-1]] * (width - len(ids))], device=device))
        rows = torch.arange(width, device=device)
        unseen = torch.arange(self._capacity, device=device) > length + rows[:, None]
        mask = embeds.new_zeros(unseen.shape).masked_fill(unseen, float("-inf"))[None, None]
        logits = self._forward(Embeds(embeds), self._next[:, None] + length - self._first + rows, mask=mask)
        self._kv.rollback(width - len(ids))
        return logits[: len(ids)]

    def _fuses(self) -> FusedDecoder | None:
        """The fused forward, if there is one; asked for with the first token after the prompt."""
        if self._may_fuse and self._fused is None and self.length == self._first:
            self._fused = fused(self._language_model)
        return self._fused

    def joins(self) -> bool:
        """Whether its forwards can be made together with those of other requests."""
        together = not self._fixed_width and self._recorded is None and self._kv.full_attention
        return together and self._attention in _MASKED

    @property
    def _by_token(self) -> bool:
        """Whether each token attends for itself, which in half precision on a CPU is the faster way too."""
        return self._half_on_cpu and self._attention == "sdpa" and self.joins()

    @property
    def batch_invariant(self) -> bool:
        """Whether a token's logits have the same bits whatever else a forward after the prefill holds."""
        return self._by_token and least_rows(self._language_model, self._head) > 0

    @property
    def _least(self) -> int:
        """Rows that a forward has at least. A draft's bits do not matter."""
        return 1 if self._drafts or not self._by_token else max(1, least_rows(self._language_model, self._head))

    @property
    def _attention(self) -> str:
        return getattr(self._language_model.config, "_attn_implementation", None) or ""

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self._kv.rollback(count)

    def keys_and_values(self) -> Tensor | None:
        """(layers, 2, H_kv, capacity, d), of which the first `length` tokens are used, for requests with the same
        beginning. None if the model's layers keep something else. Later tokens may be written behind these."""
        tensor = self._kv.tensor
        return tensor.clone() if tensor is not None and self._recorded is not None else tensor

    @property
    def size(self) -> int:
        """Bytes that the keys and values take, with the room made for more."""
        return self._kv.size

    @property
    def length(self) -> int:
        """Tokens in the cache, prompt included."""
        return self._kv.length

    def _rotary_at(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the generated tokens begin..end-1, from a table that grows with the answer."""
        assert self._fused is not None
        if self._rotary is None or end > len(self._rotary[0]):
            places = torch.arange(-(-end // _TABLE) * _TABLE, device=self._next.device)
            self._rotary = self._fused.rotary(self._next[:, None] + places)
        cos, sin = self._rotary
        return cos[begin:end], sin[begin:end]

    def _reporter(self, progress: Progress, part: slice) -> Observer:
        """Reports progress layer by layer while one part of a prompt is read."""
        layers, first, length = self._language_model.config.num_hidden_layers, self._first, part.stop - part.start

        def report(layer: int, *_: object) -> None:
            progress("reading the prompt", (part.start + length * (layer + 1) / layers) / first)

        return report

    def _longest(self, like: Tensor) -> int:
        """Tokens of a prompt that one forward reads, for embeddings `like` (n, D)."""
        if like.device.type != "cuda":
            return _WHOLE // self._intermediate
        config, free = self._language_model.config, free_memory(like.device)
        if not self._kv.size:
            free -= bytes_per_token(config, like.dtype) * self._first
        # The share of all memory is the same each time, and so are the parts, unless memory is short.
        room = min(_OF_GPU * total_memory(like.device), _OF_FREE * free)
        return tensor_parallel.all_min(int(room / prefill_bytes(self._intermediate, like)))

    def _forward(
        self, embeds: Embeds, positions: Tensor, last_only: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        if mask is None:
            # Without an explicit mask of ones, transformers takes the gaps that pruning leaves in the positions for
            # borders between packed sequences.
            mask = torch.ones(1, self.length + len(embeds), dtype=torch.bool, device=embeds.tokens.device)
        causal = last_only and self.length > 0 and self._kv.full_attention and self._attention == "sdpa"
        with wrapping(without_mask, innermost=True) if causal else nullcontext():
            hidden = self._hidden(embeds, positions, mask, self._kv)
        return self._head(hidden[-1:] if last_only else hidden)

    def _hidden(self, embeds: Embeds, positions: Tensor, mask: Tensor, kv: KVCache | PassedOn) -> Tensor:
        """(n, D) of transformers' own forward."""
        return self._language_model(
            inputs_embeds=embeds.tokens[None],
            position_ids=positions if len(positions) == 1 else positions[:, None],
            attention_mask=mask,
            use_cache=True,
            **{cache_argument(self._language_model): kv.cache},
            **embeds.arguments,
        ).last_hidden_state[0]


@torch.inference_mode()
def extend_together(parts: Sequence[tuple[CachedModel, Sequence[int]]]) -> list[Tensor]:
    """`extend` for several requests of one model. All products are made over the tokens of all requests, and each
    request attends to its own keys and values. Returns the (n, vocabulary) logits of each. If it fails, none has more
    tokens."""
    with _all_or_none([one for one, _ in parts]):
        return _extend_together(parts)


@contextmanager
def _all_or_none(models: Sequence[CachedModel]) -> Iterator[None]:
    lengths = [one.length for one in models]
    try:
        yield
    except BaseException:
        for one, length in zip(models, lengths, strict=True):
            one._kv.truncate(length)
        raise


def _extend_together(parts: Sequence[tuple[CachedModel, Sequence[int]]]) -> list[Tensor]:
    first, ids = parts[0][0], [id for _, own in parts for id in own]
    width, longest = round(len(ids) / len(parts)), max(len(own) for _, own in parts)
    if len(parts) == 1 or len(ids) > MOST_ROWS or not all(one.joins() for one, _ in parts):
        apart = [one.extend(own) for one, own in parts]
        seconds = sum(one.seconds for one, _ in parts)
        for one, _ in parts:
            one.seconds, one.width, one.longest = seconds, width, longest  # each waits for all
        return apart
    device, counts = first._next.device, [len(own) for _, own in parts]
    began = clock(device)
    decoders = [one._fuses() for one, _ in parts]
    if (decoder := decoders[0]) is not None and all(other is decoder for other in decoders):
        answered = [(one, one.length - one._first, len(own)) for one, own in parts]
        cos, sin = zip(*(one._rotary_at(begin, begin + count) for one, begin, count in answered), strict=True)
        kvs = [(one._kv, count) for one, _, count in answered]
        embeds = first._lookup(torch.tensor(ids, device=device))
        logits = first._head(decoder.forward(embeds, (torch.cat(cos), torch.cat(sin)), *kvs))
    else:
        logits = _logits_by_layers(parts)
    seconds = clock(device) - began
    for one, _ in parts:
        one.forwards += 1
        one.seconds, one.width, one.longest = seconds, width, longest
    return list(logits.split(counts))


def _logits_by_layers(parts: Sequence[tuple[CachedModel, Sequence[int]]]) -> Tensor:
    """(n, vocabulary) of the new tokens of one request or of several, by the model's own layers."""
    first, ids = parts[0][0], [id for _, own in parts for id in own]
    device, places = first._next.device, []
    for one, own in parts:
        begin = one.length - one._first
        places.append(one._next[:, None] + torch.arange(begin, begin + len(own), device=device))
    fill = max(0, first._least - len(ids))
    places.append(places[-1][:, -1:].expand(-1, fill))
    embeds = Embeds(first._lookup(torch.tensor([*ids, *ids[-1:] * fill], device=device)))
    attending = attending_by_token if first._by_token else attending_apart
    with wrapping(attending([(one._kv, len(own)) for one, own in parts])):
        hidden = first._hidden(embeds, torch.cat(places, dim=1), embeds.tokens.new_zeros(1, 1, 1, 1), PassedOn())
    return first._head(hidden)[: len(ids)]


def prefill_bytes(width: int, like: Tensor) -> int:
    """Bytes that a prefill forward takes for each token, beside its keys and values: three rows of the MLP, of `width`,
    and eight of hidden states, some of which are in float32. like: embeddings, (n, D)."""
    return 3 * width * like.dtype.itemsize + 8 * like.shape[-1] * 4


def prefill_parts(length: int, question: int, longest: int, part: int | None = None) -> list[slice]:
    """The forwards that read a prompt: by `part` tokens, or one, unless it is longer than `longest`. The last one holds
    at least the `question` tokens at the end."""
    if length < 2 * part if part else length <= longest:
        return [slice(0, length)]
    size = part or _PART
    last = length - max(size, question)
    return [*(slice(begin, min(begin + size, last)) for begin in range(0, last, size)), slice(max(0, last), length)]
