"""Reading video clips: true timestamps, uniform sampling, damaged files. Writing them."""

from hippo.video.clip import Clip
from hippo.video.decoder import Decoder, OpenClip, in_this_process
from hippo.video.files import Stored, is_picture
from hippo.video.frames import as_frames
from hippo.video.reader import Video, read_video, sample
from hippo.video.sampling import Sampling, check_request
from hippo.video.torchcodec import available_backends
from hippo.video.writing import write_video

__all__ = [
    "Clip",
    "Decoder",
    "OpenClip",
    "Sampling",
    "Stored",
    "Video",
    "as_frames",
    "available_backends",
    "check_request",
    "in_this_process",
    "is_picture",
    "read_video",
    "sample",
    "write_video",
]
