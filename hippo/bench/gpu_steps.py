"""The ten steps of `hippo bench gpu`, most telling first. Each is a generator of attempts: a label, and a function that
returns rows, whose keys are heads of tables. An attempt that fails is a row with its error, and the next one is made.

`python -m hippo.bench.gpu_steps STEP SIZE DEVICE FOLDER` makes the attempts of a step and writes each row as it comes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TextIO

import torch
from torch.profiler import ProfilerActivity, profile

from hippo import state
from hippo.bench import plots
from hippo.bench.efficiency import reading_seconds, steps
from hippo.bench.shapes import Shape, Text, filled, qwen2_5_vl_config, qwen2_5_vl_request, shape_named
from hippo.bench.speed import GENERATE, STATIC, Rated, answer_by
from hippo.bench.synthetic_acceptance import SyntheticPair
from hippo.bench.traces import prefilled, step_seconds
from hippo.bench.world import make_scene, write_clip
from hippo.cli import common
from hippo.cli.demo import CLIP
from hippo.device import clock, cores
from hippo.families import Embeds, Prompt, family_of
from hippo.forward import CachedModel, why_not_recorded
from hippo.forward.quantize import quantize
from hippo.inputs import on_device
from hippo.llm import VideoLLM, load
from hippo.pair import Draft
from hippo.params import METHODS, SamplingParams
from hippo.report.baseline import transformers_generate
from hippo.report.plan import sizes_of_model
from hippo.report.rates import rates
from hippo.stats import Stats

Row = dict[str, Any]
Attempts = Iterator[tuple[str, Callable[[], Row | list[Row] | None]]]
WIDTHS = (1, 2, 4, 8, 25)  # tokens of target forwards
_SMI = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,power.limit,temperature.gpu"
_SMALL = 10  # us; shorter kernels are small
_ROUNDING = 1e-2  # relative difference of float32 logits; more is an error


def _tiny(text: Text) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    config = qwen2_5_vl_config(text)
    for name, value in {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}.items():
        setattr(config.vision_config, name, value)
    return Qwen2_5_VLForConditionalGeneration(config)


class Size(NamedTuple):
    """How much is measured. shape: of models with random weights; context: video tokens of their prompt; tokens: of an
    answer; runs: of each kind; repeats: of the same request; processes: that verify, in each precision; models: that
    record their forwards, in each thread; lengths: of prompts; copied: bytes."""

    shape: Shape
    context: int
    tokens: int
    runs: int
    repeats: int
    processes: int
    models: int
    lengths: tuple[int, ...]
    copied: int


_SMALLEST = Text(64, 96, 2, 4, 2, 152064)
_TINY = Shape(_tiny, qwen2_5_vl_request, _SMALLEST, _SMALLEST)
SIZES = {
    "tiny": Size(_TINY, 128, 8, 1, 2, 1, 2, (64, 128, 192, 256, 320), 1 << 24),
    "full": Size(
        shape_named("qwen2.5-vl-7b+3b"), 16384, 128, 2, 10, 10, 20, (1024, 3072, 6144, 11264, 16384), 1 << 30
    ),
}  # fmt: skip


class Bench(NamedTuple):
    """What every step is given. out: the folder for pictures."""

    size: Size
    device: torch.device
    out: Path

    @property
    def dtype(self) -> torch.dtype:
        """Of models with random weights."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def models(self) -> tuple[Any, Any]:
        """A target and a draft of random weights."""
        shape = self.size.shape
        return self.model(shape.target), self.model(shape.draft)

    def model(self, text: Text) -> Any:
        """One of them."""
        return filled(self.size.shape.make, text, str(self.device), self.dtype)

    def prompt(self, model: Any, context: int) -> tuple[Prompt, Embeds]:
        """A prompt of so many video tokens, embedded."""
        inputs, family = on_device(self.size.shape.request(context), self.device), family_of(model)
        with torch.inference_mode():
            return family.prepare_prompt(model.config, inputs), family.embed(model, inputs)

    def readers(self, model: Any, prompt: Prompt, embeds: Embeds) -> list[CachedModel]:
        """A model that has read a whole prompt, by our forwards and by transformers' own."""
        whole = torch.arange(len(prompt.video_at))
        return [prefilled(family_of(model), model, prompt, embeds, whole, may_fuse) for may_fuse in (True, False)]

    @contextmanager
    def pair(self, target: Any, draft: Any, rate: float, context: int = 0) -> Iterator[Rated]:
        """Both models on this device, the draft in a thread as on one GPU, with verdicts drawn at a rate."""
        with closing(SyntheticPair(target, Draft(draft, device=str(self.device), place="thread"), rate=rate)) as pair:
            yield Rated(pair, self.size.shape.request(context or self.size.context), "")

    def bundled(self, dtype: str) -> VideoLLM:
        """The bundled pair, likewise."""
        device = str(self.device)
        return load("tiny", dtype=dtype, device=device, draft_device=device, draft_worker="thread", cache_memory=0)


