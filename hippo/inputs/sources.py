"""One video or image, in whatever form people have it: a path, a URL, bytes, an open file, frames in memory."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copyfileobj
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen

from PIL import Image

from hippo.errors import BadRequest, MediaError
from hippo.inputs.fetch import fetch, name_of
from hippo.video import Clip, Decoder, OpenClip, Sampling, Stored, Video, as_frames, is_picture
from hippo.video.files import temporary
from hippo.video.frames import CHANNELS, as_picture, is_array, picture

FORMS = "give a path, a URL, bytes, an open file, an array, a tensor, a list of frames or a hippo.Video"
IMAGE_FORMS = "give a path, a URL, bytes, an open file, an array (H, W, C) or a PIL image"
Progress = Callable[[float], None] | None


def is_file(source: Any) -> bool:
    """Whether this is the content of a file: a path, a URL, bytes or an open file."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Stored)) or hasattr(source, "read")


def is_url(source: Any) -> bool:
    """Whether this must be fetched."""
    return isinstance(source, str) and source.partition(":")[0].lower() in ("http", "https")


def is_frames(source: Any) -> bool:
    """Whether this is one video in memory."""
    if isinstance(source, tuple) and len(source) == 2 and _is_metadata(source[1]):
        return True
    if isinstance(source, (list, tuple)):
        each = [isinstance(one, Image.Image) or (is_array(one) and one.ndim in (2, 3)) for one in source]
        return bool(each) and all(each)
    return is_array(source) and source.ndim != 3


def stored(source: Any, fetching: bool = True, progress: Progress = None) -> Path | Stored:
    """A path, or content that can be sought. source: see `is_file`. Raises HippoError."""
    if isinstance(source, Stored):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Stored(io.BytesIO(source), "the video")
    if not isinstance(source, (str, os.PathLike)):
        return _sought(source)
    text = os.fsdecode(source)
    if not text:
        raise BadRequest("the path is empty", "name a file or a URL")
    scheme = text.partition(":")[0].lower()
    if is_url(text):
        if not fetching:
            raise BadRequest(f"{name_of(text)} is a URL, and fetching is off", "download it, or leave --no-fetch out")
        return fetch(text, progress)
    if scheme == "file":
        # qwen-vl-utils cuts the first seven characters off, others escape what is no letter.
        path = Path(text[7:] if text.startswith("file://") else text[5:])
        path = Path(*path.parts[1:]) if path.parts[:1] == ("localhost",) else path
        return path if path.exists() else Path(unquote(str(path)))
    if scheme == "data":
        return Stored(io.BytesIO(_data(text)), "the data: URL")
    path = Path(text)
    if text.startswith("~/") and not path.exists():
        return path.expanduser()
    if "://" in text and not path.exists():
        raise BadRequest(f"{scheme}:// is not fetched", "give an http://, https:// or file:// URL, or download it")
    return path


def open_video(
    source: Any, sampling: Sampling, decoder: Decoder, fetching: bool, progress: Progress
) -> OpenClip | Video:
    """A clip that is open, or frames. sampling: see `Clip`. Raises HippoError."""
    if isinstance(source, (Clip, Video)):
        return source
    if isinstance(source, tuple) and len(source) == 2 and _is_metadata(source[1]):
        return Video.of(*source)
    if isinstance(source, str) and source.startswith("data:video/jpeg"):  # vLLM's: one picture after another
        head, *pictures = source.split(",")
        return Video([picture(open_image(f"{head},{each}", decoder)) for each in pictures])
    if is_file(source):
        return decoder.clip(stored(source, fetching, progress), sampling)
    if isinstance(source, (list, tuple)) and source and all(map(is_file, source)):  # of pictures, as in qwen-vl-utils
        return Video([open_image(each, decoder, fetching) for each in source])
    if isinstance(source, (list, tuple)) or is_array(source):
        return Video(as_frames(source))
    raise BadRequest(f"a {type(source).__name__} is no video", FORMS)


def open_image(source: Any, decoder: Decoder, fetching: bool = True) -> Image.Image:
    """Upright, in RGB; of a file that holds several pages or views, the first. Raises HippoError."""
    if is_array(source):
        if source.ndim not in (2, 3) or (source.ndim == 3 and not {source.shape[0], source.shape[2]} & {*CHANNELS}):
            cause = f"an image has the shape {tuple(source.shape)}"
            raise BadRequest(cause, "give (H, W) or (H, W, C), and gray frames of a video as (T, H, W, 1)")
        return Image.fromarray(as_frames([source], "the image")[0])
    if isinstance(source, Image.Image):
        return as_picture(source)
    if not is_file(source):
        raise BadRequest(f"a {type(source).__name__} is no image", IMAGE_FORMS)
    return decoder.picture(stored(source, fetching))


def kind_of(source: Any, fetching: bool = True, progress: Progress = None) -> tuple[str, Any]:
    """("video" or "image", the source, read if it had to be). The content of a file decides. Raises HippoError."""
    if isinstance(source, (Clip, Video)) or is_frames(source):
        return "video", source
    if isinstance(source, Image.Image) or is_array(source):
        return "image", source
    if isinstance(source, str) and source.startswith("data:video/jpeg"):
        return "video", source
    if not is_file(source):
        raise BadRequest(f"a {type(source).__name__} is neither a video nor an image", FORMS)
    file = stored(source, fetching, progress)
    return ("image" if is_picture(file) else "video"), file if isinstance(file, Stored) else source


def _is_metadata(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "frames_indices")


def _sought(file: Any) -> Stored:
    """An open file that can be sought; what comes from a pipe is kept in a temporary file."""
    name = file.name if isinstance(getattr(file, "name", None), str) else "the video"
    name = "standard input" if name == "<stdin>" else Path(name).name
    if isinstance(file, io.TextIOBase):
        raise BadRequest(f"{name} is open as text", 'open it with mode "rb"')
    try:
        if not file.readable():
            raise BadRequest(f"{name} is not open for reading", 'open it with mode "rb"')
        if not file.seekable():
            kept = temporary(name)
            copyfileobj(file, kept.file)
            return kept
        file.seek(0)
    except (OSError, ValueError, AttributeError) as error:
        raise MediaError(f"{name} cannot be read ({error})", "open it again") from None
    return Stored(file, name)


def _data(url: str) -> bytes:
    try:
        with urlopen(url) as content:
            data: bytes = content.read()
            return data
    except (OSError, ValueError) as error:
        cause = f"a data: URL cannot be decoded ({' '.join(str(error).split())[:80]})"
        raise MediaError(cause, "write data:video/mp4;base64,...") from None
