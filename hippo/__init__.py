"""HIPPO: the same words as your video-LLM, several times faster.

>>> import hippo
>>> llm = hippo.load("tiny")
>>> llm.generate("clip.mp4", "What happens?").text
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hippo.chat import Chat
    from hippo.custom import custom_generate
    from hippo.engine import Engine, Stream
    from hippo.errors import BadRequest, Busy, CheckpointError, DraftLost, HippoError, MediaError, OutOfMemory
    from hippo.llm import VideoLLM, generate, load
    from hippo.params import SamplingParams
    from hippo.request import Output, Request
    from hippo.stats import Stats
    from hippo.trace import TokenInfo
    from hippo.video import Video, read_video

__version__ = "0.2.0"

_HOMES = {
    "errors": ("BadRequest", "Busy", "CheckpointError", "DraftLost", "HippoError", "MediaError", "OutOfMemory"),
    "chat": ("Chat",),
    "custom": ("custom_generate",),
    "engine": ("Engine", "Stream"),
    "llm": ("VideoLLM", "generate", "load"),
    "params": ("SamplingParams",),
    "request": ("Output", "Request"),
    "stats": ("Stats",),
    "trace": ("TokenInfo",),
    "video": ("Video", "read_video"),
}
__all__ = [
    "BadRequest",
    "Busy",
    "Chat",
    "CheckpointError",
    "DraftLost",
    "Engine",
    "HippoError",
    "MediaError",
    "OutOfMemory",
    "Output",
    "Request",
    "SamplingParams",
    "Stats",
    "Stream",
    "TokenInfo",
    "Video",
    "VideoLLM",
    "custom_generate",
    "generate",
    "load",
    "read_video",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and a command must be interruptible from its first one."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"hippo.{module}"), name)
    raise AttributeError(f"module 'hippo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
