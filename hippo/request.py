"""What a caller asks, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hippo.errors import BadRequest
from hippo.inputs import MediaOptions, Messages, Source, messages_of
from hippo.params import SamplingParams
from hippo.stats import Stats
from hippo.trace import Kept, Span, TokenInfo
from hippo.video import Decoder, in_this_process

DEFAULT_PROMPT = "Describe the video in detail."
Sources = Source | Sequence[Source] | tuple[Any, Any] | None


class Read(NamedTuple):
    """What reading a request gives: the inputs of the target and, if it has its own, of the draft; how to decode;
    what the user should know; the seconds it took; why there is no draft, if it cannot use the inputs; the digest of
    its media, see `hippo.inputs.media_key`, where it is known."""

    inputs: dict[str, Any]
    draft_inputs: dict[str, Any] | None
    params: SamplingParams
    warnings: tuple[str, ...]
    seconds: float
    draft_lost: str = ""
    media: bytes | None = None


@dataclass(frozen=True)
class Request:
    """One question: messages with their videos and images, how to sample the videos, how to decode the answer.

    Args:
        messages: turns with a role and a content, as transformers' chat templates take them; see
            `hippo.inputs.read_messages`.
        params: see `SamplingParams`.
        frames: frames to sample of each video, 16 by default.
        fps: frames to sample a second of each video, instead.
        max_video_tokens: frames are scaled down, and then fewer are taken, where the videos would have more tokens;
            None: what memory and the model's context hold.
        media: what else is asked of every video and image; a part of the messages may ask differently.
        on_read: called with the messages once their videos are read, whose frames are then those that the target is
            given; in a thread that reads.
        prompt: a text that is continued as it is, without a chat template; the messages are empty then.
        decoding: opens what decodes the videos and images; by default this process does.
        prepared: what `hippo.reader.Reader.prepare` made of this request before, perhaps on another machine. Nothing is
            read again.
    """

    messages: Messages
    params: SamplingParams = field(default_factory=SamplingParams)
    frames: int | None = None
    fps: float | None = None
    max_video_tokens: int | None = None
    media: MediaOptions = field(default_factory=MediaOptions)
    on_read: Callable[[Messages], None] | None = field(default=None, compare=False)
    prompt: str | None = None
    decoding: Callable[[], AbstractContextManager[Decoder]] = field(default=in_this_process, compare=False, repr=False)
    prepared: Read | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = {"frames": self.frames, "fps": self.fps}
        given = {name: value for name, value in given.items() if value is not None}
        object.__setattr__(self, "media", replace(self.media, **given))  # type: ignore[arg-type]
        if self.prompt is not None and self.messages:
            raise BadRequest("there are messages beside a prompt", "leave one of them out")
        if self.max_video_tokens is not None and self.max_video_tokens < 1:
            raise BadRequest(f"max_video_tokens {self.max_video_tokens} is not positive", "leave it out, or allow some")


def messages_from(video: Sources, prompt: str, messages: Messages | None, system: str = "") -> Messages:
    """A request's messages, however they were given. Raises BadRequest."""
    if messages is None:
        if video is None and prompt == DEFAULT_PROMPT:
            raise BadRequest("there is no video to describe", "name one, or ask something that needs none")
        return messages_of(video, prompt, system)
    if video is not None or prompt != DEFAULT_PROMPT or system:
        raise BadRequest("there are messages beside a video or a prompt", "put all of it into the messages")
    return messages


@dataclass(frozen=True)
class Output:
    """An answer. token_ids include the token that ended it; text has no special tokens."""

    text: str
    token_ids: list[int]
    stats: Stats
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[TokenInfo, ...]:
        """What is known of each token; see `SamplingParams.logprobs`."""
        return tuple(self.stats.trace.tokens)

    @property
    def kept(self) -> Kept | None:
        """The video tokens that the draft saw; None without a draft."""
        return self.stats.trace.kept

    @property
    def timeline(self) -> tuple[Span, ...]:
        """What target and draft did when, in order."""
        return tuple(sorted(self.stats.trace.timeline, key=lambda span: span.began))
