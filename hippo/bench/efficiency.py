"""How near an answer's decoding comes to the same decoder on a machine without overhead: what forwards cost here, what
the draft proposes, and how long `ideal` then takes."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hippo.bench.simulate import Guess, ideal
from hippo.bench.synthetic_acceptance import accepts
from hippo.bench.traces import WIDTHS, by_width, guesses, prefilled, step_seconds
from hippo.device import clock, on_threads, shares
from hippo.errors import HippoError
from hippo.families import family_of
from hippo.forward import CachedModel
from hippo.inputs import on_device
from hippo.pair import Pair
from hippo.params import SamplingParams
from hippo.pruning import USUAL, pruner_named
from hippo.stats import Stats

_RUN = 64  # tokens that the draft is busy with while a target forward is timed
_COPIED = 1 << 30  # bytes that are copied at most, and held twice, to find the bandwidth: far more than caches hold


class Answer(NamedTuple):
    """What is known of a decoder's answers: its options, the seconds they took to decode, their tokens, the seconds of
    the target's prefill, and the rate at which verdicts were drawn, None if they were not."""

    options: SamplingParams
    decode: float
    ids: list[int]
    prefill: float
    rate: float | None


@torch.no_grad()
def steps(pair: Pair, draft: Any, inputs: dict[str, Any], count: int = 24) -> dict[str, Any]:
    """Seconds of decode steps after the request's own prompt. target[width] and the draft, which sees a tenth of the
    video tokens, each alone on the threads it then has; both while the other works too; both by transformers' own
    forwards; and the least that a target forward can take, reading its weights and its KV cache. draft: in memory."""
    alone, (beside, drafting) = torch.get_num_threads(), shares()
    target, small = (_readers(model, inputs, ratio) for model, ratio in ((pair.target, 1.0), (draft, 0.1)))
    busy, drafted = _beside(pair, inputs, target[0], count, beside)
    return {
        "target_read_once": _read_once(pair, target[0]),
        "target_alone": {width: step_seconds(target[0], width, count, alone) for width in WIDTHS},
        "target_undisturbed": {width: step_seconds(target[0], width, count, beside) for width in WIDTHS},
        "target_beside": busy,
        "draft": step_seconds(small[0], 1, 2 * count, drafting),
        "draft_beside": drafted,
        "target_by_transformers": step_seconds(target[1], 1, count, drafting),
        "draft_by_transformers": step_seconds(small[1], 1, 2 * count, drafting),
    }


def _read_once(pair: Pair, target: CachedModel) -> float:
    """Seconds to read what a target forward reads."""
    modules = (pair.family.language_model(pair.target), pair.target.get_output_embeddings())
    lookup = {id(parameter) for parameter in pair.target.get_input_embeddings().parameters()}
    weights = {id(p): p.nbytes for module in modules for p in module.parameters()}
    head = {id(parameter) for parameter in modules[1].parameters()}
    size = target.size + sum(each for known, each in weights.items() if known not in lookup - head)
    return reading_seconds(size, pair.target.device)


