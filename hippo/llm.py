"""The public face: load a pair once, then describe and question videos with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Unpack
from weakref import WeakKeyDictionary, ref

from torch import nn

from hippo import tensor_parallel
from hippo.chat import Chat
from hippo.checkpoints import (
    bits_for,
    known_attention,
    load_processor,
    load_target,
    notes_on,
    own_processor,
    require_itself_packable,
    require_room,
    resolve,
    stored_bytes,
)
from hippo.device import in_passing_thread
from hippo.draft import Plugin, Proposer, placement, plugin_of
from hippo.engine import Engine, State, Stream, warnings_of
from hippo.errors import BadRequest, CheckpointError, HippoError, out_of_memory_explained
from hippo.families import family_of
from hippo.inputs import MediaKeys, Messages, split_options
from hippo.pair import Draft, Pair
from hippo.params import SamplingOptions, SamplingParams
from hippo.quiet import quiet
from hippo.reader import Reader
from hippo.request import DEFAULT_PROMPT, Output, Read, Request, Sources, messages_from
from hippo.sequence import Progress, Sequence
from hippo.stats import Stats

OnDone = Callable[[int, Output | HippoError], None]
_OWN_OPTIONS = (
    *("messages", "system", "frames", "fps", "max_video_tokens", "progress", "on_text"),
    *MediaKeys.__annotations__,
)


class RequestOptions(SamplingOptions, MediaKeys, total=False):
    """What `VideoLLM.generate` takes as options."""


class VideoLLM:
    """A target, its draft and their processor. Made by `hippo.load`; close it, or use it as a context manager.

    draft_processor: the draft's own, if the target's does not serve both. notes: warnings of the first answer.
    """

    def __init__(
        self,
        pair: Pair,
        processor: Any,
        draft_processor: Any = None,
        max_running: int = 8,
        cache_memory: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.pair, self.processor, self.draft_processor = pair, processor, draft_processor
        self._notes = notes
        half = None if cache_memory is None else cache_memory // 2
        target = pair.target
        self.reader = Reader(processor, draft_processor, target.config, target.dtype, target.device, half)
        self.engine = Engine(pair, processor.tokenizer, self._read, max_running, half)

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
            return self.engine.submit(video, progress)
        media, rest = split_options(options)
        params = SamplingParams.of(_OWN_OPTIONS, **rest)
        turns = messages_from(video, prompt, messages, system)
        return self.engine.submit(Request(turns, params, frames, fps, max_video_tokens, media), progress)

    def generate_many(self, requests: Iterable[Request], *, on_done: OnDone | None = None) -> list[Output | HippoError]:
        """Answer several requests together, which is faster than one after another.

        on_done: called with a request's index and its `Output` or error, as soon as it has ended. Returns these in the
        order of the requests: an error ends its own request alone.
        """
        answers = dict[int, Output | HippoError]()
        for index, answer in self.as_completed(requests):
            if not isinstance(answer, (Output, HippoError)):
                raise answer
            answers[index] = answer
            if on_done is not None:
                on_done(index, answer)
        return [answers[index] for index in range(len(answers))]

    def as_completed(self, requests: Iterable[Request]) -> Generator[tuple[int, Output | Exception]]:
        """Answer any number of requests together. Yields the index of each and its `Output` or error, as it ends.

        Requests are taken from their iterable only as there is room for them, so it may be as long as it likes. What
        has not ended is cancelled when the iterator is closed.
        """
        coming, left = enumerate(requests), dict[int, Stream]()
        try:
            while True:
                for index, request in islice(coming, 2 * self.engine.scheduler.max_running - len(left)):
                    left[index] = self.engine.submit(request)
                if not left:
                    return
                self.engine.drive(lambda: any(stream.state is State.DONE for stream in left.values()))
                for index in [index for index, stream in left.items() if stream.state is State.DONE]:
                    try:
                        yield index, left.pop(index).result()
                    except Exception as error:
                        yield index, error
        finally:
            for stream in left.values():
                stream.close()

    def astream(self, *args: Any, **kwargs: Any) -> Stream:
        """As `stream`, to be iterated with `async for`: a thread of the engine's does the work."""
        stream = self.stream(*args, **kwargs)
        self.engine.start()
        return stream

    async def agenerate(self, *args: Any, **kwargs: Any) -> Output:
        """As `generate`, for asyncio. A cancelled task cancels its request."""
        return await self.astream(*args, **kwargs)

    def open(self, video: Sources = None, *, system: str = "", **options: Any) -> Chat:
        """Begin a conversation about a video, or about several videos and images together. options: of `generate`, for
        every question. See `hippo.chat.Chat`."""
        return Chat(self, video, system, **options)

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
        return self.reader.read(request, progress)

    def _read(self, request: Request, progress: Progress | None = None) -> Read:
        """A request's inputs, for the engine."""
        report = None if progress is None else lambda share: progress("reading frames", share)
        read = request.prepared or self.reader.prepare(request, report)
        notes, self._notes = self._notes, ()
        return read._replace(warnings=notes + read.warnings)

    def close(self) -> None:
        """End all requests and the draft's worker."""
        self.engine.close()
        self.pair.close()

    def __enter__(self) -> VideoLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """The models and the draft's process cannot be pickled."""
        raise TypeError("a VideoLLM cannot be pickled or copied; load it where it is needed")


