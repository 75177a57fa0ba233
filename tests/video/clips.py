"""Small clips whose frames carry their own number, and ways to damage them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, BITS = 64, 48, 8
STRIPE = WIDTH // BITS
CODECS = {".webm": "libvpx-vp9", ".avi": "mpeg4", ".mpg": "mpeg2video", ".vob": "mpeg2video"}
SOUND_CODECS = {".webm": "libopus", ".avi": "mp2", ".mpg": "mp2"}
REAL_CLIPS = Path(__file__).parents[2].parent / "shared" / "data"


def numbered_image(number: int) -> np.ndarray:
    """An image (48, 64, 3) whose eight stripes are the bits of a number, the highest at the left."""
    bits = [255 * (number >> bit & 1) for bit in reversed(range(BITS))]
    row = np.repeat(np.array(bits, np.uint8), STRIPE)
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def frame_number(image: np.ndarray) -> int:
    """The number written by `numbered_image`."""
    middles = image[HEIGHT // 2, STRIPE // 2 :: STRIPE].mean(axis=1) > 127
    return int("".join("1" if bit else "0" for bit in middles), 2)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of several images."""
    return [frame_number(frame) for frame in frames]


def write_clip(
    path: Path,
    *,
    count: int = 30,
    rate: int = 10,
    ticks: Sequence[int] | None = None,
    codec: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: float = 0.0,
    images: Sequence[np.ndarray] | None = None,
    pixels: str | None = None,
) -> Path:
    """A clip of numbered frames.

    Args:
        ticks: each frame's time in hundredths of a second; evenly at `rate` if None.
        sound: seconds of silence to add as a sound track.
        images: the frames, in place of numbered ones.
        pixels: FFmpeg's name of the pixel format.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        codec = codec or CODECS.get(path.suffix, "libx264")
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = (HEIGHT, WIDTH) if images is None else images[0].shape[:2]
        stream.pix_fmt = pixels or ("rgb8" if codec == "gif" else "yuv420p")
        base = Fraction(1, rate) if ticks is None else Fraction(1, 100)
        stream.time_base = stream.codec_context.time_base = base
        silence = container.add_stream(SOUND_CODECS.get(path.suffix, "aac"), rate=48000) if sound else None
        images = images or [numbered_image(number) for number in range(count)]
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number if ticks is None else ticks[number], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if silence is not None:
            _write_silence(container, silence, sound)
    return path


def write_sound(path: Path, seconds: float = 0.5) -> Path:
    """A file with a silent sound track and nothing else."""
    with av.open(str(path), "w") as container:
        codec = "libmp3lame" if path.suffix == ".mp3" else "aac"
        _write_silence(container, container.add_stream(codec, rate=48000), seconds)
    return path


def add_cover(path: Path, picture: bytes) -> Path:
    """Put a JPEG picture in front of an mp3 as its cover."""
    body = b"\x00image/jpeg\x00\x03\x00" + picture
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\x00\x00" + body
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\x00\x00" + size + frame + path.read_bytes())
    return path


def _write_silence(container: Any, stream: Any, seconds: float) -> None:
    sample = stream.codec_context.format.name
    dtype = {"flt": np.float32, "s32": np.int32, "s16": np.int16}[sample.rstrip("p")]
    for start in range(0, int(seconds * 48000), 960):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), dtype), format=sample, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def cut(path: Path, part: float) -> Path:
    """Cut a file off after a part of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def turn(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into an mp4's track header: players show (x, y) at (ax + cy, bx + dy)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16
    one = 1 << 16
    data[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def slow_decode(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """All frames and their times in seconds after the first, decoded the plain way."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        decoded: list[Any] = list(container.decode(stream))
        times = [float((frame.pts - decoded[0].pts) * stream.time_base) for frame in decoded]
        return [frame.to_ndarray(format="rgb24") for frame in decoded], times