def reading_seconds(size: int, device: torch.device) -> float:
    """Seconds to read so many bytes, at the bandwidth of copying some of them within the device's memory."""
    source = torch.zeros(min(size, _COPIED), dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        began = clock(device)
        copy.copy_(source)
        seconds.append(clock(device) - began)
    return min(seconds) / 2 * size / len(source)  # a copy reads and writes


def _readers(model: Any, inputs: dict[str, Any], ratio: float) -> list[CachedModel]:
    """A model that has read the prompt, by our forwards and by transformers' own."""
    family, here = family_of(model), on_device(inputs, model.device)
    prompt, embeds = family.prepare_prompt(model.config, here), family.embed(model, here)
    kept = torch.arange(0, len(prompt.video_at), round(1 / ratio))
    return [prefilled(family, model, prompt, embeds, kept, may_fuse) for may_fuse in (True, False)]


def _beside(
    pair: Pair, inputs: dict[str, Any], target: CachedModel, count: int, threads: int
) -> tuple[dict[int, float], float]:
    """Seconds of target forwards by width while the pair's draft drafts, and of the draft's steps meanwhile."""
    prompt = pair.family.prepare_prompt(pair.target.config, on_device(inputs, pair.target.device))
    seconds: list[float] = []
    drafter = pair.drafter(Stats(), seconds.append, own_inputs=True)
    drafter.begin(inputs)
    drafter.prefill(torch.arange(0, len(prompt.video_at), 10), prompt.grids)
    while not (drafter.ready() or drafter.lost):
        time.sleep(0.001)

    def keep_busy() -> None:
        drafter.commit(0, [0])
        drafter.propose(_RUN)
        drafter.take(2)  # what was drafted before is over

    by = {width: step_seconds(target, width, count, threads, keep_busy) for width in WIDTHS}
    drafter.end()
    if drafter.lost:
        raise HippoError("the draft was lost while its steps were timed", "run it again")
    return by, median(seconds)


@torch.no_grad()
def reading(pair: Pair, draft: Any, inputs: dict[str, Any], options: SamplingParams) -> tuple[CachedModel, float]:
    """A draft that has read what it keeps of a prompt, a tenth where the ratio is "auto", and the seconds that took."""
    pruner = pruner_named(options.pruner)
    _, signals = pair.look(inputs, pruner.attention)
    kept = pruner.keep_all_of(signals, USUAL if options.keep_ratio == "auto" else float(options.keep_ratio))
    family, here = family_of(draft), on_device(inputs, draft.device)
    prompt, embeds = family.prepare_prompt(draft.config, here), family.embed(draft, here)
    seconds = []
    with on_threads(shares()[1]):
        for _ in range(3):
            began = time.perf_counter()
            reader = prefilled(family, draft, prompt, embeds, kept)
            seconds.append(time.perf_counter() - began)
    return reader, min(seconds)


def efficiency(
    answer: Answer, costs: dict[str, Any], pair: Pair, draft: Any, inputs: dict[str, Any]
) -> tuple[float, float]:
    """The decode time of the same decoder, with the same proposals, on a machine without overhead, over the measured
    one; and the same for a machine on which two models do not slow each other down.

    costs: of `steps`. draft: in memory. Where its tokens are chosen before the target's prefill ends, it reads
    meanwhile.
    """
    ids, decoder, target = answer.ids, answer.options.decoder, by_width(costs["target_alone"])
    if decoder == "ar":
        best = ideal([Guess(False, 0.0)] * (len(ids) - 1), target, costs["draft"], decoder).seconds
        return best / answer.decode, best / answer.decode
    reader, seconds = reading(pair, draft, inputs, answer.options)
    left = answer.prefill * _prefill_left(answer.options, pair.target.config.get_text_config().num_hidden_layers)
    if answer.rate is None:
        drafted = guesses(_rows(reader, ids), ids[1:])
    else:
        rate = answer.rate
        drafted = [Guess(accepts(rate, 0, place), rate) for place in range(1, len(ids))]
    ways = [(target, costs["draft"])] * 2
    if decoder in ("parallel", "auto"):
        ways = [
            (by_width(costs["target_beside"]), costs["draft_beside"]),
            (by_width(costs["target_undisturbed"]), costs["draft"]),
        ]
    both = [ideal(drafted, each, step, decoder, begins=max(0.0, seconds - left)).seconds for each, step in ways]
    return both[0] / answer.decode, both[1] / answer.decode


@torch.no_grad()
def _rows(reader: CachedModel, ids: list[int]) -> Tensor:
    return reader.extend(ids[:-1])


def _prefill_left(options: SamplingParams, layers: int) -> float:
    """The share of the target's prefill that is still to come when the draft's tokens are chosen."""
    attention = pruner_named(options.pruner).attention
    return 1.0 if attention is None else 1 - (max(attention.layers(layers)) + 1) / layers
