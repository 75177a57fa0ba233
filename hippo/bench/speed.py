"""How much faster? Our methods beside transformers' own, in turn, in one run: medians and spread, and how near that
comes to a machine without overhead."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
import transformers

from hippo.bench.efficiency import Answer, efficiency, steps
from hippo.bench.memory import peak
from hippo.bench.pruners import pruner_named
from hippo.bench.shapes import filled, shape_named
from hippo.bench.synthetic_acceptance import SyntheticPair
from hippo.checkpoints import known_attention, known_bits
from hippo.device import has_bfloat16
from hippo.draft import placement
from hippo.draft.worker import load_draft
from hippo.errors import HippoError
from hippo.forward.quantize import fastest_bits, linear_shapes, quantize
from hippo.inputs import messages_of
from hippo.llm import VideoLLM, load
from hippo.pair import Draft, Pair
from hippo.params import METHODS, SamplingParams
from hippo.report.baseline import generate_ids, transformers_generate
from hippo.request import DEFAULT_PROMPT
from hippo.stats import Stats

GENERATE, STATIC, ASSISTED, WRONG = "generate", "static", "assisted", "wrong-draft"
LIBRARY = (GENERATE, STATIC, ASSISTED)  # transformers' own
USUAL = (*LIBRARY, "ar", "sd", "specvlm", "pearl", "hippo", WRONG)
FIGURES = (
    *("method", "cannot_run", "new_tokens", "seconds", "decode_seconds", "speedup_vs_transformers"),
    *("decode_vs_transformers", "speedup_vs_ar", "decode_vs_ar", "tokens_per_target_forward"),
    *("acceptance_rate", "target_forwards"),
    *("scoring_share_of_prefill", "efficiency", "efficiency_undisturbed", "peak_memory", "identical", "synthetic"),
    *("identical_answers", "identical_to_ar", "timeline"),
)  # of a row; those that are not known are None
_ALSO = {"specvlm": {"decoder": "serial", "pruner": "specvlm"}}


def options_of(method: str, tokens: int) -> SamplingParams:
    """What the name of a method of ours means: a preset, `specvlm` (serial, SpecVLM's tokens) or DECODER+PRUNER. Raises
    HippoError."""
    if "+" in method:
        decoder, pruner = method.split("+", 1)
        return SamplingParams.of(decoder=decoder, pruner=pruner_named(pruner), max_new_tokens=tokens)
    if method not in METHODS and method not in _ALSO:
        known = ", ".join((*USUAL, "DECODER+PRUNER"))
        raise HippoError(f"unknown method {method!r}", f"use some of: {known}")
    return SamplingParams.of(**(_ALSO.get(method) or {"method": method}), max_new_tokens=tokens)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Run:
    """One answer. seconds: all the caller waited for; decode: from the first token to the last. stats: ours only."""

    token_ids: list[int]
    seconds: float
    decode: float
    stats: Stats | None = None


class Subject(Protocol):
    """What is measured: a pair and a request. synthetic: why its figures are, or nothing. run: the answers of each
    method so far."""

    synthetic: str
    run: int

    @property
    def pair(self) -> Pair:
        """Target and draft."""

    def inputs(self) -> dict[str, Any]:
        """The processor's output for the request."""

    def library(self, tokens: int, also: dict[str, Any]) -> Run:
        """An answer of transformers' generate(). also: more of its options."""

    def ours(self, options: SamplingParams) -> Run:
        """An answer of ours."""


class Clip:
    """A pair's own words about a clip, or without one. prompts: one for each run. said: None, or the answers of `ar` so
    far, by run: the prompts are then the turns of one conversation."""

    synthetic = ""

    def __init__(
        self, llm: VideoLLM, video: Path | None, prompts: Sequence[str] = (), said: dict[int, str] | None = None
    ) -> None:
        self._llm, self._video, self._prompts, self._said = llm, video, prompts or (DEFAULT_PROMPT,), said
        self.run = 0

    @property
    def pair(self) -> Pair:
        return self._llm.pair

    def inputs(self) -> dict[str, Any]:
        return self._llm.inputs(**self._request)

    def library(self, tokens: int, also: dict[str, Any]) -> Run:
        options = SamplingParams.of(max_new_tokens=tokens)
        answer = transformers_generate(self._llm, options, also, **self._request)
        return Run(answer.token_ids, answer.total, answer.decode)

    def ours(self, options: SamplingParams) -> Run:
        stream = self._llm.stream(**self._request, **_flat(options))
        for _ in stream:
            pass
        output = stream.output
        if self._said is not None and options.decoder == "ar":
            self._said[self.run] = output.text
        return Run(output.token_ids, output.stats.seconds.total, output.stats.seconds.decode, output.stats)

    @property
    def _request(self) -> dict[str, Any]:
        prompt = self._prompts[self.run % len(self._prompts)]
        if self._said is None:
            return {"video": self._video, "prompt": prompt}
        turns: list[dict[str, Any]] = []
        for run in range(self.run):
            said = {"role": "assistant", "content": [{"type": "text", "text": self._said[run]}]}
            turns += [*messages_of(None if turns else self._video, self._prompts[run]), said]
        return {"messages": [*turns, *messages_of(None if turns else self._video, prompt)]}


class Rated:
    """A request that a pair answers with verdicts drawn at a given rate, at a fixed length."""

    def __init__(self, pair: SyntheticPair, inputs: dict[str, Any], why: str) -> None:
        self._pair, self._inputs, self.synthetic, self.run = pair, inputs, why, 0

    @property
    def pair(self) -> Pair:
        return self._pair

    def inputs(self) -> dict[str, Any]:
        return self._inputs

    def library(self, tokens: int, also: dict[str, Any]) -> Run:
        if "assistant_model" in also:
            raise HippoError("transformers' assisted generation cannot be given a rate", "leave `assisted` out")
        length = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens}
        ids, decode, seconds = generate_ids(self.pair.target, self._inputs, length | also)
        return Run(ids, seconds, decode)

    def ours(self, options: SamplingParams) -> Run:
        stats, ids = Stats(), []
        for tokens in self._pair.sequence(self._inputs, options, stats):
            ids += tokens
        return Run(ids, stats.seconds.total, stats.seconds.decode, stats)