def load(
    target: str | Path = "tiny",
    draft: str | Path | None = None,
    *,
    drafter: str | Callable[[], Proposer] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    draft_device: str = "auto",
    draft_timeout: float = 20.0,
    draft_worker: str = "auto",
    draft_bits: int | str = "auto",
    start_draft: bool = True,
    max_running: int = 8,
    cache_memory: int | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | Mapping[str, str] | None = None,
) -> VideoLLM:
    """Load a target and a draft with one tokenizer.

    Args:
        target: a checkpoint folder or hub id; "tiny" is the bundled pair. A quantised checkpoint is loaded as it is.
        draft: likewise; without one only method "ar" works. Where its processor differs, it makes the draft's inputs.
            "self" is the target's own checkpoint, in 4 bits unless draft_bits says otherwise. "ngram" needs no model:
            it proposes what followed in prompt or answer where the last tokens occurred before.
        drafter: a drafter of your own in place of a draft model: a class whose objects have the methods of
            `hippo.draft.Proposer`, or a function that returns one, for each request; "MODULE:CLASS"; or the name of an
            entry point. See docs/drafter-plugins.md.
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
        max_running: requests that are answered together at most; others wait.
        cache_memory: bytes for what later requests on the same video use again, 0 for none; None: a fifth of the free
            memory.
        trust_remote_code: let code run that a checkpoint brings; never otherwise.
        attn_implementation: of both models, as transformers' from_pretrained takes it: "sdpa", "eager",
            "flash_attention_2", ..., or a mapping such as {"vision_config": "flash_attention_2"}; None: transformers'
            own choice. Forwards over a few tokens of layers laid out like Llama's have an attention of their own.

    Raises:
        HippoError: BadRequest, CheckpointError, OutOfMemory or DraftLost.
    """
    plugin, draft = _plugin(draft, drafter, draft_worker)
    itself = draft is not None and str(draft) == "self"
    draft = target if itself else draft
    attention = known_attention(attn_implementation)
    target_point, draft_point = resolve(target, draft, device, dtype, draft_device, trust_remote_code, attention)
    with out_of_memory_explained(), quiet(), ExitStack() as unless_loaded:
        processor = load_processor(target_point)
        source = draft_processor = worker = None
        bits = 16
        if plugin is not None:
            draft_point = None
            known = {"target": target_point.identity, "draft": {"drafter": plugin.name}}
            source = Draft(plugin, timeout=draft_timeout, pair=None if callable(drafter) else known)
        if draft_point is not None:
            draft_processor = own_processor(processor, target_point, draft_point)
            weights = stored_bytes(target_point.source) + stored_bytes(draft_point.source)
            place = placement(draft_worker, target_point.first_device, draft_point.device, weights)
            bits = bits_for(draft_point, 4 if itself and draft_bits == "auto" else draft_bits, place)
            if itself and bits < 16:
                require_itself_packable(target_point)
            if start_draft:
                require_room(target_point, draft_point, bits)
            source = Draft(
                draft_point.source,
                dtype=draft_point.dtype,
                device=draft_point.device,
                timeout=draft_timeout,
                place=place,
                bits=bits,
                trust_remote_code=trust_remote_code,
                attention=attention,
                pair={"target": target_point.identity, "draft": draft_point.identity},
            )
            if start_draft and tensor_parallel.is_leader():  # first, so that both load at the same time
                unless_loaded.callback(source.close)
                worker = source.worker()
                if source.place != "process":  # transformers cannot load two models at once in one process
                    worker.wait_loaded()

        def load_pair() -> Pair:
            return Pair(load_target(target_point), source)

        on_cpu = target_point.first_device == "cpu"
        pair = in_passing_thread(load_pair) if on_cpu else load_pair()  # a thread's GPU is its own affair
        if worker is not None:
            worker.wait_loaded()
        unless_loaded.pop_all()
    notes = notes_on(target_point, draft_point, bits)
    return VideoLLM(pair, processor, draft_processor, max_running, cache_memory, notes)


