"""The public face: load a pair once, then describe and question videos with it."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hippo.checkpoints import load_processor, load_target, require_same_tokenizer, resolve
from hippo.errors import HippoError
from hippo.inputs import prepare
from hippo.options import Options, make_options
from hippo.pair import Pair
from hippo.report.stats import Stats
from hippo.text import TextStream
from hippo.video import Video, read_video

DEFAULT_PROMPT = "Describe the video in detail."
VideoSource = str | Path | Video
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Output:
    """An answer. token_ids hold the token that ended it; text has no special tokens."""

    text: str
    token_ids: list[int]
    stats: Stats
    warnings: tuple[str, ...] = ()


class VideoLLM:
    """A target, its draft and their processor. Made by `hippo.load`; close it, or use it as a context manager."""

    def __init__(self, pair: Pair, processor: Any) -> None:
        self.pair, self.processor = pair, processor

    def generate(
        self,
        video: VideoSource,
        prompt: str = DEFAULT_PROMPT,
        *,
        frames: int | None = None,
        fps: float | None = None,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Output:
        """Answer a question about a video.

        video: a path, or a `Video` already read. frames, fps: how many frames to sample, or how many a second (16
        frames by default). options: see `hippo.options.make_options`; method="hippo", max_new_tokens=256,
        keep_ratio=0.1, gamma="auto", temperature=0, top_k, top_p, seed, stop, decoder, pruner. on_text: called with each piece of text
        as it is accepted. Raises HippoError.
        """
        request = _Request(self, video, prompt, make_options(**options), frames, fps, progress)
        for piece in request:
            if on_text is not None:
                on_text(piece)
        return request.output()

    def stream(self, video: VideoSource, prompt: str = DEFAULT_PROMPT, **options: Any) -> Iterator[str]:
        """Like `generate`, but yields the text piece by piece as it is accepted."""
        frames, fps = options.pop("frames", None), options.pop("fps", None)
        yield from _Request(self, video, prompt, make_options(**options), frames, fps, options.pop("progress", None))

    def inputs(self, video: VideoSource, prompt: str = DEFAULT_PROMPT, **sampling: Any) -> dict[str, Any]:
        """The processor's output for a question about a video, as transformers' generate() takes it."""
        clip = video if isinstance(video, Video) else read_video(video, **sampling)
        return prepare(self.processor, clip, prompt)

    def close(self) -> None:
        """End the draft's process."""
        self.pair.close()

    def __enter__(self) -> VideoLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Request:
    """Iterating answers it; afterwards `output()` has the result."""

    def __init__(
        self,
        llm: VideoLLM,
        video: VideoSource,
        prompt: str,
        options: Options,
        frames: int | None,
        fps: float | None,
        progress: Progress | None,
    ) -> None:
        self._llm, self._video, self._prompt, self._options = llm, video, prompt, options
        self._frames, self._fps, self._progress = frames, fps, progress
        self._stats = Stats()
        self._text = TextStream(llm.processor.tokenizer)
        self._warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        began = time.perf_counter()
        inputs = self._read()
        tokenizer = self._llm.processor.tokenizer
        read = time.perf_counter() - began
        try:
            with out_of_memory_explained():
                for tokens in self._llm.pair.answer(inputs, self._options, self._stats, tokenizer.decode):
                    if piece := self._text.push(tokens):
                        yield piece
            if piece := self._text.finish():
                yield piece
        finally:
            self._stats.seconds.video = read
            self._stats.seconds.total = time.perf_counter() - began
        if self._stats.draft_lost:
            self._warnings += (f"{self._stats.draft_lost}; the target finished the answer alone",)

    def _read(self) -> dict[str, Any]:
        clip = self._video
        if not isinstance(clip, Video):
            tell = self._progress
            report = None if tell is None else lambda share: tell("reading frames", share)
            clip = read_video(clip, frames=self._frames, fps=self._fps, progress=report)
        self._warnings += clip.warnings
        return prepare(self._llm.processor, clip, self._prompt)

    def output(self) -> Output:
        return Output(self._text.text, self._text.token_ids, self._stats, self._warnings)


def load(
    target: str | Path = "tiny",
    draft: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    draft_device: str = "auto",
    draft_timeout: float = 20.0,
    start_draft: bool = True,
) -> VideoLLM:
    """Load a target and a draft.

    target, draft: checkpoint folders or hub ids; "tiny" is the bundled pair. Without a draft only method "ar" works.
    device: "auto" (the first GPU, or the CPU), "cpu", "cuda", "cuda:1". draft_device: "auto" is the second GPU where
    there is one, else the target's device. dtype: "auto" is the checkpoint's on a GPU and float32 on a CPU, where
    half precision is slow and makes near ties frequent; or a torch name such as "bfloat16".
    draft_timeout: seconds of silence after which the draft is given up and the target carries on alone.
    start_draft: start the draft's process and wait for it now, rather than at the first request that needs it.
    Raises HippoError.
    """
    target_point, draft_point = resolve(target, draft, device, dtype, draft_device)
    with out_of_memory_explained():
        pair_draft = None if draft_point is None else draft_point.source
        processor = load_processor(target_point)
        if draft_point is not None:
            require_same_tokenizer(processor.tokenizer, draft_point)
        model = load_target(target_point)
        pair = Pair(
            model,
            pair_draft,
            draft_dtype=draft_point.dtype if draft_point else "auto",
            draft_device=draft_point.device if draft_point else "cpu",
            draft_timeout=draft_timeout,
        )
        if draft_point is not None and start_draft:
            pair.start_draft().wait_loaded()
    return VideoLLM(pair, processor)


_pairs: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[nn.Module] | None, Pair]] = weakref.WeakKeyDictionary()


def generate(
    target: nn.Module,
    draft: nn.Module | None,
    inputs: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    **options: Any,
) -> Output:
    """Answer one request with models that are already in memory.

    inputs: a processor's output, batch of one. tokenizer: to get `text` as well as `token_ids`, and for stop strings.
    options: see `VideoLLM.generate`. The draft is copied once into a process of its own, which lives until the target
    or the draft is garbage collected. Raises HippoError.
    """
    stats, token_ids = Stats(), []
    pair = _pair_of(target, draft)
    decode = None if tokenizer is None else tokenizer.decode
    with out_of_memory_explained():
        for tokens in pair.answer(dict(inputs), make_options(**options), stats, decode):
            token_ids += tokens
    text = "" if tokenizer is None else tokenizer.decode(token_ids, skip_special_tokens=True)
    warnings = (f"{stats.draft_lost}; the target finished the answer alone",) if stats.draft_lost else ()
    return Output(text, token_ids, stats, warnings)


def _pair_of(target: nn.Module, draft: nn.Module | None) -> Pair:
    if target in _pairs:
        known, pair = _pairs[target]
        if (known() if known is not None else None) is draft:
            return pair
        pair.close()
    device = "cpu" if draft is None else str(next(draft.parameters()).device)
    pair = Pair(target, draft, draft_device=device)
    _pairs[target] = (None if draft is None else weakref.ref(draft), pair)
    return pair


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn every kind of running out of memory into one clear HippoError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        reason: Exception = error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        reason = error
    else:
        return
    gc.collect()
    raise HippoError(
        f"not enough memory ({str(reason).splitlines()[0] if str(reason) else type(reason).__name__})",
        "use fewer --frames, a smaller checkpoint or another --device",
    ) from None


__all__ = ["Output", "VideoLLM", "generate", "load"]