def _flat(options: SamplingParams) -> dict[str, Any]:
    return {"decoder": options.decoder, "pruner": options.pruner, "max_new_tokens": options.max_new_tokens}


def measure(
    subject: Subject,
    wrong: Subject,
    draft: Any,
    methods: Sequence[str],
    runs: int,
    tokens: int,
    progress: Callable[[str, float], None],
) -> list[dict[str, Any]]:
    """Rows, one a method: `runs` answers of each, taking turns; transformers' generate() and our `ar` always run.

    draft: the draft in memory. wrong: the same request of a pair whose draft is always wrong, for `wrong-draft`. A
    method that cannot run with this pair has a row that says why.
    """
    names = list(dict.fromkeys((GENERATE, "ar", *methods)))
    seen: dict[str, list[Run]] = {name: [] for name in names}
    cannot: dict[str, str] = {}
    for run in range(runs + 1):
        subject.run = wrong.run = max(0, run - 1)  # the first warms up
        for number, name in enumerate(names):
            progress(name, (run * len(names) + number) / ((runs + 1) * len(names)))
            if name in cannot:
                continue
            try:
                one = answer_by(name, subject, wrong, draft, tokens)
            except Exception as error:  # other methods go on; what transformers raises has no common type
                if name in (GENERATE, "ar"):
                    raise
                cannot[name] = " ".join(str(error).split())[:160] or type(error).__name__
                continue
            if run:
                seen[name].append(one)
    return [_row(name, seen, bool(subject.synthetic), cannot.get(name)) for name in names]


def answer_by(name: str, subject: Subject, wrong: Subject, draft: Any, tokens: int) -> Run:
    """One answer of a method. Raises HippoError, and whatever transformers raises, if it cannot run."""
    if name == ASSISTED and draft is None:
        raise HippoError("transformers' assisted generation needs a draft model")
    if name in LIBRARY:
        also = {STATIC: {"cache_implementation": "static"}, ASSISTED: {"assistant_model": draft}}
        return subject.library(tokens, also.get(name, {}))
    if name == WRONG and subject.pair.require_draft().plugin is not None:
        raise HippoError("a drafter without a model cannot be made to say the least likely")
    options = options_of("hippo" if name == WRONG else name, tokens)
    if options.decoder == "parallel" and subject.pair.require_draft().place == "inline":
        raise HippoError("a draft that works inline works in turns")
    return (wrong if name == WRONG else subject).ours(options)


