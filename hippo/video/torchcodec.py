"""Decoding with torchcodec, where it is installed and finds its FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

BATCH = 16


def available_backends() -> dict[str, str]:
    """Version of each decoding backend, or "not usable: " and the reason, by backend name."""
    if reason := problem():
        return {"pyav": av.__version__, "torchcodec": f"not usable: {reason}"}
    import torchcodec

    return {"pyav": av.__version__, "torchcodec": str(getattr(torchcodec, "__version__", "unknown version"))}


@lru_cache(maxsize=1)
def problem() -> str:
    """Why torchcodec cannot be used, in one line; empty if it can."""
    if find_spec("torchcodec") is None:
        return "it is not installed"
    try:
        from torchcodec.decoders import VideoDecoder

        # It may import and yet find no FFmpeg libraries, which only decoding shows.
        VideoDecoder(_sample_clip(), device="cpu").get_frame_at(0)
    except Exception as error:  # it raises whatever its native libraries fail with
        return first_line(error)
    return ""


def frames_at(
    path: Path, stream: int, seconds: Sequence[float], progress: Callable[[float], None]
) -> tuple[np.ndarray, list[float]]:
    """The frames on screen at all but the last of some moments, (F, H, W, 3) uint8, and the timestamps at all of them.

    Raises whatever torchcodec fails with.
    """
    from torchcodec.decoders import VideoDecoder

    options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 0, "device": "cpu"}
    # Approximate: the clip's timestamps are known already, so that it need not be scanned once more.
    decoder = VideoDecoder(str(path.absolute()), stream_index=stream, seek_mode="approximate", **options)
    *wanted, last = seconds
    frames, stamps = np.empty(0, np.uint8), list[float]()
    for start in range(0, len(wanted), BATCH):
        batch = decoder.get_frames_played_at(wanted[start : start + BATCH])
        data = batch.data.numpy()
        if not start:
            frames = np.empty((len(wanted), *data.shape[1:]), np.uint8)
        frames[start : start + BATCH] = data
        stamps += batch.pts_seconds.tolist()
        progress(len(stamps) / len(wanted))
    return frames, [*stamps, decoder.get_frame_played_at(last).pts_seconds]


def first_line(error: Exception) -> str:
    """A failure's kind and the first sentence of its message."""
    kind = type(error).__name__
    lines = str(error).strip().splitlines()
    return f"{kind}: {lines[0].split('. ')[0].rstrip('. ')}" if lines else kind


def _sample_clip() -> bytes:
    """A grey clip of one frame, as bytes of an AVI file."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()