def machine(bench: Bench) -> Attempts:
    """Versions, device, bandwidths."""
    yield "versions", lambda: [{"what": name, "value": value} for name, value in common.versions().items()]
    yield "CUDA of torch", lambda: {"value": str(torch.version.cuda)}
    yield "processor", lambda: {"value": f"{state.machine()['cpu']}, {cores()} cores"}
    if bench.device.type == "cuda":
        command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
        yield "nvidia-smi", lambda: {"value": subprocess.check_output(command, text=True, timeout=20)}
    yield f"copy of {bench.size.copied >> 20} MiB", partial(_copy, bench.size.copied, bench.device)
    for dtype in ("float32", "bfloat16"):
        yield f"products, {dtype}", partial(_products, str(bench.device), dtype)


def _copy(size: int, device: torch.device) -> Row:
    return {"GB/s": size / reading_seconds(size, device) / 1e9}


def _products(device: str, dtype: str) -> list[Row]:
    measured, size = rates(device, dtype), getattr(torch, dtype).itemsize
    read = {width: size / seconds / 1e9 for width, seconds in measured.seconds.items()}
    rows = [{"what": f"weights of products, {dtype}, {width} tokens", "GB/s": rate} for width, rate in read.items()]
    return [*rows, {"what": f"start of an operation, {dtype}", "us": 1e6 * measured.operation}]


@contextmanager
def recording() -> Iterator[Row]:
    """Counts CUDA graphs whose recording begins inside, by whomever, and those that it makes. Filled at the end."""
    begun, seconds, seen = list[float](), list[float](), Row()
    kind: Any = torch.cuda.graph
    enter, leave, own = kind.__enter__, kind.__exit__, threading.local()

    def entered(self: Any) -> None:
        own.began = time.perf_counter()
        begun.append(own.began)
        enter(self)

    def left(self: Any, *error: Any) -> None:
        leave(self, *error)
        if error[0] is None:
            seconds.append(time.perf_counter() - own.began)

    kind.__enter__, kind.__exit__ = entered, left
    try:
        yield seen
    finally:
        kind.__enter__, kind.__exit__ = enter, leave
        seen |= {"recordings": len(begun), "graphs": len(seconds), "seconds of recording": sum(seconds)}


def captures(bench: Bench) -> Attempts:
    """Graph captures: models record their forwards, in one thread and in two. *Wrong*: unlike transformers' own."""
    for threads in (1, 2):
        yield f"{threads} at once", partial(_captures, bench, threads)


def _captures(bench: Bench, threads: int) -> Row:
    count, small = threads * bench.size.models, bench._replace(size=SIZES["tiny"])
    models = [filled(_tiny, _SMALLEST, str(bench.device), torch.float32) for _ in range(count)]
    clock(bench.device)  # the threads have streams of their own

    def work(own: list[Any]) -> int:
        on_gpu = bench.device.type == "cuda"
        with torch.cuda.stream(torch.cuda.Stream(bench.device)) if on_gpu else nullcontext():
            readers = (small.readers(model, *small.prompt(model, 64)) for model in own)
            return sum(not _difference(pair, width) < _ROUNDING for pair in readers for width in WIDTHS)

    with recording() as seen, ThreadPoolExecutor(threads) as pool:
        wrong = sum(pool.map(work, (models[first::threads] for first in range(threads))))
    reasons = (why_not_recorded(family_of(model).language_model(model)) for model in models)
    return {"forwards": count * len(WIDTHS), "wrong": wrong} | seen | {"why not": next(filter(None, reasons), None)}


def _difference(readers: Sequence[CachedModel], width: int) -> float:
    """Relative, of the logits of two forwards over so many tokens after the prompt."""
    one, other = (reader.extend(list(range(1000, 1000 + width))).float() for reader in readers)
    for reader in readers:
        reader.rollback(width)
    return float((one - other).norm() / other.norm())