def _row(name: str, seen: dict[str, list[Run]], synthetic: bool, cannot: str | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(FIGURES) | {"method": name, "cannot_run": cannot, "synthetic": synthetic}
    if cannot is not None:
        return row
    answers, library, alone = seen[name], seen[GENERATE], seen["ar"]
    row |= {
        "new_tokens": len(answers[-1].token_ids),
        "seconds": median(one.seconds for one in answers),
        "decode_seconds": median(one.decode for one in answers),
        "speedup_vs_transformers": _spread([a.seconds / b.seconds for a, b in _pairs(library, answers)]),
        "decode_vs_transformers": _spread([a.decode / b.decode for a, b in _pairs(library, answers)]),
        "speedup_vs_ar": _spread([a.seconds / b.seconds for a, b in _pairs(alone, answers)]),
        "decode_vs_ar": _spread([a.decode / b.decode for a, b in _pairs(alone, answers)]),
        "identical": None if synthetic else _equal(library, answers) == len(answers),
        "identical_answers": None if synthetic else _equal(library, answers),
        "identical_to_ar": None if synthetic else _equal(alone, answers),
    }
    if (stats := answers[-1].stats) is not None:
        row |= {
            "tokens_per_target_forward": stats.tokens_per_target_forward,
            "acceptance_rate": stats.acceptance_rate,
            "target_forwards": stats.target_forwards,
            "scoring_share_of_prefill": median(_scoring(one) for one in answers),
            "timeline": stats.trace.timeline,
        }
    return row


def require_methods(methods: Sequence[str]) -> None:
    """Raises HippoError if there is one that is not known."""
    for name in methods:
        if name not in (*LIBRARY, WRONG):
            options_of(name, 1)


def _scoring(run: Run) -> float:
    assert run.stats is not None
    return run.stats.seconds.scoring / run.stats.seconds.prefill


def _pairs(one: list[Run], other: list[Run]) -> list[tuple[Run, Run]]:
    return list(zip(one, other, strict=True))


def _equal(one: list[Run], other: list[Run]) -> int:
    return sum(a.token_ids == b.token_ids for a, b in _pairs(one, other))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def efficiencies(
    subject: Subject, draft: Any, wrong: Any, rows: list[dict[str, Any]], tokens: int, rate: float | None
) -> dict[str, Any]:
    """Fill in each row's efficiencies, see `efficiency`. Returns the step costs that say so. draft, wrong: in memory,
    the latter for `wrong-draft`. rate: of drawn verdicts; None: the drafts' own proposals."""
    inputs = subject.inputs()
    costs = steps(subject.pair, draft, inputs)
    alone = subject.ours(options_of("ar", tokens))
    assert alone.stats is not None
    for row in rows:
        if row["method"] in LIBRARY or row["cannot_run"]:
            continue
        options = options_of("hippo" if row["method"] == WRONG else row["method"], tokens)
        drawn = 0.0 if rate is not None and row["method"] == WRONG else rate
        answer = Answer(options, row["decode_seconds"], alone.token_ids, alone.stats.seconds.prefill, drawn)
        proposes = wrong if row["method"] == WRONG else draft
        row["efficiency"], row["efficiency_undisturbed"] = efficiency(answer, costs, subject.pair, proposes, inputs)
    return costs


def say_the_least_likely(draft: Any) -> None:
    """Make a draft propose its least likely token instead of its most likely one."""
    draft.config.tie_word_embeddings = draft.config.get_text_config().tie_word_embeddings = False
    head = draft.get_output_embeddings()
    head.weight = torch.nn.Parameter(-head.weight.detach().clone())


def machine() -> dict[str, Any]:
    """What it all ran on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def bench_pair(
    target: str,
    draft: str | None,
    video: Path | None,
    methods: Sequence[str],
    runs: int,
    tokens: int,
    rate: float | None,
    draft_bits: int | str,
    progress: Callable[[str, float], None],
    prompts: Sequence[str] = (),
    ignore_eos: bool = False,
    attn_implementation: str | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """The whole study of a trained pair on a clip; `rate` draws the verdicts instead. draft: "ngram" too, but then no
    verdicts are drawn. draft_bits: of the draft of every method, transformers' own included. prompts: one run for each,
    in place of `runs` answers to one; memory and efficiency, which are those of one request, are then not measured.
    ignore_eos: answers go on past their end, up to `tokens`; memory is then not measured. attn_implementation: as
    `hippo.load` has it. chat: the prompts are the turns of one conversation, with the answers of `ar` between them."""
    runs, attention = len(prompts) or runs, known_attention(attn_implementation)
    said: dict[int, str] | None = {} if chat else None
    with ExitStack() as stack:
        where: dict[str, Any] = {
            "cache_memory": 0,
            "draft_bits": draft_bits,
            "attn_implementation": attn_implementation,
        }
        llm = stack.enter_context(load(target, draft, start_draft=rate is None, **where))
        dtype = str(llm.pair.target.dtype).removeprefix("torch.")
        own = llm.pair.require_draft()
        if ignore_eos:
            llm.pair.target.generation_config.eos_token_id = None
        if own.plugin is not None and rate is None:
            clip = Clip(llm, video, prompts, said)
            rows = measure(clip, clip, None, methods, runs, tokens, progress)
            return {"rows": rows, "steps": {}, "machine": machine() | {"draft": own.name}}
        small = load_draft(own.checkpoint, dtype, str(llm.pair.target.device), bits=own.bits, attention=attention)
        bad = load_draft(own.checkpoint, dtype, str(llm.pair.target.device), attention=attention)
        say_the_least_likely(bad)
        quantize(bad, own.bits)
        if rate is None:
            subject: Subject = Clip(llm, video, prompts, said)
            pair_of_bad = stack.enter_context(
                closing(Pair(llm.pair.target, Draft(bad, device=own.device, place=own.place)))
            )
            of_bad = VideoLLM(pair_of_bad, llm.processor, llm.draft_processor)
            wrong: Subject = Clip(of_bad, video, prompts, said)
        else:
            inputs = llm.inputs(video)
            another = Draft(small, device=own.device, place=own.place)
            subject, wrong = _rated(stack, llm.pair.target, own, another, rate, inputs)
        rows = measure(subject, wrong, small, methods, runs, tokens, progress)
        skip = own.place == "inline" or bool(prompts)
        costs = {} if skip else efficiencies(subject, small, bad, rows, tokens, rate)
    if rate is None and not prompts and not ignore_eos:
        for row in rows:
            progress(f"memory of {row['method']}", 1.0)
            command = [row["method"], target, draft or "", str(video), str(tokens), str(draft_bits), attention]
            row["peak_memory"] = None if row["cannot_run"] else peak(["-m", "hippo.bench.speed", *command])
    return {"rows": rows, "steps": costs, "machine": machine() | {"draft": own.place, "draft bits": own.bits}}


def _rated(
    stack: ExitStack, target: Any, draft: Draft, another: Draft, rate: float, inputs: dict[str, Any], why: str = ""
) -> tuple[Rated, Rated]:
    """A request whose verdicts are drawn at a rate, and the same with none accepted. another: the draft of the second,
    which learns costs and acceptance of its own."""
    pairs = [SyntheticPair(target, draft, rate=rate), SyntheticPair(target, another, rate=0.0)]
    for pair in pairs:
        stack.enter_context(closing(pair))
    one, other = (Rated(pair, inputs, f"{why}verdicts drawn at {pair.rate:g}") for pair in pairs)
    return one, other


def bench_shape(
    name: str,
    context: int,
    methods: Sequence[str],
    runs: int,
    tokens: int,
    rate: float,
    draft_bits: int | str,
    device: str,
    progress: Callable[[str, float], None],
) -> dict[str, Any]:
    """The whole study of a shape: random weights, drawn verdicts, real costs.

    Precision, place and bits of the draft are those that `hippo.load` would choose, unless draft_bits says otherwise. A
    draft that works inline cannot work in parallel, and step costs are then not measured.
    """
    shape, bits = shape_named(name), known_bits(draft_bits)
    dtype = torch.bfloat16 if device != "cpu" or has_bfloat16() else torch.float32
    target, draft = (filled(shape.make, text, device, dtype) for text in (shape.target, shape.draft))
    place = placement("auto", device, device, target.get_memory_footprint() + draft.get_memory_footprint())
    bits = bits or (fastest_bits(linear_shapes(draft)) if place == "inline" and dtype == torch.bfloat16 else 16)
    quantize(draft, bits)
    with ExitStack() as stack:
        own, another = (Draft(draft, device=device, place=place) for _ in range(2))
        inputs = shape.request(context)
        subject, wrong = _rated(stack, target, own, another, rate, inputs, "random weights, ")
        rows = measure(subject, wrong, draft, methods, runs, tokens, progress)
        costs = {} if place == "inline" else efficiencies(subject, draft, draft, rows, tokens, rate)
    how = {"dtype": str(dtype).removeprefix("torch."), "draft": place, "draft bits": bits}
    return {"rows": rows, "steps": costs, "machine": machine() | how}


def _once(method: str, target: str, draft: str, video: str, tokens: str, draft_bits: str, attention: str) -> None:
    """One answer of one method in a process of its own, for its memory."""
    start = method not in LIBRARY and method != "ar"
    with load(
        target,
        draft or None,
        start_draft=start,
        cache_memory=0,
        draft_bits=known_bits(draft_bits) or "auto",
        attn_implementation=attention or None,
    ) as llm:
        own, subject, small = llm.pair.require_draft(), Clip(llm, Path(video)), None
        if method == ASSISTED:
            small = load_draft(own.checkpoint, "float32", "cpu", bits=own.bits, attention=attention)
        answer_by(method, subject, subject, small, int(tokens))


if __name__ == "__main__":
    _once(*sys.argv[1:])
