"""HIPPO: the same words as your video-LLM, several times sooner.

>>> import hippo
>>> llm = hippo.load("tiny")
>>> llm.generate("clip.mp4", "What happens?").text
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hippo.errors import HippoError
    from hippo.llm import Output, Stream, VideoLLM, generate, load
    from hippo.report.stats import Stats
    from hippo.video import Video, read_video

__version__ = "0.1.0"
__all__ = ["HippoError", "Output", "Stats", "Stream", "Video", "VideoLLM", "generate", "load", "read_video"]

_HOMES = {"HippoError": "errors", "Stats": "report.stats", "Video": "video", "read_video": "video"}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and a command must be interruptible from its first one."""
    if name not in __all__:
        raise AttributeError(f"module 'hippo' has no attribute {name!r}")
    return getattr(import_module(f"hippo.{_HOMES.get(name, 'llm')}"), name)
