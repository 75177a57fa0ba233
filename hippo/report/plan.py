"""What a pair would bring on this machine, before anything is downloaded or loaded: from configurations and measured
rates of this machine, by the scheduler's own formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hippo.checkpoints import (
    LARGE,
    SPREAD,
    cpu_dtype,
    known_bits,
    no_self_draft,
    pick_device,
    skeleton,
    stored_bytes,
    stored_dtype,
)
from hippo.decode.costs import LARGEST, Costs, in_turns_speed, parallel_speed
from hippo.device import free_memory
from hippo.draft import placement
from hippo.errors import BadRequest, HippoError
from hippo.families import family_of, require_family
from hippo.pair import free_width
from hippo.report.rates import packed_bytes, rates
from hippo.system import UNKNOWN

ACCEPTANCES = (0.6, 0.7, 0.8, 0.9, 0.95)
DRAFT_BITS = (16, 8, 4)
_OPERATIONS = 25  # in a layer, beside its matrix products
_SHARED = 2.0  # of one memory's time, for each of two models that read from it at once
_GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """Of a model, in numbers unless said otherwise.

    read: weights that one token's forward reads: the layers and the head. rest: embeddings and vision tower. layers:
    how many. cache: of a token in the KV cache. dtype: torch's name of the stored one, "" if that is not said. stored:
    bytes of quantised weights, 0 for others.
    """

    name: str
    read: int
    rest: int
    layers: int
    cache: int
    dtype: str = ""
    stored: int = 0

    def weight_bytes(self, dtype: str, bits: int = 16) -> int:
        """Of all weights in a torch dtype, those that are read packed in so many bits."""
        if self.stored:
            return self.stored
        size = getattr(torch, dtype).itemsize
        return int(self.rest * size + self.read * (size if bits == 16 else packed_bytes(bits)))


@dataclass(frozen=True)
class Choice:
    """At an acceptance: how much faster than plain decoding each way is, and with how many drafted tokens."""

    acceptance: float
    in_turns: float
    gamma: int
    parallel: float | None
    parallel_gamma: int | None
    best: str

    @property
    def speed(self) -> float:
        """Of the best way."""
        return {"plain": 1.0, "in turns": self.in_turns, "parallel": self.parallel or 0.0}[self.best]

    def __str__(self) -> str:
        at = f"at acceptance {self.acceptance:g}"
        if self.best == "plain":
            return f"plain decoding, nothing is faster {at}"
        gamma = self.gamma if self.best == "in turns" else self.parallel_gamma
        return f"{self.best}, {gamma} token{'s' * (gamma != 1)}, about {self.speed:.1f}x {at}"


@dataclass(frozen=True)
class Plan:
    """A prediction. Seconds of a target forward by its tokens, of a draft step by its bits; bytes by device: those
    needed with what needs them, and those free."""

    target: Sizes
    draft: Sizes
    context: int
    devices: tuple[str, str]
    dtypes: tuple[str, str]
    place: str
    bits: int
    target_seconds: dict[int, float]
    draft_seconds: dict[int, float]
    choices: tuple[Choice, ...]
    memory: dict[str, tuple[int, int]]
    short: str

    @property
    def sentence(self) -> str:
        """What to expect, at the acceptance nearest to 0.8."""
        choice = min(self.choices, key=lambda one: abs(one.acceptance - 0.8))
        return f"with this pair on this machine: {choice}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: milliseconds, GiB."""
        return {
            "target": vars(self.target) | {"device": self.devices[0], "run_in": self.dtypes[0]},
            "draft": vars(self.draft) | {"device": self.devices[1], "run_in": self.dtypes[1], "bits": self.bits},
            "context": self.context,
            "draft_worker": self.place,
            "target_ms": {str(width): 1e3 * seconds for width, seconds in self.target_seconds.items()},
            "draft_ms": {str(bits): 1e3 * seconds for bits, seconds in self.draft_seconds.items()},
            "choices": [vars(choice) | {"speed": choice.speed} for choice in self.choices],
            "memory_gib": {
                device: {"needed": needed / _GIB, "free": None if free == UNKNOWN else free / _GIB}
                for device, (needed, free) in self.memory.items()
            },
            "fits": not self.short,
            "short": self.short,
            "sentence": self.sentence,
        }


