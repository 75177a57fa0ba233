"""Chat template, processor and true timestamps: messages become model inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from torch.overrides import TorchFunctionMode

from hippo.errors import BadRequest, CheckpointError
from hippo.inputs.chat import Messages, parts_of
from hippo.inputs.patches import patches_first
from hippo.quiet import quiet

SYSTEM_HINT = "say the system prompt in the user's turn"
TEMPLATE_HINT = "use the checkpoint's own processor, and let user and assistant take turns"


def prepare(processor: Any, messages: Messages, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Inputs for a conversation, as the processor's own chat template lays it out.

    messages: as `read_messages` returns them. options: passed to the processor. It does not sample again: frames and
    their times are those of the videos. Returns the processor's output as a plain dict of tensors, batch of one. Raises
    BadRequest, or CheckpointError if the processor samples again.
    """
    videos, images = parts_of(messages, "video"), parts_of(messages, "image")
    text = render(processor, messages)
    given: dict[str, Any] = {}
    if images:
        given["images"] = [images]  # nested: to some processors, several images of one prompt are not several prompts
    if videos:
        given["videos"] = [[video.frames for video in videos]]  # nested, as images are
        given["video_metadata"] = [video.metadata for video in videos]
        given |= {"do_sample_frames": False, "return_metadata": True}
        if any(video.frames.shape[1] in (1, 3) for video in videos):
            given["input_data_format"] = "channels_last"  # else so few rows are taken for channels
    if (begin := processor.tokenizer.bos_token) and text.startswith(begin):
        given["add_special_tokens"] = False  # else it would be there twice
    for name in given.keys() & (options or {}).keys():
        raise BadRequest(f"processor_kwargs has {name!r}, which follows from the request", "leave it out")
    given |= options or {}
    quick = replaced(processor, video_processor=patches_first(getattr(processor, "video_processor", None)))
    try:
        with quiet(), _OneIsNotJoined():
            inputs = dict(quick(text=[text], return_tensors="pt", **given))
    except (ValueError, StrictDataclassError) as error:
        raise BadRequest(
            f"the model's processor refuses the videos or images ({_line(error)})",
            "cut or scale them, and take the same number of frames of each video",
        ) from None
    except IndexError as error:  # our clock's ticks, taken for a number of frames
        raise resampled() from error
    # metadata, where a processor returns it, says which frames were taken; some repeat the last.
    for video, metadata in zip(videos, inputs.pop("video_metadata", []), strict=False):
        indices = video.metadata.frames_indices or []
        if list(metadata.frames_indices)[: len(indices)] != indices:
            raise resampled()
    return inputs


def replaced(processor: Any, **parts: Any) -> Any:
    """The processor, unchanged itself, with other parts."""
    twin = copy.copy(processor)
    for name, part in parts.items():
        object.__setattr__(twin, name, part)  # transformers accepts only parts of its own classes
    return twin


def prepare_text(processor: Any, prompt: str) -> dict[str, Any]:
    """Inputs for a text that is continued as it is, without a chat template; see `prepare`. Raises BadRequest."""
    _refuse_markers(processor, [prompt])
    with quiet():
        inputs = dict(processor(text=[prompt], return_tensors="pt"))
    if not inputs["input_ids"].numel():
        raise BadRequest("the prompt is empty", "write something to continue")
    return inputs


class _OneIsNotJoined(TorchFunctionMode):
    """Inside, joining a list of one tensor makes no copy. Processors join the pixels of all videos, mostly one, while
    they still hold them in two other forms: of a long clip, a third of all the memory that is ever needed."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.cat and args and len(args[0]) == 1 and "out" not in (kwargs or {}):
            return args[0][0]
        return func(*args, **(kwargs or {}))


def render(processor: Any, messages: Messages) -> str:
    """The prompt by the processor's own chat template, one marker for each video and image.

    The order of parts is that of the messages as far as the template keeps it; some put the videos of a turn first.
    Raises BadRequest if the template refuses the messages or leaves something out.
    """
    markers = _markers(processor)
    _refuse_markers(processor, parts_of(messages, "text"))
    turns = [{"role": turn["role"], "content": [_bare(part) for part in turn["content"]]} for turn in messages]
    try:
        prompt: str = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        hint = SYSTEM_HINT if any(turn["role"] == "system" for turn in turns) else TEMPLATE_HINT
        raise BadRequest(f"the model's chat template refuses the messages ({_line(error)})", hint) from None
    for kind, marker in markers.items():
        if marker and prompt.count(marker) < len(parts_of(messages, kind)):
            raise BadRequest(f"the model's chat template has no place for every {kind}", TEMPLATE_HINT)
    for turn in messages:
        # What the assistant said to itself, some templates drop on purpose.
        if turn["role"] != "assistant" and any(text.strip() not in prompt for text in parts_of([turn], "text")):
            hint = SYSTEM_HINT if turn["role"] == "system" else TEMPLATE_HINT
            raise BadRequest(f"the model's chat template leaves out what the {turn['role']} says", hint)
    return prompt


def _markers(processor: Any) -> dict[str, str | None]:
    return {kind: getattr(processor, f"{kind}_token", None) for kind in ("video", "image")}


def _refuse_markers(processor: Any, texts: list[str]) -> None:
    for marker in filter(None, _markers(processor).values()):
        if any(marker in text for text in texts):
            raise BadRequest(
                f"the prompt holds the model's own marker {marker}", "leave it out: the video's place is known"
            )


def _bare(part: dict[str, Any]) -> dict[str, Any]:
    return part if part["type"] == "text" else {"type": part["type"]}


def on_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same inputs with their tensors on `device`."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}


def resampled() -> CheckpointError:
    """What to raise where a processor took other frames than those it was given."""
    return CheckpointError(
        "the model's processor samples the frames again", "use the checkpoint's own processor, of this transformers"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