def forwards(bench: Bench) -> Attempts:
    """A target's step against the time to read its weights and cache once, as fast as a copy reads."""
    target = bench.model(bench.size.shape.target)
    readers = bench.readers(target, *bench.prompt(target, bench.size.context))
    sizes = sizes_of_model(target, "")
    read = (sizes.read + sizes.cache * readers[0].length) * bench.dtype.itemsize
    once = reading_seconds(read, bench.device)
    yield "weights and cache read once", lambda: {"ms": 1e3 * once, "times reading once": 1.0}
    for width in WIDTHS:
        yield f"{width} tokens", partial(lambda w: {"difference of logits": _difference(readers, w)}, width)
        for name, reader in zip(("ours", "transformers' own"), readers, strict=True):
            yield f"{width} tokens, {name}", partial(_step, reader, width, 8 * bench.size.runs, once)


def _step(reader: CachedModel, width: int, count: int, once: float) -> Row:
    seconds = step_seconds(reader, width, count, torch.get_num_threads())
    return {"ms": 1e3 * seconds, "times reading once": seconds / once}


def identity(bench: Bench) -> Attempts:
    """Equal texts: `hippo verify` with the bundled pair in fresh processes, some at the same time, every method."""
    processes, at_once = bench.size.processes, max(1, min(4, cores() // 4))
    for dtype in ("float32", "bfloat16"):
        for begin in range(0, processes, at_once):
            end = min(begin + at_once, processes)
            yield f"{dtype}, processes {begin + 1} to {end}", partial(_verify, bench, dtype, end - begin)


def _verify(bench: Bench, dtype: str, count: int) -> Row:
    options = ["--device", str(bench.device), "--dtype", dtype, "--max-new-tokens", str(2 * bench.size.tokens)]
    command = [sys.executable, "-m", "hippo", "verify", str(CLIP), *options, "--json"]

    def run(_: int) -> list[Row]:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: texts differ
            raise RuntimeError(" ".join(done.stderr.splitlines()[-1:]))
        return json.loads(done.stdout)["methods"]

    with ThreadPoolExecutor(count) as pool:
        rows = [row for rows in pool.map(run, range(count)) for row in rows]
    equal, ties = sum(row["identical"] for row in rows), sum(row["near_tie"] for row in rows)
    row = {"answers": len(rows), "as generate()": equal, "near ties": ties, "different": len(rows) - equal - ties}
    return row | {"drafts lost": sum("draft_lost" in row for row in rows)}


def schedules(bench: Bench) -> Attempts:
    """Ways of decoding compared, the draft in 16 and 4 bits: random weights, drawn verdicts."""
    size, (target, draft), timelines = bench.size, bench.models(), dict[str, Any]()
    alone: list[float] = []

    def timed(method: str, rate: float) -> Row:
        with bench.pair(target, draft, rate) as subject:
            answers = [answer_by(method, subject, subject, draft, size.tokens) for _ in range(size.runs + 1)][1:]
        decode, stats = median(one.decode for one in answers), answers[-1].stats
        if method == "ar":
            alone.append(decode)
        elif stats is not None:
            timelines.setdefault(method, stats.trace.timeline)
        return {
            "ms a token": 1e3 * decode / (size.tokens - 1),
            "speedup over ar": alone[0] / decode if alone else None,
            "seconds": median(one.seconds for one in answers),
            "tokens a forward": stats and stats.tokens_per_target_forward,
            "acceptance": stats and stats.acceptance_rate,
        }

    for method in ("ar", GENERATE):
        yield method, partial(timed, method, 0.0)
    for bits in (16, 4):
        packed: list[int] = []
        yield f"the draft in {bits} bits", partial(_pack, draft, bits, packed)
        if not packed:
            break
        for rate in (0.8, 0.9):
            for method in ("serial+hippo", "parallel+hippo", "hippo"):
                yield f"{method}, draft in {bits} bits, acceptance {rate:g}", partial(timed, method, rate)
        yield f"costs, draft in {bits} bits", partial(_costs, bench, target, draft, bits)
    yield "timeline", partial(_draw, timelines, bench.out / "timeline.svg")
    yield "generate, static cache", partial(timed, STATIC, 0.0)  # last: it compiles


def _pack(draft: Any, bits: int, packed: list[int]) -> None:
    quantize(draft, bits)
    packed.append(bits)


def _costs(bench: Bench, target: Any, draft: Any, bits: int) -> list[Row]:
    """See `hippo.bench.efficiency.steps`. For a packed draft without what it has no part in."""
    with bench.pair(target, draft, 0.0) as subject:
        costs = steps(subject.pair, draft, subject.inputs(), 8 * bench.size.runs)
    rows = []
    for name, cost in costs.items():
        if bits < 16 and not ("draft" in name or "beside" in name):
            continue
        for width, seconds in cost.items() if isinstance(cost, dict) else [("", cost)]:
            what = name.replace("_", " ") + f", {width} tokens" * bool(width) + f", draft in {bits} bits" * (bits < 16)
            rows.append({"what": what, "ms": 1e3 * seconds, "times reading once": seconds / costs["target_read_once"]})
    return rows


def _draw(timelines: dict[str, Any], file: Path) -> Row:
    plots.require_picture(file)
    plots.draw_timeline(timelines, file)
    return {"picture": file.name}


def profiled(bench: Bench) -> Attempts:
    """Where the time of a plain decode step goes."""
    target, threads = bench.model(bench.size.shape.target), torch.get_num_threads()
    long, short = (bench.readers(target, *bench.prompt(target, context))[0] for context in (bench.size.context, 64))
    seconds, least = (step_seconds(reader, 1, 20, threads) for reader in (long, short))
    yield f"a step after {long.length} tokens", lambda: {"ms": 1e3 * seconds, "share": 1.0}
    more = {"ms": 1e3 * (seconds - least), "share": 1 - least / seconds}
    yield f"of it: more than a step after {short.length} tokens", lambda: more
    yield "operations", partial(_operations, bench.device, long, seconds)


def _operations(device: torch.device, reader: CachedModel, step: float, count: int = 20) -> list[Row]:
    """What ran in `count` steps, by the profiler; step: seconds of one without it."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(count):
            reader.extend([0])
        clock(device)
    reader.rollback(count)
    took = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    ran = [one for one in seen.key_averages() if (one.device_type != torch.autograd.DeviceType.CPU) == on_gpu]
    ran.sort(key=lambda one: -getattr(one, took))

    def row(what: str, events: Sequence[Any]) -> Row:
        ms = sum(getattr(one, took) for one in events) / 1e3 / count
        return {"what": what, "ms": ms, "share": ms / 1e3 / step, "calls a step": sum(e.count for e in events) / count}

    busy, small = row("all operations", ran), [one for one in ran if getattr(one, took) < _SMALL * one.count]
    gaps = {"what": "gaps between them", "ms": 1e3 * step - busy["ms"], "share": 1 - busy["share"]}
    return [busy, row(f"shorter than {_SMALL} us", small), *(row(one.key[:80], [one]) for one in ran[:12]), gaps]


def prefill(bench: Bench) -> Attempts:
    """Prefill, whole and in parts."""
    target = bench.model(bench.size.shape.target)
    prompt, embeds = bench.prompt(target, bench.size.context)

    def read(part: int | None) -> Row:
        seconds, count = [], 0
        for _ in range(bench.size.runs + 1):
            reader, began = CachedModel.of(family_of(target), target), clock(bench.device)
            count = sum(1 for _ in reader.reading(embeds, prompt, part=part))
            seconds.append(clock(bench.device) - began)
        each = median(seconds[1:])
        return {"forwards": count, "seconds": each, "tokens a second": len(embeds) / each} | _memory(bench)

    yield f"{len(embeds)} tokens as hippo reads them", partial(read, None)
    for parts in (1, 2, 4, 8):
        yield f"parts of {len(embeds) // parts}", partial(read, len(embeds) // parts)


def _memory(bench: Bench) -> Row:
    """What torch holds on a GPU, and the most that tensors took since the last call."""
    if bench.device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    return {"peak GiB": peak / 2**30, "reserved GiB": torch.cuda.memory_reserved(bench.device) / 2**30}


def repeats(bench: Bench) -> Attempts:
    """The same request in bfloat16, again and again: *texts* is 1 if all answers are equal."""
    count, tokens = bench.size.repeats, 2 * bench.size.tokens
    with bench.bundled("bfloat16") as llm:
        expected = transformers_generate(llm, SamplingParams.of(max_new_tokens=tokens), video=CLIP).token_ids

        def again(method: str, width: int | str) -> Row:
            plain, *texts = (
                llm.generate(CLIP, method=name, verify_width=width, max_new_tokens=tokens).token_ids
                for name in ("ar", *[method] * count)
            )
            row = {"answers": count, "texts": len({tuple(text) for text in texts})}
            return row | {"as ar": texts.count(plain), "as generate()": texts.count(expected)}

        for width in (8, 0):
            for method in METHODS:
                yield f"{method}, verify width {width}", partial(again, method, width)


def lengths(bench: Bench) -> Attempts:
    """What is recorded at load; then prompts of several lengths, twice each: graphs that are recorded, memory."""
    target, draft = bench.models()

    def load() -> Row:
        began = clock(bench.device)
        with recording() as seen, bench.pair(target, draft, 0.8) as subject:
            subject.pair.require_draft().worker().wait_loaded()
            seconds = clock(bench.device) - began
        return seen | {"seconds": seconds} | _memory(bench)

    yield "at load", load

    def answer(context: int) -> Row:
        with recording() as seen, bench.pair(target, draft, 0.8, context) as subject:
            run = answer_by("parallel+hippo", subject, subject, draft, bench.size.tokens)
        return seen | {"ms a token": 1e3 * run.decode / (bench.size.tokens - 1)} | _memory(bench)

    for context in bench.size.lengths:
        for again in ("", ", again"):
            yield f"{context} video tokens{again}", partial(answer, context)


def first_token(bench: Bench) -> Attempts:
    """Time to the first token, by phase, in ms; random weights get pixels without a clip."""
    with tempfile.TemporaryDirectory() as folder, bench.bundled("auto") as llm:
        clip = Path(folder) / "clip.mp4"
        write_clip(make_scene(60020), clip, side=28 * math.ceil(math.sqrt(bench.size.context / 8)))
        for run in range(bench.size.runs + 1):
            yield f"bundled pair, answer {run + 1}", lambda: _phases(llm.generate(clip, max_new_tokens=4).stats)
    target, draft = bench.models()
    with bench.pair(target, draft, 0.8) as subject:
        for run in range(bench.size.runs + 1):
            yield (
                f"random weights, answer {run + 1}",
                lambda: _phases(answer_by("hippo", subject, subject, draft, 4).stats),
            )


def _phases(stats: Stats | None) -> Row:
    assert stats is not None
    seconds, first = stats.seconds, stats.trace.tokens[0].seconds
    phases = {
        "reading": seconds.video,
        "vision": seconds.vision,
        "prefill": seconds.prefill,
        "scoring": seconds.scoring,
    }
    phases |= {"rest": first - sum(phases.values()), "first token": first, "draft's prefill": seconds.draft_prefill}
    return {"video tokens": stats.video_tokens} | {name: 1e3 * value for name, value in phases.items()}


# Each with the seconds that are its share of ten minutes.
STEPS: dict[str, tuple[Callable[[Bench], Attempts], int]] = {
    "machine": (machine, 40),
    "captures": (captures, 40),
    "forwards": (forwards, 60),
    "identity": (identity, 110),
    "schedules": (schedules, 160),
    "profile": (profiled, 45),
    "prefill": (prefill, 50),
    "repeats": (repeats, 35),
    "lengths": (lengths, 60),
    "first-token": (first_token, 45),
}


def attempt_all(attempts: Attempts, file: TextIO) -> None:
    """Make the attempts of a step. Writes lines of JSON: what is tried, then each row of what came out."""

    def write(row: Row) -> None:
        file.write(json.dumps(row, default=str) + "\n")
        file.flush()

    label = "preparing"
    write({"trying": label})
    try:
        for label, work in attempts:
            write({"trying": label})
            try:
                rows = work()
            except Exception as error:  # the next attempt may succeed
                rows = {"error": _line(error)}
            for row in rows if isinstance(rows, list) else [rows or {}]:
                write({"what": label} | row)
    except Exception as error:
        write({"what": f"preparing what follows {label}", "error": _line(error)})


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    name, size, device, folder = sys.argv[1:]
    os.environ["HIPPO_STATE"] = "off"  # what earlier processes measured would decide how this one decodes
    common.quieten()
    with (Path(folder) / f"{name}.jsonl").open("a") as results:
        attempt_all(STEPS[name][0](Bench(SIZES[size], torch.device(device), Path(folder))), results)
