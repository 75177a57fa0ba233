"""The public face: load a pair once, then describe and question videos with it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hippo import ranks
from hippo.checkpoints import load_processor, load_target, own_processor, resolve
from hippo.draft import DraftProcess, is_thread
from hippo.errors import HippoError, out_of_memory
from hippo.families import family_of
from hippo.inputs import Messages, Source, messages_of, prepare, read_fitting, room_for
from hippo.options import Options, make_options
from hippo.pair import Pair, Progress
from hippo.report.stats import Stats
from hippo.text import TextStream

DEFAULT_PROMPT = "Describe the video in detail."
Sources = Source | Sequence[Source] | None


@dataclass(frozen=True)
class Output:
    """An answer. token_ids hold the token that ended it; text has no special tokens."""

    text: str
    token_ids: list[int]
    stats: Stats
    warnings: tuple[str, ...] = ()


class VideoLLM:
    """A target, its draft and their processor. Made by `hippo.load`; close it, or use it as a context manager.

    draft_processor: the draft's own, if the target's does not serve both.
    """

    def __init__(self, pair: Pair, processor: Any, draft_processor: Any = None) -> None:
        self.pair, self.processor, self.draft_processor = pair, processor, draft_processor

    def generate(
        self,
        video: Sources = None,
        prompt: str = DEFAULT_PROMPT,
        *,
        messages: Messages | None = None,
        frames: int | None = None,
        fps: float | None = None,
        max_video_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Output:
        """Answer a question about a video, or about several videos and images, or about none.

        video: a path or a `Video` already read, an image's path or a PIL image, or a list of these, which come before
        the prompt in their order; none for a prompt without. messages: instead of both, whole turns with text, videos
        and images in any order; see `hippo.inputs.read_messages`. frames, fps: how many frames of each video to
        sample, or how many a second (16 frames by default). max_video_tokens: fewer frames are taken where the videos
        would have more tokens, and by default where they would not fit the free memory. on_text: called with each
        piece of text as it is accepted. progress: called with a phase and the share of it that is done. options: see
        `hippo.options.make_options`; method="hippo", max_new_tokens=256, keep_ratio=0.1, gamma="auto", temperature=0,
        top_k, top_p, seed, stop, decoder, pruner. Raises HippoError.
        """
        sampling: dict[str, Any] = {"frames": frames, "fps": fps, "max_video_tokens": max_video_tokens}
        stream = self.stream(video, prompt, messages=messages, progress=progress, **sampling, **options)
        for piece in stream:
            if on_text is not None:
                on_text(piece)
        return stream.output

    def stream(
        self,
        video: Sources = None,
        prompt: str = DEFAULT_PROMPT,
        *,
        messages: Messages | None = None,
        frames: int | None = None,
        fps: float | None = None,
        max_video_tokens: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Stream:
        """Like `generate`, but to be iterated for the text piece by piece as it is accepted; see `Stream`."""
        checked = make_options(**options)
        sampling = {"frames": frames, "fps": fps, "max_video_tokens": max_video_tokens}
        return Stream(self, (video, prompt, messages), checked, sampling, progress)

    def inputs(
        self,
        video: Sources = None,
        prompt: str = DEFAULT_PROMPT,
        *,
        messages: Messages | None = None,
        frames: int | None = None,
        fps: float | None = None,
        max_video_tokens: int | None = None,
    ) -> dict[str, Any]:
        """The processor's output for a request as `generate` has it, as transformers' generate() takes it."""
        turns = as_messages(video, prompt, messages)
        return self.read(turns, frames=frames, fps=fps, max_video_tokens=max_video_tokens)[1]

    def read(
        self, messages: Messages, *, max_video_tokens: int | None = None, **sampling: Any
    ) -> tuple[Messages, dict[str, Any], tuple[str, ...]]:
        """Messages read, the processor's output for them, and what the user should know; see `read_fitting`."""
        if max_video_tokens is not None and max_video_tokens < 1:
            raise HippoError(f"max_video_tokens {max_video_tokens} is not positive", "leave it out, or allow some")
        target, family = self.pair.target, self.pair.family
        return read_fitting(
            self.processor,
            messages,
            lambda inputs: len(family.place(target, inputs).video_at),
            lambda inputs, tokens: ranks.least(room_for(target, inputs, tokens)),
            max_video_tokens,
            **sampling,
        )

    def close(self) -> None:
        """End the draft's process."""
        self.pair.close()

    def __enter__(self) -> VideoLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """An answer on its way: iterate it for pieces of text. `output` is the answer so far, whole after the last piece.

    Leave it early with `close()`, which frees the pair for the next request.
    """

    def __init__(
        self,
        llm: VideoLLM,
        request: tuple[Sources, str, Messages | None],
        options: Options,
        sampling: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self._llm, self._request, self._options = llm, request, options
        self._sampling, self._progress = sampling, progress
        self._stats = Stats()
        self._text = TextStream(llm.processor.tokenizer)
        self._warnings: tuple[str, ...] = ()
        self._pieces = self._answer()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop answering."""
        self._pieces.close()

    @property
    def output(self) -> Output:
        """The answer so far."""
        return Output(self._text.text, self._text.token_ids, self._stats, self._warnings + warnings_of(self._stats))

    def _answer(self) -> Generator[str, None, None]:
        began = time.perf_counter()
        with out_of_memory_explained():
            inputs, draft_inputs = self._read()
            read = time.perf_counter() - began
            tokenizer = self._llm.processor.tokenizer
            try:
                answer = self._llm.pair.answer(
                    inputs, self._options, self._stats, tokenizer.decode, draft_inputs, self._progress
                )
                for tokens in answer:
                    if piece := self._text.push(tokens):
                        yield piece
                if piece := self._text.finish():
                    yield piece
            finally:
                self._stats.seconds.video = read
                self._stats.seconds.total = time.perf_counter() - began

    def _read(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Inputs for the target, and for the draft if it needs others."""
        tell = self._progress
        report = None if tell is None else lambda share: tell("reading frames", share)
        asked = as_messages(*self._request)
        messages, inputs, self._warnings = self._llm.read(asked, **self._sampling, progress=report)
        return inputs, self._read_for_draft(messages)

    def _read_for_draft(self, messages: Messages) -> dict[str, Any] | None:
        processor = self._llm.draft_processor
        if processor is None or self._options.decoder == "ar":
            return None
        try:
            return prepare(processor, messages)
        except HippoError as error:
            self._options = replace(self._options, decoder="ar")
            self._stats.draft_lost = f"the draft cannot be asked this ({error.cause})"
            return None


def as_messages(video: Sources, prompt: str, messages: Messages | None) -> Messages:
    """A request in the chat format, however it was made. Raises HippoError."""
    if messages is None:
        if video is None and prompt == DEFAULT_PROMPT:
            raise HippoError("there is no video to describe", "name one, or ask something that needs none")
        return messages_of(video, prompt)
    if video is not None or prompt != DEFAULT_PROMPT:
        raise HippoError("there are messages beside a video or a prompt", "put all of it into the messages")
    return messages


def load(
    target: str | Path = "tiny",
    draft: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    draft_device: str = "auto",
    draft_timeout: float = 20.0,
    draft_worker: str = "auto",
    start_draft: bool = True,
    trust_remote_code: bool = False,
) -> VideoLLM:
    """Load a target and a draft.

    target, draft: checkpoint folders or hub ids; "tiny" is the bundled pair. Without a draft only method "ar" works.
    They must have one tokenizer; where the draft's processor differs, it makes the draft's inputs.
    device: "auto" (the first GPU, all of them if the target is too large for one, or the CPU), "cpu", "cuda", "cuda:1",
    "all". Under torchrun each process holds a part of the target and runs the same script; see `hippo.ranks`.
    draft_device: "auto" is the second GPU where there is one, else the target's first device. dtype: "auto" is the
    checkpoint's on a GPU and float32 on a CPU, where half precision is slow and makes near ties frequent; or a torch
    name such as "bfloat16".
    draft_timeout: seconds of silence after which the draft is given up and the target carries on alone.
    draft_worker: "auto" has the draft work in a thread where both models are on one GPU, on a stream of its own, else
    in a process; "process" or "thread" decide it.
    start_draft: start the draft's process and wait for it now, rather than at the first request that needs it.
    trust_remote_code: let code run that a checkpoint brings, of target, draft and processor; never otherwise.
    A quantised checkpoint is loaded as it is. Raises HippoError.
    """
    target_point, draft_point = resolve(target, draft, device, dtype, draft_device, trust_remote_code)
    with out_of_memory_explained(), ExitStack() as unless_loaded:
        processor = load_processor(target_point)
        process = draft_processor = None
        if draft_point is not None:
            draft_processor = own_processor(processor, target_point, draft_point)
            threaded = is_thread(draft_worker, target_point.first_device, draft_point.device)
            if start_draft and ranks.leads():  # first, so that both load at the same time
                given = draft_point.source, draft_point.dtype, draft_point.device, draft_timeout, trust_remote_code
                process = DraftProcess(*given, threaded)
                unless_loaded.callback(process.close)
                if threaded:  # transformers cannot load two models at once in one process
                    process.wait_loaded()
        pair = Pair(
            load_target(target_point),
            None if draft_point is None else draft_point.source,
            draft_dtype=draft_point.dtype if draft_point else "auto",
            draft_device=draft_point.device if draft_point else "cpu",
            draft_timeout=draft_timeout,
            draft_worker=draft_worker,
            process=process,
            trust_remote_code=trust_remote_code,
        )
        if process is not None:
            process.wait_loaded()
        unless_loaded.pop_all()
    return VideoLLM(pair, processor, draft_processor)


_pairing = threading.Lock()


def generate(
    target: nn.Module,
    draft: nn.Module | None,
    inputs: Mapping[str, Any],
    draft_inputs: Mapping[str, Any] | None = None,
    *,
    tokenizer: Any = None,
    **options: Any,
) -> Output:
    """Answer one request with models that are already in memory.

    inputs: a processor's output, batch of one. draft_inputs: of the same request, by the draft's own processor; needed
    where the target's makes nothing that the draft can use, and always if the two are of different families.
    tokenizer: to get `text` as well as `token_ids`, and for stop strings.
    options: see `VideoLLM.generate`. The draft is copied once into a process of its own, which lives as long as the
    target does, or until the target is given another draft. On a CPU, some of the target's projections come to share
    storage (query, key and value; gate and up); their values stay, and they can be trained and saved. Raises
    HippoError.
    """
    checked, stats = make_options(**options), Stats()
    if draft is not None and draft_inputs is None and checked.decoder != "ar":
        require_one_family(target, draft)
    token_ids: list[int] = []
    decode = None if tokenizer is None else tokenizer.decode
    for_draft = None if draft_inputs is None else dict(draft_inputs)
    with out_of_memory_explained():
        for tokens in pair_of(target, draft).answer(dict(inputs), checked, stats, decode, for_draft):
            token_ids += tokens
    text = "" if tokenizer is None else tokenizer.decode(token_ids, skip_special_tokens=True)
    return Output(text, token_ids, stats, warnings_of(stats))


def require_one_family(target: Any, draft: Any) -> None:
    """Refuse a draft of another family, which would not understand the target's inputs. Raises HippoError."""
    if family_of(draft) is not family_of(target):
        raise HippoError(
            f"a draft of type {draft.config.model_type} cannot use the inputs of a {target.config.model_type}",
            "pass draft_inputs, which its own processor made of the same request",
        )


def pair_of(target: nn.Module, draft: nn.Module | None) -> Pair:
    """The pair of two models in memory, made once and kept with the target."""
    with _pairing:
        known = target.__dict__.get("_hippo_pair")
        if known is not None and known.draft is draft:
            return known
        if known is not None:
            known.close()
        device = "cpu" if draft is None else str(next(draft.parameters()).device)
        target.__dict__["_hippo_pair"] = pair = Pair(target, draft, draft_device=device)
        return pair


def warnings_of(stats: Stats) -> tuple[str, ...]:
    """What to tell the user about an answer's draft; nothing if all went well."""
    lost = (f"{stats.draft_lost}; the target finished the answer alone",) if stats.draft_lost else ()
    return (*stats.warnings, *lost)


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn every kind of running out of memory into one clear HippoError."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = error
    else:
        return
    gc.collect()
    raise HippoError(
        f"not enough memory ({str(reason).splitlines()[0] if str(reason) else type(reason).__name__})",
        "use fewer --frames, a smaller checkpoint or another --device",
    ) from None


__all__ = ["Output", "Stream", "VideoLLM", "generate", "load"]
