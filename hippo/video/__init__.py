"""Reading video clips: true timestamps, uniform sampling, damaged files."""

from hippo.video.decoding import available_backends
from hippo.video.reader import Video, read_video

__all__ = ["Video", "available_backends", "read_video"]
