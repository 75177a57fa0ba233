"""hippo chat: a conversation about videos."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hippo.cli import common
from hippo.errors import HippoError

if TYPE_CHECKING:
    from hippo.chat import Chat

_HELP = "/new begins again, /back takes the last question back, /quit ends"


def chat(
    videos: common.SourcesArgument,
    system: common.SystemOption = "",
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    drafter: common.DrafterOption = None,
    method: common.MethodOption = "hippo",
    keep_ratio: common.KeepOption = "auto",
    max_new_tokens: common.TokensOption = 256,
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    max_pixels: common.PixelsOption = None,
    max_video_tokens: common.VideoTokensOption = None,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    cache_memory: common.CacheOption = None,
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
) -> None:
    """Talk about a clip, or about several together. A further question reads only its own words.

    Each line of standard input is a question. /new begins again, /back takes the last question back, /quit ends.

    hippo chat clip.mp4
    """
    asked: dict[str, Any] = {
        "frames": frames,
        "fps": fps,
        "max_pixels": max_pixels,
        "max_video_tokens": max_video_tokens,
    }
    options = common.sampling_options({"method": method, "keep_ratio": keep_ratio, "max_new_tokens": max_new_tokens})
    common.check_clips([], frames, fps)
    memory = None if cache_memory is None else cache_memory << 20
    where = {
        "drafter": drafter,
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "attn_implementation": attn_implementation,
        "cache_memory": memory,
    }
    with common.loaded(target, draft, start_draft=method != "ar", **where) as llm:
        media = {name: value for name, value in asked.items() if value is not None}
        talk = llm.open(videos, system=system, **options, **media)
        if sys.stdin.isatty():
            common.stderr.print(_HELP, style="dim")
        while (line := _line()) not in (None, "/quit"):
            try:
                _act(talk, str(line))
            except HippoError as error:
                common.stderr.print(f"hippo: {error}", markup=False, soft_wrap=True)


def _line() -> str | None:
    """The next line of standard input; None at its end."""
    if sys.stdin.isatty():
        common.stderr.print("> ", end="")
    line = sys.stdin.readline()
    return line.strip() if line else None


def _act(talk: Chat, line: str) -> None:
    if line == "/new":
        talk.clear()
    elif line == "/back":
        talk.rewind()
    elif line.startswith("/"):
        common.stderr.print(_HELP, style="dim")
    elif line:
        stream = talk.stream(line)
        for piece in stream:
            common.say(piece)
        common.say("\n")
        stats = stream.output.stats
        common.warn(*stream.output.warnings)
        first = stats.seconds.total - stats.seconds.decode
        said = f"{first:.2f} s to the first token, {stats.seconds.total:.2f} s, {stats.cached_tokens} tokens cached"
        common.stderr.print(said, style="dim", highlight=False)
