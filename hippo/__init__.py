"""HIPPO: the same words as your video-LLM, several times sooner.

>>> import hippo
>>> llm = hippo.load("tiny")
>>> llm.generate("clip.mp4", "What happens?").text
"""

from hippo.errors import HippoError
from hippo.llm import Output, VideoLLM, generate, load
from hippo.report.stats import Stats
from hippo.video import Video, read_video

__version__ = "0.1.0"
__all__ = ["HippoError", "Output", "Stats", "Video", "VideoLLM", "generate", "load", "read_video"]
