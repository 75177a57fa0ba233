"""The public face: load a pair once, then describe and question videos with it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Unpack
from weakref import WeakKeyDictionary, ref

from torch import nn

from hippo import tensor_parallel
from hippo.checkpoints import bits_for, load_processor, load_target, own_processor, resolve, stored_bytes
from hippo.draft import placement
from hippo.errors import CheckpointError, HippoError, OutOfMemory, is_out_of_memory
from hippo.families import family_of
from hippo.inputs import Budget, MediaKeys, Messages, prepare, read_fitting, room_for, split_options
from hippo.pair import Draft, Pair
from hippo.params import SamplingOptions, SamplingParams
from hippo.quiet import quiet
from hippo.request import DEFAULT_PROMPT, Output, Request, Sources, messages_from
from hippo.sequence import Progress, Sequence
from hippo.stats import Stats
from hippo.text import TextStream

_OWN_OPTIONS = (
    *("messages", "system", "frames", "fps", "max_video_tokens", "progress", "on_text"),
    *MediaKeys.__annotations__,
)


class RequestOptions(SamplingOptions, MediaKeys, total=False):
    """What `VideoLLM.generate` takes as options."""


class VideoLLM:
    """A target, its draft and their processor. Made by `hippo.load`; close it, or use it as a context manager.

    draft_processor: the draft's own, if the target's does not serve both.
    """

    def __init__(self, pair: Pair, processor: Any, draft_processor: Any = None) -> None:
        self.pair, self.processor, self.draft_processor = pair, processor, draft_processor

    def generate(
        self,
        video: Sources | Request = None,
        prompt: str = DEFAULT_PROMPT,
        *,
        messages: Messages | None = None,
        system: str = "",
        frames: int | None = None,
        fps: float | None = None,
        max_video_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        **options: Unpack[RequestOptions],
    ) -> Output:
        """Answer a question about a video, or about several videos and images together, or about none.

        Args:
            video: a path, URL, bytes or open file of a video or an image; frames as an array, a tensor, a list or a
                `Video`; or a list of several of these, which come before the prompt in their order; None for a prompt
                without. docs/inputs.md shows every form. Or a `Request`, and nothing else.
            prompt: the question.
            messages: instead of both, whole turns with text, videos and images in any order; see
                `hippo.inputs.read_messages`.
            system: the system prompt.
            frames: frames to sample of each video, 16 by default.
            fps: frames to sample a second of each video, instead.
            max_video_tokens: frames are scaled down, and then fewer are taken, where the videos would have more tokens,
                and by default where they would not fit the free memory or the model's context.
            on_text: called with each piece of text as it is accepted.
            progress: called with a phase and the share of it that is done.
            options: see `SamplingParams`; and for the videos and images, see `hippo.inputs.MediaOptions`.

        Raises:
            HippoError: BadRequest, MediaError, OutOfMemory or Busy.
        """
        given: dict[str, Any] = {"frames": frames, "fps": fps, "max_video_tokens": max_video_tokens}
        stream = self.stream(video, prompt, messages=messages, system=system, progress=progress, **given, **options)
        with stream:
            for piece in stream:
                if on_text is not None:
                    on_text(piece)
        return stream.output

    def stream(
        self,
        video: Sources | Request = None,
        prompt: str = DEFAULT_PROMPT,
        *,
        messages: Messages | None = None,
        system: str = "",
        frames: int | None = None,
        fps: float | None = None,
        max_video_tokens: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """Like `generate`, but to be iterated for the text piece by piece as it is accepted; see `Stream`."""
        if isinstance(video, Request):
            return Stream(self, video, progress)
        media, rest = split_options(options)
        params = SamplingParams.of(_OWN_OPTIONS, **rest)
        turns = messages_from(video, prompt, messages, system)
        return Stream(self, Request(turns, params, frames, fps, max_video_tokens, media), progress)

    def inputs(
        self,
        video: Sources = None,
        prompt: str = DEFAULT_PROMPT,
        *,
        messages: Messages | None = None,
        system: str = "",
        frames: int | None = None,
        fps: float | None = None,
        max_video_tokens: int | None = None,
        **options: Unpack[MediaKeys],
    ) -> dict[str, Any]:
        """The processor's output for a request as `generate` has it, as transformers' generate() takes it."""
        media, rest = split_options(options)
        params = SamplingParams.of(_OWN_OPTIONS, **rest)
        turns = messages_from(video, prompt, messages, system)
        return self.read(Request(turns, params, frames, fps, max_video_tokens, media))[1]

    def read(
        self, request: Request, progress: Callable[[float], None] | None = None
    ) -> tuple[Messages, dict[str, Any], tuple[str, ...]]:
        """Messages read, the processor's output for them, and what the user should know; see `read_fitting`."""
        target, family = self.pair.target, self.pair.family
        context = getattr(target.config.get_text_config(), "max_position_embeddings", None)
        budget = Budget(
            request.max_video_tokens,
            None if context is None else context - 1,
            lambda pixels: tensor_parallel.all_min(room_for(target.config, target.dtype, target.device, pixels)),
        )
        with out_of_memory_explained():
            return read_fitting(
                self.processor,
                request.messages,
                lambda inputs: len(family.prepare_prompt(target.config, inputs).video_at),
                budget,
                options=request.media,
                progress=progress,
            )

    def close(self) -> None:
        """End the draft's worker."""
        self.pair.close()

    def __enter__(self) -> VideoLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """The models and the draft's process cannot be pickled."""
        raise TypeError("a VideoLLM cannot be pickled or copied; load it where it is needed")


