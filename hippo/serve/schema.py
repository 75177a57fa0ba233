"""What a client may ask, field by field. What is not supported is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hippo.errors import BadRequest, unknown
from hippo.serve.errors import ApiError

# Fields of OpenAI's that may be there as long as they ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "background": (None, False),
    "best_of": (None, 1),
    "conversation": (None,),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "include": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "presence_penalty": (None, 0),
    "previous_response_id": (None,),
    "prompt_logprobs": (None,),
    "reasoning": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "text": (None, {"format": {"type": "text"}}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "truncation": (None, "disabled"),
}
_UNUSED = ("user", "safety_identifier", "prompt_cache_key")  # who asks: it changes no answer

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Asked = TypeVar("Asked", bound="Sampling")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class StreamOptions(_Strict):
    """include_usage: a last chunk with the usage. continuous_usage_stats: usage in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class VideoOptions(_Strict):
    """vLLM's `media_io_kwargs["video"]`."""

    num_frames: Count | None = None
    fps: Annotated[float, Field(gt=0)] | None = None


class MediaInput(_Strict):
    """vLLM's `media_io_kwargs`."""

    video: VideoOptions | None = None


class Sampling(_Strict):
    """What all kinds of request have. temperature: greedy without one."""

    model: str | None = None
    stream: bool = False
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    repetition_penalty: float | None = Field(None, gt=0)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    media_io_kwargs: MediaInput | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    method: str | None = None
    keep_ratio: Share | Literal["auto"] | None = None

    def params(self) -> dict[str, Any]:
        """The options of `SamplingParams` that were given."""
        names = ("temperature", "top_p", "min_p", "seed", "repetition_penalty", "method", "keep_ratio")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return given | ({"top_k": max(0, self.top_k)} if self.top_k is not None else {})


class ChatBody(Sampling):
    """Of /v1/chat/completions. return_tokens: see `hippo.serve.page`."""

    messages: list[dict[str, Any]]
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: str | list[str] | None = None
    n: int = Field(1, ge=1, le=16)
    logprobs: bool = False
    return_tokens: bool = False


class ResponsesBody(Sampling):
    """Of /v1/responses."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Count | None = None


class CompletionBody(Sampling):
    """Of /v1/completions. max_tokens: OpenAI's default."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    stream_options: StreamOptions | None = None
    max_tokens: Count = 16
    stop: str | list[str] | None = None
    n: int = Field(1, ge=1, le=16)


class TokenizeBody(_Strict):
    """Of /tokenize."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


def parsed(kind: type[Asked] | type[TokenizeBody], body: Any) -> Any:
    """A body's fields, checked. Raises ApiError."""
    if not isinstance(body, Mapping):
        raise ApiError(400, "the body is not a JSON object: send one")
    given = dict(body)
    for name in [name for name in given if name not in kind.model_fields]:
        value = given.pop(name)
        if name in _UNUSED or any(_same(value, one) for one in _NEUTRAL.get(name, ())):
            continue
        if name in _NEUTRAL:
            raise ApiError(400, f"{name} is not supported: leave it out", name)
        raise ApiError(400, str(unknown("field", name, list(kind.model_fields))), name)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{where}: {first['msg']}", where) from None


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def exclusive(one: int | None, other: int | None) -> int | None:
    """The longest answer, under either name. Raises BadRequest."""
    if one is not None and other is not None and one != other:
        raise BadRequest("max_tokens and max_completion_tokens differ", "give one of them")
    return one if one is not None else other
