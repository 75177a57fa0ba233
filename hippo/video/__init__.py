"""Reading video clips: true timestamps, uniform sampling, damaged files. Writing them."""

from hippo.video.clip import Clip
from hippo.video.files import is_picture
from hippo.video.reader import Video, read_video
from hippo.video.sampling import check_request
from hippo.video.torchcodec import available_backends
from hippo.video.writing import write_video

__all__ = ["Clip", "Video", "available_backends", "check_request", "is_picture", "read_video", "write_video"]