class Stream:
    """An answer on its way: iterate it for pieces of text. `output` is the answer so far, whole after the last piece.

    It may be dropped at any time: other requests go on, and what it holds is freed when it is collected. `close()`
    frees it at once, and may be called from any thread.
    """

    def __init__(self, llm: VideoLLM, request: Request, progress: Progress | None = None) -> None:
        self._llm, self._request, self._progress = llm, request, progress
        self._stats, self._warnings = Stats(), tuple[str, ...]()
        self._text = TextStream(llm.processor.tokenizer)
        self._sequence: Sequence | None = None
        self._lock = threading.RLock()
        self._done = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece of text. Raises HippoError."""
        while True:
            with self._lock:
                if self._done:
                    raise StopIteration
                try:
                    with out_of_memory_explained():
                        piece = self._advance()
                except BaseException:
                    self.close()
                    raise
            if piece:
                return piece

    def close(self) -> None:
        """Stop answering; waits for the step under way."""
        self._done = True
        if self._sequence is not None:
            self._sequence.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit parts of it may be gone already
            self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def output(self) -> Output:
        """The answer so far."""
        return Output(self._text.text, self._text.token_ids, self._stats, self._warnings + warnings_of(self._stats))

    def _advance(self) -> str:
        """Read the clip, or generate some tokens; returns the text that is now certain, which may be none."""
        if self._sequence is None:
            self._sequence = self._start()
        if self._done:  # closed while the clip was being read
            return ""
        tokens = self._sequence.step()
        if tokens is not None:
            return self._text.push(tokens)
        self._done = True
        return self._text.finish()

    def _start(self) -> Sequence:
        began, progress, params = time.perf_counter(), self._progress, self._request.params
        report = None if progress is None else lambda share: progress("reading frames", share)
        messages, inputs, self._warnings = self._llm.read(self._request, report)
        draft_inputs = None
        if self._llm.draft_processor is not None and params.decoder != "ar":
            try:
                draft_inputs = prepare(self._llm.draft_processor, messages)
            except HippoError as error:
                params = replace(params, decoder="ar")
                self._stats.draft_lost = f"the draft cannot be asked this ({error.cause})"
        self._stats.seconds.video = self._stats.seconds.total = time.perf_counter() - began
        return Sequence(
            self._llm.pair,
            inputs,
            params,
            self._stats,
            decode_text=self._llm.processor.tokenizer.decode,
            draft_inputs=draft_inputs,
            progress=progress,
        )


def load(
    target: str | Path = "tiny",
    draft: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    draft_device: str = "auto",
    draft_timeout: float = 20.0,
    draft_worker: str = "auto",
    draft_bits: int | str = "auto",
    start_draft: bool = True,
    trust_remote_code: bool = False,
) -> VideoLLM:
    """Load a target and a draft with one tokenizer.

    Args:
        target: a checkpoint folder or hub id; "tiny" is the bundled pair. A quantised checkpoint is loaded as it is.
        draft: likewise; without one only method "ar" works. Where its processor differs, it makes the draft's inputs.
            "self" is the target's own checkpoint, in 4 bits unless draft_bits says otherwise.
        device: "auto" (the first GPU, all of them if the target is too large for one, or the CPU), "cpu", "cuda",
            "cuda:1", "all". Under torchrun each process holds a part of the target and runs the same script.
        dtype: "auto" is the checkpoint's on a GPU and float32 on a CPU; or a torch name such as "bfloat16".
        draft_device: "auto" is the second GPU where there is one, else the target's first device.
        draft_timeout: seconds of silence after which the draft is given up and the target goes on alone, also while
            it loads.
        draft_worker: "process", "thread", "inline" (in turns only), or "auto", see `hippo.draft.placement`.
        draft_bits: of the draft's weights: 4, 8, 16, or "auto": what this machine multiplies fastest, for a draft that
            is bound by memory. The target decides every token, so fewer bits lose nothing but acceptance.
        start_draft: start the draft now and wait for it, rather than at the first request that needs it.
        trust_remote_code: let code run that a checkpoint brings; never otherwise.

    Raises:
        HippoError: BadRequest, CheckpointError, OutOfMemory or DraftLost.
    """
    itself = draft is not None and str(draft) == "self"
    draft = target if itself else draft
    target_point, draft_point = resolve(target, draft, device, dtype, draft_device, trust_remote_code)
    with out_of_memory_explained(), quiet(), ExitStack() as unless_loaded:
        processor = load_processor(target_point)
        source = draft_processor = worker = None
        if draft_point is not None:
            draft_processor = own_processor(processor, target_point, draft_point)
            weights = stored_bytes(target_point.source) + stored_bytes(draft_point.source)
            place = placement(draft_worker, target_point.first_device, draft_point.device, weights)
            source = Draft(
                draft_point.source,
                dtype=draft_point.dtype,
                device=draft_point.device,
                timeout=draft_timeout,
                place=place,
                bits=bits_for(draft_point, 4 if itself and draft_bits == "auto" else draft_bits, place),
                trust_remote_code=trust_remote_code,
            )
            if start_draft and tensor_parallel.is_leader():  # first, so that both load at the same time
                unless_loaded.callback(source.close)
                worker = source.worker()
                if source.place != "process":  # transformers cannot load two models at once in one process
                    worker.wait_loaded()
        pair = Pair(load_target(target_point), source)
        if worker is not None:
            worker.wait_loaded()
        unless_loaded.pop_all()
    return VideoLLM(pair, processor, draft_processor)


# The drafts of models in memory, by their target; a target that is collected takes its draft's worker with it.
_drafts: WeakKeyDictionary[nn.Module, tuple[ref[nn.Module], Draft]] = WeakKeyDictionary()
_drafts_lock = threading.Lock()


def generate(
    target: nn.Module,
    draft: nn.Module | None,
    inputs: Mapping[str, Any],
    draft_inputs: Mapping[str, Any] | None = None,
    *,
    tokenizer: Any = None,
    **options: Unpack[SamplingOptions],
) -> Output:
    """Answer one request with models that are already in memory. Neither is changed.

    Args:
        target: a model of a family that HIPPO serves.
        draft: a smaller one with the same tokenizer; None for method "ar". It is copied once into a process of its
            own, which lives as long as the target does, or until the target is given another draft.
        inputs: a processor's output, batch of one.
        draft_inputs: the same request by the draft's own processor; needed if the two are of different families.
        tokenizer: makes `text` of `token_ids`, and is needed for stop strings.
        options: see `SamplingParams`.

    Raises:
        HippoError: BadRequest, CheckpointError or OutOfMemory.
    """
    params, stats = SamplingParams.of(("tokenizer", "draft_inputs"), **options), Stats()
    if draft is not None and draft_inputs is None and params.decoder != "ar":
        require_one_family(target, draft)
    token_ids: list[int] = []
    decode_text = None if tokenizer is None else tokenizer.decode
    for_draft = None if draft_inputs is None else dict(draft_inputs)
    with out_of_memory_explained():
        pair = Pair(target, None if draft is None else _draft_of(target, draft))
        for tokens in Sequence(pair, dict(inputs), params, stats, decode_text=decode_text, draft_inputs=for_draft):
            token_ids += tokens
    text = "" if tokenizer is None else tokenizer.decode(token_ids, skip_special_tokens=True)
    return Output(text, token_ids, stats, warnings_of(stats))


def require_one_family(target: Any, draft: Any) -> None:
    """Refuse a draft of another family, which would not understand the target's inputs. Raises CheckpointError."""
    if family_of(draft) is not family_of(target):
        raise CheckpointError(
            f"a draft of type {draft.config.model_type} cannot use the inputs of a {target.config.model_type}",
            "pass draft_inputs, which its own processor made of the same request",
        )