def sizes_of(source: str) -> Sizes:
    """Of a checkpoint folder, or a hub id whose config.json is in the local cache. No weights are read, and nothing is
    downloaded. Raises HippoError."""
    from transformers import PreTrainedConfig

    try:
        settings = PreTrainedConfig.get_config_dict(source, local_files_only=True)[0]
    except Exception:  # a hub id that is not cached, a folder that is none, JSON that is damaged
        raise HippoError(
            f"there is no configuration of {source} on this machine",
            f"name a folder with a config.json, or run `hf download {source} config.json`",
        ) from None
    require_family(settings.get("model_type", ""))
    quantised = bool(settings.get("quantization_config"))
    try:
        model = skeleton(source)
    except Exception as error:
        raise HippoError(
            f"the configuration of {source} makes no model ({' '.join(str(error).split())[:160]})",
            "check that it is that of a whole video-LLM checkpoint",
        ) from None
    return sizes_of_model(model, source, stored_dtype(settings), stored_bytes(source) if quantised else 0)


def sizes_of_model(model: Any, name: str, dtype: str = "", stored: int = 0) -> Sizes:
    """Of a model, which may be on the meta device."""
    text, config = family_of(model).language_model(model), model.config.get_text_config()
    lookup, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    read = sum(_share_read(key, config) * one.numel() for key, one in text.named_parameters() if one is not lookup)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    read, every = int(read) + head.numel(), sum(one.numel() for one in model.parameters())
    layers = config.num_hidden_layers
    return Sizes(name, read, max(0, every - read), layers, 2 * layers * heads * size, dtype, stored)


def plan(
    target: Sizes,
    draft: Sizes | None,
    *,
    context: int = 1024,
    keep_ratio: float = 0.1,
    acceptances: Sequence[float] = ACCEPTANCES,
    device: str = "auto",
    draft_device: str = "auto",
    dtype: str = "auto",
    draft_worker: str = "auto",
    draft_bits: int | str = "auto",
) -> Plan:
    """Predict a pair.

    Args:
        target, draft: see `sizes_of`; None for a target that drafts for itself, in 4 bits unless draft_bits says
            otherwise.
        context: tokens of the prompt, of which the draft sees `keep_ratio`.
        acceptances: chances that a drafted token is accepted, each in [0, 1).
        device, draft_device, dtype, draft_worker, draft_bits: as `hippo.load` has them.

    Raises:
        HippoError: BadRequest for a value that makes no sense.
    """
    if any(not 0 <= rate < 1 for rate in acceptances) or not acceptances:
        raise BadRequest(f"acceptance {tuple(acceptances)} is not in [0, 1)", "use some such as 0.6,0.8,0.9")
    if not 0 < keep_ratio <= 1:
        raise BadRequest(f"keep_ratio {keep_ratio:g} is not in (0, 1]", "0.1 keeps a tenth")
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise BadRequest(f"unknown dtype {dtype!r}", "use auto, float32, bfloat16 or float16")
    wanted = known_bits(4 if draft is None and draft_bits == "auto" else draft_bits)
    if draft is None and target.stored and wanted < 16:
        raise no_self_draft(target.name)
    draft = draft or target
    places = _places(device, draft_device)
    dtypes = _dtype(target, places[0], dtype), _dtype(draft, places[1], dtype)
    weights = target.weight_bytes(dtypes[0]) + draft.weight_bytes(dtypes[1])
    place = placement(draft_worker, *places, weights)
    padded = free_width(getattr(torch, dtypes[0]), places[0])
    forward = _forward_seconds(target, places[0], dtypes[0], context)
    by_width = {width: forward(width) for width in range(1, 9)}
    of_draft = (draft, places[1], dtypes[1], keep_ratio * context)
    by_bits = {bits: _forward_seconds(*of_draft, bits)(1) for bits in ((16,) if draft.stored else DRAFT_BITS)}
    wanted = 16 if draft.stored else wanted  # packed already
    # In 16 bits where hippo.load would not pack: see `bits_for`.
    packs = place != "process" and places[1] == "cpu"
    bits = wanted or (min(by_bits, key=lambda one: by_bits[one] * 1.1 ** DRAFT_BITS.index(one)) if packs else 16)
    shares_memory = places[0] == places[1] and weights > LARGE
    each = {width: forward(max(width, padded)) for width in by_width}
    costs = _costs(each, by_bits[bits], None if places[0] == places[1] and not shares_memory else shares_memory)
    most = (padded or LARGEST + 1) - 1
    plain = 1 / by_width[1]
    choices = tuple(_choice(costs, plain, rate, most, beside=place != "inline") for rate in acceptances)
    memory, short = _memory(target, draft, places, dtypes, bits, context)
    return Plan(
        target, draft, context, places, dtypes, place, bits, by_width, by_bits, choices, memory, short
    )  # fmt: skip


