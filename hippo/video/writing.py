"""Writing a clip: frames to H.264."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np


def write_video(images: Iterable[np.ndarray], path: Path, rate: Fraction, size: tuple[int, int]) -> None:
    """Write images, each (H, W, 3) uint8 RGB, as H.264 at `rate` frames per second. size: (W, H), both even."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "preset": "veryfast"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
