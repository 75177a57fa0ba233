"""Videos and images that were read are kept, with what the processor made of them, for later requests on them."""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hippo.device import free_memory
from hippo.inputs.chat import Messages, checked
from hippo.inputs.patches import patches_first
from hippo.inputs.prepare import prepare, replaced
from hippo.inputs.sources import is_url

_SHARE = 0.1  # of the free memory, by default
_RECENT = 50_000_000  # nanoseconds: a file that was just written may change again without a new time stamp

Key = tuple[Any, ...]
Result = tuple[list[dict[str, Any]], dict[str, Any], tuple[str, ...]]


@dataclass(eq=False)
class _Entry:
    """parts: media in order, as `read_messages` has them. options: what `prepare` was given. outputs: of the video and
    the image processor, by what they were called with. digests: of tensors among them, by their id."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    outputs: dict[Key, dict[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    digests: dict[int, bytes] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        return [value for output in self.outputs.values() for value in output.values() if isinstance(value, Tensor)]

    @property
    def size(self) -> int:
        frames = sum(part["video"].frames.nbytes for part in self.parts if part["type"] == "video")
        return int(frames + sum(tensor.nbytes for tensor in self.tensors))


class MediaMemory:
    """What was read, least recently used first out. budget: bytes; None: a tenth of the memory that is free when the
    first entry comes."""

    def __init__(self, budget: int | None = None) -> None:
        self._budget, self._entries, self._lock = budget, dict[Key, _Entry](), threading.Lock()

    def read(
        self,
        processor: Any,
        messages: Messages,
        options: Key,
        read: Callable[[Callable[[Messages, dict[str, Any]], dict[str, Any]]], Result],
    ) -> Result:
        """Messages read, the processor's inputs for them, and warnings.

        options: all else that says how media are read. read: does it, given what to use in place of
        `hippo.inputs.prepare`, for media that are not known.
        """
        turns = checked(messages)
        media = [part for turn in turns for part in turn["content"] if part["type"] != "text"]
        sources = [_signature(part) for part in media]
        key = (*options, *sources)
        if not media or None in sources:
            return read(lambda turns, given: prepare(processor, turns, given))
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._entries[key] = entry  # now the latest
        if entry is not None:
            for part, known in zip(media, entry.parts, strict=True):
                part.clear()
                part.update(known)
            return turns, prepare(_remembering(processor, entry), turns, entry.options), entry.warnings
        entry = _Entry()

        def process(turns: Messages, given: dict[str, Any]) -> dict[str, Any]:
            entry.outputs.clear()  # of frames that were too many
            entry.options = given
            return prepare(_remembering(processor, entry), turns, given)

        result = turns, _, entry.warnings = read(process)
        entry.parts = [part for turn in turns for part in turn["content"] if part["type"] != "text"]
        again = [part for turn in checked(messages) for part in turn["content"] if part["type"] != "text"]
        if sources == list(map(_signature, again)):  # no file changed while it was read
            self._keep(key, entry)
        return result

    def media_key(self, inputs: Mapping[str, Any]) -> bytes:
        """See `media_key`. What is kept is read once for it."""
        with self._lock:
            entries = list(self._entries.values())

        def digest(tensor: Tensor) -> bytes:
            for entry in entries:
                if any(tensor is one for one in entry.tensors):
                    if id(tensor) not in entry.digests:
                        entry.digests[id(tensor)] = _digest(tensor)
                    return entry.digests[id(tensor)]
            return _digest(tensor)

        return media_key(inputs, digest)

    def _keep(self, key: Key, entry: _Entry) -> None:
        with self._lock:
            if self._budget is None:
                self._budget = int(_SHARE * free_memory())
            self._entries[key] = entry
            while self._entries and sum(one.size for one in self._entries.values()) > self._budget:
                self._entries.pop(next(iter(self._entries)))


def media_key(inputs: Mapping[str, Any], digest: Callable[[Tensor], bytes] = lambda tensor: _digest(tensor)) -> bytes:
    """A digest of all that a processor's output holds beside text: pixels, grids, times."""
    key = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        value = inputs[name]
        if isinstance(value, Tensor) and name not in ("input_ids", "attention_mask", "mm_token_type_ids"):
            key.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + digest(value))
    return key.digest()


def _digest(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(values.data, digest_size=16).digest()


class _Remembering:
    """Stands for a video or image processor: what it was called with before is not processed again."""

    def __init__(self, processor: Any, entry: _Entry) -> None:
        self._processor, self._outputs = processor, entry.outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = _call_key((args, kwargs))
        if key not in self._outputs:
            self._outputs[key] = self._processor(*args, **kwargs)
        return copy.copy(self._outputs[key])  # processors take parts of it out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def _remembering(processor: Any, entry: _Entry) -> Any:
    """The processor with parts that remember."""
    parts = {name: getattr(processor, name, None) for name in ("video_processor", "image_processor")}
    parts["video_processor"] = patches_first(parts["video_processor"])
    return replaced(processor, **{name: _Remembering(part, entry) for name, part in parts.items() if part is not None})


def _call_key(value: Any) -> Key:
    """Equal for equal plain values and for the same frames, which the entry keeps alive. All else follows from them."""
    if isinstance(value, dict):
        return tuple((name, _call_key(value[name])) for name in sorted(value))
    if isinstance(value, (list, tuple)):
        return tuple(map(_call_key, value))
    if isinstance(value, (np.ndarray, Image.Image)):
        return (id(value),)
    return (value,) if isinstance(value, (str, int, float, bool, type(None))) else (type(value).__name__,)


def _signature(part: dict[str, Any]) -> Key | None:
    """What identifies a video or image, and the state of its file. None if it is not known."""
    source = next(value for name, value in part.items() if name not in ("type", "keys"))
    rest = (part["type"], repr(part.get("keys")))
    if isinstance(source, bytes) or (isinstance(source, str) and source.startswith("data:")):
        content = source if isinstance(source, bytes) else source.encode()
        return (*rest, len(content), hashlib.sha256(content).digest())
    if not isinstance(source, (str, os.PathLike)) or is_url(source):
        return None
    try:
        path = Path(source).resolve()
        state = path.stat()
    except (OSError, ValueError):
        return None  # another form of a path, or an error that reading explains
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < _RECENT:
        return None
    return (*rest, path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