def _places(device: str, draft_device: str) -> tuple[str, str]:
    place, several = pick_device(device), torch.cuda.device_count() > 1
    place = "cuda:0" if place in (SPREAD, "cuda") else place
    if draft_device != "auto":
        return place, pick_device(draft_device)
    return place, "cuda:1" if several and device == "auto" and place == "cuda:0" else place


def _dtype(sizes: Sizes, device: str, dtype: str) -> str:
    if dtype != "auto":
        return dtype
    if device != "cpu":
        return sizes.dtype or "bfloat16"
    return cpu_dtype(sizes.dtype or "bfloat16", sizes.weight_bytes("bfloat16"), bool(sizes.stored))


def _forward_seconds(sizes: Sizes, device: str, dtype: str, context: float, bits: int = 16) -> Callable[[int], float]:
    """What a forward over so many tokens takes: weights and cache read once, and operations started."""
    rate, plain = rates(device, dtype, bits), rates(device, dtype)
    fixed = sizes.layers * _OPERATIONS * plain.operation + sizes.cache * context * plain.at(1)
    # Weights that are stored packed are taken to be read as fast as others, byte by byte.
    share = sizes.stored / ((sizes.read + sizes.rest) * getattr(torch, dtype).itemsize) if sizes.stored else 1.0
    return lambda width: fixed + share * sizes.read * rate.at(width)


def _costs(by_width: dict[int, float], draft: float, shared: bool | None) -> Costs:
    """As the scheduler would measure them. shared: whether both models wait for one memory; None if neither does, and
    what they cost each other is left to be guessed as the scheduler guesses it."""
    costs = Costs()
    for width, seconds in by_width.items():
        costs.saw_target(width, seconds, both=False)
    costs.saw_draft(draft, both=False)
    if shared is not None:
        factor = _SHARED if shared else 1.0
        for width, seconds in by_width.items():
            costs.saw_target(width, factor * seconds, both=True)
        costs.saw_draft(factor * draft, both=True)
    return costs


def _choice(costs: Costs, plain: float, rate: float, most: int, beside: bool) -> Choice:
    """plain: tokens a second of generate(), which never pads a forward."""
    in_turns, gamma = in_turns_speed(costs, [rate], most)
    together, chunk = parallel_speed(costs, [rate]) if beside else (None, None)
    speeds = {"plain": plain, "in turns": in_turns, "parallel": together or 0.0}
    best = max(speeds, key=lambda way: speeds[way])
    return Choice(rate, in_turns / plain, gamma, None if together is None else together / plain, chunk, best)


def _memory(
    target: Sizes, draft: Sizes, places: tuple[str, str], dtypes: tuple[str, str], bits: int, context: int
) -> tuple[dict[str, tuple[int, int]], str]:
    """Bytes needed and free by device, and what is short, in a sentence with what would fit; "" if nothing is."""
    cache = target.cache * context * getattr(torch, dtypes[0]).itemsize
    alone, beside = target.weight_bytes(dtypes[0]) + cache, draft.weight_bytes(dtypes[1], bits)
    needed: dict[str, int] = {}
    for device, size in zip(places, (alone, beside), strict=True):
        needed[device] = needed.get(device, 0) + size
    memory = {device: (size, free_memory(device)) for device, size in needed.items()}
    over = [device for device, (size, free) in memory.items() if size > free]
    if not over:
        return memory, ""
    device = over[0]
    size, free = memory[device]
    left = free - (alone if places[0] == device else 0)
    packed = next((b for b in DRAFT_BITS if b < bits and draft.weight_bytes(dtypes[1], b) <= left), None)
    if left < 0:
        fits = "not even the target fits: use a smaller one, or one that is quantised"
    elif packed:
        fits = f"a draft in {packed} bits fits: use --draft-bits {packed}"
    else:
        fits = f"{max(left, 0) / _GIB:.1f} GiB are left for a draft: use a smaller one"
    return memory, f"{size / _GIB:.1f} GiB are needed on {device} and {free / _GIB:.1f} are free; {fits}"


def _share_read(name: str, config: Any) -> float:
    """Of a parameter, what one token's forward reads: of experts, those that are asked."""
    experts, asked = getattr(config, "num_experts", None), getattr(config, "num_experts_per_tok", None)
    return asked / experts if experts and asked and ".experts." in name else 1.0