def release(target: nn.Module) -> None:
    """End the draft's worker that `generate` started for a target in memory."""
    with _drafts_lock:
        if (known := _drafts.pop(target, None)) is not None:
            known[1].close()


def _draft_of(target: nn.Module, model: nn.Module) -> Draft:
    """The draft of two models in memory, made once."""
    with _drafts_lock:
        known = _drafts.get(target)
        if known is not None and known[0]() is model:
            return known[1]
        if known is not None:
            known[1].close()
        draft = Draft(model, device=str(next(model.parameters()).device))
        _drafts[target] = ref(model), draft
        return draft


def warnings_of(stats: Stats) -> tuple[str, ...]:
    """What the user should know about an answer's draft; empty if all went well."""
    lost = (f"{stats.draft_lost}; the target finished the answer alone",) if stats.draft_lost else ()
    return (*stats.warnings, *lost)


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn every kind of running out of memory into OutOfMemory."""
    try:
        yield
    except Exception as error:
        if isinstance(error, HippoError) or not is_out_of_memory(error):
            raise
        reason = error
    else:
        return
    gc.collect()
    raise OutOfMemory(
        f"not enough memory ({str(reason).splitlines()[0] if str(reason) else type(reason).__name__})",
        "use fewer --frames, a smaller checkpoint or another --device",
    ) from None


__all__ = ["Output", "Stream", "VideoLLM", "generate", "load", "release"]