def _plugin(
    draft: str | Path | None, drafter: str | Callable[[], Proposer] | None, draft_worker: str = "auto"
) -> tuple[Plugin | None, str | Path | None]:
    """A drafter without a model and the draft model's name, of which at least one is None. Raises BadRequest."""
    if drafter is None and str(draft) == "ngram":
        draft, drafter = None, "ngram"
    if drafter is None:
        return None, draft
    if draft is not None:
        raise _two_drafts()
    if draft_worker not in ("auto", "inline"):
        raise BadRequest(f"a drafter without a model does not work in a {draft_worker}", "leave draft_worker out")
    return plugin_of(drafter), None


def _two_drafts() -> BadRequest:
    return BadRequest("there is a draft model and a drafter", "leave one of them out")


# The drafts of models in memory, by their target; a target that is collected takes its draft's worker with it.
_drafts: WeakKeyDictionary[nn.Module, tuple[Callable[[], nn.Module | Plugin | None], Draft]] = WeakKeyDictionary()
_drafts_lock = threading.Lock()


def generate(
    target: nn.Module,
    draft: nn.Module | None,
    inputs: Mapping[str, Any],
    draft_inputs: Mapping[str, Any] | None = None,
    *,
    drafter: str | Callable[[], Proposer] | None = None,
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
        drafter: in place of a draft, see `load`.
        tokenizer: makes `text` of `token_ids`, and is needed for stop strings.
        options: see `SamplingParams`.

    Raises:
        HippoError: BadRequest, CheckpointError or OutOfMemory.
    """
    params, stats = SamplingParams.of(("tokenizer", "draft_inputs", "drafter"), **options), Stats()
    if draft is not None and drafter is not None:
        raise _two_drafts()
    if draft is not None and draft_inputs is None and params.decoder != "ar":
        require_one_family(target, draft)
    token_ids: list[int] = []
    decode_text = None if tokenizer is None else tokenizer.decode
    for_draft = None if draft_inputs is None else dict(draft_inputs)
    with out_of_memory_explained():
        source = draft if drafter is None else plugin_of(drafter)
        pair = Pair(target, None if source is None else _draft_of(target, source))
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


def _draft_of(target: nn.Module, source: nn.Module | Plugin) -> Draft:
    """The draft of a target in memory, made once."""
    with _drafts_lock:
        known = _drafts.get(target)
        if known is not None and known[0]() == source:
            return known[1]
        if known is not None:
            known[1].close()
        if isinstance(source, Plugin):
            _drafts[target] = lambda: source, Draft(source)
        else:
            _drafts[target] = ref(source), Draft(source, device=str(next(source.parameters()).device))
        return _drafts[target][1]


__all__ = ["VideoLLM", "generate", "load", "release"]
