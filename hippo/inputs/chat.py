"""What a request may hold: turns of text, videos and images, in the chat format that transformers uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from hippo.errors import BadRequest, MediaError
from hippo.video import Clip, Video, check_request, is_picture, read_video
from hippo.video.files import is_animated, require_size

Source = str | os.PathLike[str] | Clip | Video | Image.Image
Messages = Sequence[Mapping[str, Any]]

ROLES = ("system", "user", "assistant")
PARTS: dict[str, tuple[tuple[type, ...], str]] = {
    "text": ((str,), "a string"),
    "video": ((str, os.PathLike, Clip, Video), "a path or a hippo.Video"),
    "image": ((str, os.PathLike, Image.Image), "a path or a PIL image"),
}
SHAPE = 'write {"role": "user", "content": "..."}, or a list of parts for the content'


def messages_of(sources: Source | Sequence[Source] | None, prompt: str, system: str = "") -> list[dict[str, Any]]:
    """Videos and images in their order, then the prompt, as one turn of the user's, after a system prompt if any.

    A file's content decides whether it is a video or an image. Raises BadRequest or MediaError.
    """
    if isinstance(sources, (list, tuple)) and not sources:
        raise BadRequest("the list of videos is empty", "name a video, or leave it out to ask without one")
    listed: Sequence[Any] = sources if isinstance(sources, (list, tuple)) else [] if sources is None else [sources]
    content = [*map(_part_of, listed), {"type": "text", "text": prompt}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *turns] if system else turns


def open_messages(messages: Messages, *, frames: int | None = None, fps: float | None = None) -> list[dict[str, Any]]:
    """Messages checked, with every content a list of parts, every image read and every video's path made a `Clip`.

    What is returned can be used as messages itself, any number of times, without the files being read again. messages,
    frames, fps: see `read_messages`. Raises BadRequest or MediaError.
    """
    check_request(frames, fps)
    turns = _checked(messages)
    for part in (part for turn in turns for part in turn["content"]):
        if part["type"] == "image":
            part["image"] = _read_image(part["image"])
        elif part["type"] == "video" and not isinstance(part["video"], (Clip, Video)):
            part["video"] = Clip(Path(part["video"]))
    return turns


def read_messages(
    messages: Messages,
    *,
    frames: int | None = None,
    fps: float | None = None,
    most: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[dict[str, Any]]:
    """Messages checked, with every content a list of parts, every video a `Video` and every image a PIL image in RGB.

    messages: turns with a role (system, user or assistant; the last is the user's) and a content, which is a string or
    a list of {"type": "text", "text": str}, {"type": "video", "video": path, Clip or Video} and {"type": "image",
    "image": path or PIL image}. frames, fps, most: how each video is sampled, see `read_video`. progress: called with
    the fraction of the videos that is read, rising to 1.0. Raises BadRequest, MediaError or OutOfMemory.
    """
    turns = open_messages(messages, frames=frames, fps=fps)
    media = [part for turn in turns for part in turn["content"] if part["type"] != "text"]
    for index, part in enumerate(media):
        report = partial(_fraction, progress, index, len(media))
        if isinstance(video := part.get("video"), Video):
            part["video"] = video.thinned(most)
        elif video is not None:
            part["video"] = read_video(video, frames=frames, fps=fps, most=most, progress=report)
        report(1.0)
    return turns


def parts_of(messages: Messages, kind: str) -> list[Any]:
    """The texts, videos or images of messages that were read, in order. kind: "text", "video" or "image"."""
    return [part[kind] for turn in messages for part in turn["content"] if part["type"] == kind]


def _part_of(source: Source) -> dict[str, Any]:
    if isinstance(source, (str, os.PathLike)):
        kind = "image" if is_picture(Path(source)) else "video"
    elif isinstance(source, (Clip, Video, Image.Image)):
        kind = "image" if isinstance(source, Image.Image) else "video"
    else:
        raise BadRequest(
            f"a {type(source).__name__} is neither a video nor an image", "give a path, a hippo.Video or a PIL image"
        )
    return {"type": kind, kind: source}


def _checked(messages: Messages) -> list[dict[str, Any]]:
    """A copy in which every content is a list of parts."""
    if not isinstance(messages, (list, tuple)):
        raise BadRequest(f"messages are a {type(messages).__name__} and not a list", "give a list of turns")
    if not messages:
        raise BadRequest("there are no messages", "give at least one turn of the user's")
    turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if turns[-1]["role"] != "user":
        raise BadRequest(f"the last message is of the {turns[-1]['role']}", "end with what the user asks")
    return turns


def _turn(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRequest(f"{where} is a {type(message).__name__} and not a dict", SHAPE)
    for key in ("role", "content"):
        if key not in message:
            raise BadRequest(f"{where} lacks {key!r}", SHAPE)
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise BadRequest(f"{where} has the unknown role {role!r}", f"use one of: {', '.join(ROLES)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise BadRequest(f"{where} has a {type(content).__name__} for its content", SHAPE)
    if not content:
        raise BadRequest(f"{where} has an empty content", "give it at least one part")
    return {"role": role, "content": [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]}


def _part(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise BadRequest(f"{where} is a {type(part).__name__} and not a dict", 'write {"type": "text", "text": "..."}')
    if "type" not in part:
        raise BadRequest(f"{where} lacks 'type'", f"use one of: {', '.join(PARTS)}")
    kind = part["type"]
    if not isinstance(kind, str) or kind not in PARTS:
        raise BadRequest(f"{where} is of the unknown type {kind!r}", f"use one of: {', '.join(PARTS)}")
    types, wanted = PARTS[kind]
    if kind not in part:
        raise BadRequest(f"{where} is of type {kind!r} but lacks {kind!r}", f"give it {wanted}")
    if not isinstance(part[kind], types):
        raise BadRequest(f"{where} has a {type(part[kind]).__name__} for its {kind}", f"give it {wanted}")
    return {"type": kind, kind: part[kind]}


def _fraction(progress: Callable[[float], None] | None, index: int, total: int, done: float) -> None:
    if progress is not None:
        progress((index + done) / total)


def _read_image(source: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """Upright, in RGB; of a file that holds several pages or views, the first."""
    if isinstance(source, Image.Image):
        return _upright(source, "the image")
    try:
        with Image.open(source) as image:
            return _upright(image, str(source))
    except (BadRequest, MediaError, MemoryError):
        raise
    except Exception as error:  # damaged pictures fail in many ways
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise MediaError(f"{source} cannot be read as an image ({reason})", "give a jpg, png or webp file") from None


def _upright(image: Image.Image, name: str) -> Image.Image:
    if is_animated(image):
        raise BadRequest(f"{name} is animated", "give it as a video, or save one picture of it")
    require_size(name, *image.size)
    return ImageOps.exif_transpose(image).convert("RGB")
