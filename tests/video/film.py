"""A long film made in seconds: a few groups of pictures are encoded, and their packets are written again and again.

python -m tests.video.film film.mp4 --seconds 7200
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE, GROUP, DISTINCT = 25, 250, 8  # frames per second, frames of a group, groups that differ


def image(number: int, width: int, height: int) -> np.ndarray:
    """An image (H, W, 3) of a texture that moves, with the bits of a number in its 16 upper left squares."""
    squares = np.random.default_rng(7).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    texture = squares.repeat(8, 0).repeat(8, 1)
    picture = np.roll(texture, (number % 97, 3 * number % 311), (0, 1)).copy()
    for bit in range(16):
        picture[:16, 16 * bit : 16 * bit + 16] = 255 * (number >> bit & 1)
    return picture


def frame_number(picture: np.ndarray) -> int:
    """The number that `image` wrote."""
    return sum(int(picture[4:12, 16 * bit + 4 : 16 * bit + 12].mean() > 127) << bit for bit in range(16))


def write_film(path: Path, seconds: float, width: int = 640, height: int = 360, group: int = GROUP) -> Path:
    """H.264 with frames that refer to later ones; the frame at `t` seconds has the number 25 t modulo 8 groups."""
    distinct = DISTINCT * group
    part = path.with_name(f"part-{path.stem}.mp4")
    with av.open(str(part), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        x264 = f"keyint={group}:min-keyint={group}:scenecut=0:open-gop=0:bframes=2"
        stream.options = {"preset": "veryfast", "crf": "30", "x264-params": x264}
        for number in range(distinct):
            frame = av.VideoFrame.from_ndarray(image(number, width, height), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(part)) as source, av.open(str(path), "w") as film:
        stream = source.streams.video[0]
        out: Any = film.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        times = [(packet.pts, packet.dts) for packet in packets]
        span, written = round(distinct / RATE / stream.time_base), 0
        while written < seconds * RATE:
            for packet, (pts, dts) in zip(packets, times, strict=True):
                if written >= seconds * RATE:
                    break
                shift = written // distinct * span
                packet.stream, packet.pts, packet.dts = out, pts + shift, dts + shift
                film.mux(packet)
                packet.time_base = stream.time_base
                written += 1
    part.unlink()
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=float, default=7200)
    given = parser.parse_args()
    write_film(given.path, given.seconds)
