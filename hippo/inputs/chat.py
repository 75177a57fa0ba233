"""What a request may hold: turns of text, videos and images, in the chat formats of transformers and of OpenAI."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from hippo.errors import BadRequest, unknown
from hippo.inputs.options import IMAGE_KEYS, VIDEO_KEYS, MediaOptions
from hippo.inputs.sources import is_frames, is_url, kind_of, open_image, open_video
from hippo.video import Clip, Decoder, OpenClip, Sampling, Video

Source = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | Clip | Video | Image.Image
Messages = Sequence[Mapping[str, Any]]

ROLES = ("system", "user", "assistant")
PARTS = {  # the keys that may hold what a part is of, and the others it may have
    "text": (("text",), ()),
    "video": (("video", "video_url", "url", "path"), VIDEO_KEYS),
    "image": (("image", "image_url", "url", "path"), IMAGE_KEYS),
}
_HERE = Decoder()
_TYPES = {"video_url": "video", "image_url": "image"}


class _Undecided(Enum):
    """SOURCE: the type of a part whose content, still to be fetched, decides whether it is a video or an image. No
    string, so that no message from outside can have it."""

    SOURCE = 0


_SOURCE = _Undecided.SOURCE
SHAPE = 'write {"role": "user", "content": "..."}, or a list of parts for the content'


def messages_of(sources: Any, prompt: str, system: str = "") -> list[dict[str, Any]]:
    """Videos and images in their order, then the prompt, as one turn of the user's, after a system prompt if any.

    sources: a `Source` or a list of them, None for none; a list of frames is one video. A file's content decides
    whether it is a video or an image. Raises BadRequest or MediaError.
    """
    several = isinstance(sources, (list, tuple)) and not is_frames(sources)
    if several and not sources:
        raise BadRequest("the list of videos is empty", "name a video, or leave it out to ask without one")
    listed: Sequence[Any] = sources if several else [] if sources is None else [sources]
    content = [*map(_part_of, listed), {"type": "text", "text": prompt}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *turns] if system else turns


def open_messages(
    messages: Messages,
    options: MediaOptions | None = None,
    *,
    video_processor: Any = None,
    progress: Callable[[float], None] | None = None,
    decoder: Decoder = _HERE,
) -> list[dict[str, Any]]:
    """Messages checked, with every content a list of parts, every image read and every video an open clip or frames.

    Parts with a video or an image have their own `MediaOptions` as "options". What is returned can be read any number
    of times without the files being read again. messages: see `read_messages`. options: those of the request.
    video_processor: counts frames, see `MediaOptions.sampling`. progress: of what is fetched. decoder: opens files.
    Raises BadRequest or MediaError.
    """
    options = options or MediaOptions()
    turns = checked(messages)
    for part in (part for turn in turns for part in turn["content"] if part["type"] != "text"):
        keys = part["keys"]
        if part["type"] is _SOURCE:
            kind, source = kind_of(part.pop("source"), options.fetch, progress)
            part |= {"type": kind, kind: source}
        kind = part["type"]
        part["options"] = mine = options.with_keys(keys, PARTS[kind][1])
        if kind == "image":
            part["image"] = open_image(part["image"], decoder, options.fetch)
        else:
            sampling = mine.sampling(video_processor)
            video = open_video(part["video"], sampling, decoder, options.fetch, progress)
            part["video"] = _picked(video, mine, sampling)
    return turns


def read_messages(
    messages: Messages,
    *,
    frames: int | None = None,
    fps: float | None = None,
    options: MediaOptions | None = None,
    most: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[dict[str, Any]]:
    """Messages checked, with every content a list of parts, every video a `Video` and every image a PIL image in RGB.

    messages: turns with a role (system, user or assistant; the last is the user's) and a content, which is a string or
    a list of {"type": "text", "text": str}, {"type": "video", "video": a `Source`} and {"type": "image", "image": a
    `Source`}, with keys of `MediaOptions`; docs/inputs.md lists every form. frames, fps, options: how each video is
    sampled. most: no more frames than these of each. progress: called with the fraction of the videos that is read,
    rising to 1.0. Raises BadRequest, MediaError or OutOfMemory.
    """
    if frames is not None or fps is not None or options is None:
        options = MediaOptions(frames=frames, fps=fps)
    return read_opened(open_messages(messages, options), most=most, progress=progress)


def read_opened(
    opened: Messages,
    *,
    video_processor: Any = None,
    most: int | None = None,
    progress: Callable[[float], None] | None = None,
    decoder: Decoder = _HERE,
) -> list[dict[str, Any]]:
    """A copy of what `open_messages` returned in which every video is a `Video`; see `read_messages`. decoder: the one
    that opened the clips."""
    turns = [{"role": turn["role"], "content": [dict(part) for part in turn["content"]]} for turn in opened]
    media = [part for turn in turns for part in turn["content"] if part["type"] != "text"]
    for index, part in enumerate(media):
        report = partial(_fraction, progress, index, len(media))
        if isinstance(video := part.get("video"), Video):
            part["video"] = video.thinned(most)
        elif video is not None:
            wanted = part["options"].sampling(video_processor)
            part["video"] = decoder.sample(video, wanted, most, report)
        report(1.0)
    return turns


def _picked(video: OpenClip | Video, options: MediaOptions, sampling: Sampling) -> OpenClip | Video:
    """Of frames in memory, those that are asked for."""
    if not isinstance(video, Video):
        return video
    rate = options.sample_fps or (None if video.timed else options.fps)
    if rate is not None:
        if video.timed:
            raise BadRequest("sample_fps of frames whose times are known", "leave it out")
        video = Video(video.frames, fps=rate)
        sampling = Sampling(sampling.frames, None, sampling.start, sampling.end, sampling.step)
    if sampling.frames is None and sampling.fps is None and not sampling.bounded:
        return video
    picks = sampling.pick(video.timeline(), "the video")
    return video if len(picks) == len(video.frames) else video.only(picks)


def parts_of(messages: Messages, kind: str) -> list[Any]:
    """The texts, videos or images of messages that were read, in order. kind: "text", "video" or "image"."""
    return [part[kind] for turn in messages for part in turn["content"] if part["type"] == kind]


def _part_of(source: Any) -> dict[str, Any]:
    if is_url(source):
        return {"type": _SOURCE, "source": source}
    kind, value = kind_of(source)
    return {"type": kind, kind: value}


def checked(messages: Messages) -> list[dict[str, Any]]:
    """A copy in which every content is a list of parts. Raises BadRequest."""
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
    kind = _TYPES.get(kind, kind) if isinstance(kind, str) else kind
    if kind is _SOURCE:
        return {"type": kind, "source": part["source"], "keys": {}}
    if not isinstance(kind, str) or kind not in PARTS:
        raise unknown(f"type of {where}", kind, (*PARTS, *_TYPES))
    places, known = PARTS[kind]
    there = [name for name in places if name in part]
    if len(there) != 1:
        cause = f"both {there[0]!r} and {there[1]!r}" if there else f"no {kind!r}"
        raise BadRequest(f"{where} is of type {kind!r} and has {cause}", f"give it one of: {', '.join(places)}")
    value = part[there[0]]
    if there[0].endswith("_url") and isinstance(value, Mapping):
        _require_known(value, ("url", "detail"), where)
        value = value.get("url")
    opened = isinstance(part.get("options"), MediaOptions) or isinstance(part.get("keys"), Mapping)
    keys = {name: part[name] for name in part if name not in ("type", there[0], *(("options", "keys") * opened))}
    keys |= part.get("keys", {}) if opened else {}  # of messages that were opened before
    _require_known(keys, known, where)
    if kind == "text" and not isinstance(value, str):
        raise BadRequest(f"{where} has a {type(value).__name__} for its text", "give it a string")
    if kind == "text":
        return {"type": kind, kind: value}
    if value is None or isinstance(value, (bool, int, float)):
        raise BadRequest(f"{where} has a {type(value).__name__} for its {kind}", "give it a path, a URL or frames")
    if kind == "video" and isinstance(value, Image.Image):
        raise BadRequest(f"{where} has one image for its video", "give it a list of images, or make its type image")
    return {"type": kind, kind: value, "keys": keys}


def _require_known(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in known:
            raise unknown(f"key of {where}", name, known or ("type", "text"))


def _fraction(progress: Callable[[float], None] | None, index: int, total: int, done: float) -> None:
    if progress is not None:
        progress((index + done) / total)
