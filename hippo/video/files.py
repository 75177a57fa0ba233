"""From a path to an open clip, or to one line that says why it is none."""

from __future__ import annotations

import io
import stat
import weakref
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from PIL import Image, ImageSequence, UnidentifiedImageError

from hippo.errors import MediaError

for _plugin in ("WebP", "Tiff", "Jpeg2K", "Avif"):  # else Pillow imports all that it has, to look into the first file
    if find_spec(f"PIL.{_plugin}ImagePlugin") is not None:
        import_module(f"PIL.{_plugin}ImagePlugin")
_AVIF = ("AVIF",) * (find_spec("PIL.AvifImagePlugin") is not None)  # from Pillow 11.3 on
PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", *_AVIF)
ANIMATED = ("GIF", "PNG", "WEBP", *_AVIF)  # the formats whose several pictures are one after another in time
TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})  # FFmpeg draws text as pictures of a terminal
MAX_PIXELS = 8192 * 8192  # of one frame; FFmpeg allocates what a header declares, whatever the file holds
LONGEST = 255  # characters of a name that a message repeats
COPY_AGAIN = "copy or download it again in full"


@dataclass(frozen=True)
class Stored:
    """Bytes of a video or an image that have no path. file: can be sought; it is read from its start. name: for errors.

    Closing the file is left to whoever opened it.
    """

    file: BinaryIO
    name: str

    def opened(self) -> BinaryIO:
        """The file at its start."""
        self.file.seek(0)
        return self.file


Media = Path | Stored


def temporary(name: str) -> Stored:
    """An empty temporary file, gone as soon as nothing needs it."""
    made = Stored(cast(BinaryIO, TemporaryFile()), name)  # noqa: SIM115 (it outlives this call)
    weakref.finalize(made, made.file.close)
    return made


def check_file(path: Media) -> None:
    """Raise MediaError if a path is missing, a folder, special, empty or may not be read."""
    if isinstance(path, Stored):
        if not path.opened().read(1):
            raise MediaError(f"{path.name} is empty", COPY_AGAIN)
        return
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            hint = "name one video file in it, or give its pictures as a list in a part of type video"
            raise MediaError(f"{path} is a folder, not a video", hint)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{path} is not an ordinary file", "save the video to a file first")
        if status.st_size == 0:
            raise MediaError(f"{path} is empty", COPY_AGAIN)
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MediaError(f"{path} does not exist", "check the path") from error
    except PermissionError as error:
        raise MediaError(f"{path} may not be read by this user", "change its permissions") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason, name = getattr(error, "strerror", None) or str(error), str(path)
        if len(name) > LONGEST:  # content in place of a path
            raise MediaError(f"{name[:20]!r}... is no path ({reason})", "give bytes, or a data: URL") from error
        raise MediaError(f"{path} cannot be read ({reason})", "check the disk and the path") from error


def is_picture(path: Media) -> bool:
    """Whether a file holds a still picture (jpg, png, webp and their like), by its content. Raises MediaError."""
    check_file(path)
    try:
        with Image.open(readable(path), formats=PICTURES) as image:  # FFmpeg takes milliseconds to look into a clip
            return not is_animated(image)
    except UnidentifiedImageError:
        return False
    except Exception:  # damaged pictures fail in many ways, and the reader explains how
        return True


def readable(path: Media) -> Path | BinaryIO:
    """What libraries open: the path, or the file at its start."""
    return path.opened() if isinstance(path, Stored) else path


def is_animated(image: Image.Image) -> bool:
    """Whether an image is a clip: the pages of a TIFF and the views of a JPEG are not."""
    return image.format in ANIMATED and getattr(image, "n_frames", 1) > 1


def require_size(name: str, width: int, height: int) -> None:
    """Refuse frames that are too large to be decoded. Raises MediaError."""
    if width * height > MAX_PIXELS:
        raise MediaError(f"{name} declares frames of {width}x{height}", "scale it to at most 8192x8192 first")


# PyAV before 18 frees options of streams that are found while it probes, as in MPEG and FLV files, and crashes.
_PROBING = {"max_pixels": str(MAX_PIXELS)} if int(av.__version__.partition(".")[0]) >= 18 else None


def open_container(path: Media) -> InputContainer:
    """The opened clip; close it after use. Raises MediaError if it is not a video."""
    # The prefix keeps a colon in the name from being read as a protocol; the whitelist keeps a playlist from the net,
    # and one that came as bytes from this machine's files.
    source: Any = _animation(path) or (path.opened() if isinstance(path, Stored) else f"file:{path}")
    allowed = {"protocol_whitelist": "file" if isinstance(path, Path) else "none"}
    try:
        return av.open(source, metadata_errors="replace", options=_PROBING, container_options=allowed)
    except MemoryError:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        if _begin(path)[4:] == b"ftyp":
            raise MediaError(f"{path.name} is cut off and its index is lost", COPY_AGAIN) from error
        hint = "give a video file such as mp4, mkv, webm, avi or mpg"
        raise MediaError(f"{path.name} is not a video, or is damaged from the start", hint) from error


def video_stream(container: InputContainer, name: str) -> Any:
    """The main video stream of a clip. Raises MediaError for text, pictures, sound and unknown codecs."""
    format_name = container.format.name
    if format_name in TEXT_FORMATS:
        raise MediaError(f"{name} is not a video but text", "give a video file")
    if format_name == "image2" or format_name.endswith("_pipe"):
        raise MediaError(f"{name} is a picture, not a video", "give a video file")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        what = "has sound but no video" if container.streams.audio else "has no video in it"
        raise MediaError(f"{name} {what}", "give a video file")
    best = container.streams.best("video")
    stream: Any = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise MediaError(f"{name} uses a video codec that is not known here", "convert it to H.264 first")
    require_size(name, stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _begin(path: Media) -> bytes:
    """The first 8 bytes."""
    if isinstance(path, Stored):
        return path.opened().read(8)
    with path.open("rb") as file:
        return file.read(8)


def _animation(path: Media) -> io.BytesIO | None:
    """An animated WebP, which FFmpeg does not read, as a lossless clip in memory; None for all other files."""
    try:
        with Image.open(readable(path), formats=ANIMATED) as image:
            require_size(path.name, *image.size)
            return _lossless(image) if image.format == "WEBP" and is_animated(image) else None
    except (MediaError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path.name} declares frames that are too large", "scale it first") from error
    except UnidentifiedImageError:
        return None
    except Exception as error:  # damaged pictures fail in many ways
        if _begin(path)[:4] != b"RIFF":
            return None
        raise MediaError(f"{path.name} is a damaged animation", COPY_AGAIN) from error


def _lossless(image: Image.Image) -> io.BytesIO:
    file, time, tick = io.BytesIO(), 0, Fraction(1, 1000)
    with av.open(file, "w", format="mov") as container:
        stream: Any = container.add_stream("png", rate=1000)
        stream.width, stream.height, stream.pix_fmt = *image.size, "rgb24"
        stream.codec_context.thread_count = 1  # or packets would come later than their frames
        for picture in ImageSequence.Iterator(image):
            frame = av.VideoFrame.from_image(picture.convert("RGB"))
            frame.pts, frame.time_base = time, tick
            (packet,) = stream.encode(frame)
            packet.duration = max(1, picture.info.get("duration", 100))
            time += packet.duration
            container.mux(packet)
    file.seek(0)
    return file
