"""The page at `/`: its files, and what it shows of an answer beside the text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from hippo.checkpoints import BUNDLED
from hippo.engine import Stream
from hippo.inputs import Messages, parts_of
from hippo.report.pictures import cells_of, shown
from hippo.text import TextStream
from hippo.trace import Kept
from hippo.video import Video

_HERE = Path(__file__).parent
_SAMPLE = BUNDLED / "demo.mp4"
_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".mp4": "video/mp4",
}
_FILES = {path.name: path for path in _HERE.iterdir() if path.suffix in _TYPES} | {"sample.mp4": _SAMPLE}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_LONGER, _QUALITY = 320, 75  # of a frame's picture: its longer side in pixels, and JPEG's quality
_MOST = 128  # frames of one video


def routes() -> list[Route]:
    """The page and its files. No key is asked for: they hold nothing of the server's."""

    async def page(_: Request) -> FileResponse:
        return _sent(_HERE / "index.html")

    async def file(request: Request) -> FileResponse:
        if (path := _FILES.get(request.path_params["name"])) is None:
            raise HTTPException(404)
        return _sent(path)

    return [Route("/", page), Route("/page/{name}", file)]


def _sent(path: Path) -> FileResponse:
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)


class Account:
    """What `return_tokens` adds to the chunks of one answer, see docs/page.md. `on_read` belongs into its `Request`.
    tokenizer: of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._text, self._videos, self._shown = TextStream(tokenizer), list[Video](), list[dict[str, Any]]()
        self._tokens = self._spans = 0  # that were given

    def on_read(self, messages: Messages) -> None:
        """See `Request.on_read`."""
        self._videos = parts_of(messages, "video")

    def more(self, stream: Stream) -> dict[str, Any]:
        """Tokens and spans since the last call. The tokens' texts, joined, are the answer's."""
        tokens, spans = stream.tokens[self._tokens :], stream.timeline[self._spans :]
        self._tokens, self._spans = self._tokens + len(tokens), self._spans + len(spans)
        return {
            "tokens": [
                {"text": self._text.push([token.id]), "drafted": token.drafted, "seconds": round(token.seconds, 6)}
                for token in tokens
            ],
            "timeline": [span._asdict() for span in spans],
        }

    def draw(self, stream: Stream) -> None:
        """Make the pictures for `last`, which takes time."""
        self._shown, self._videos = shown_frames(self._videos, stream.output.kept), []

    def last(self, stream: Stream) -> dict[str, Any]:
        """What is left of both, and the frames that the models were given, with the cells that the draft saw."""
        account, tokens = self.more(stream), stream.tokens
        if rest := self._text.finish():  # bytes that never became a whole character
            account["tokens"].append({"text": rest, "drafted": False, "seconds": tokens[-1].seconds})
        return account | {"videos": self._shown}


def shown_frames(videos: Sequence[Video], kept: Kept | None) -> list[dict[str, Any]]:
    """For each video the rows and columns of a frame's tokens, and of each frame its time in seconds, a small picture
    as a data URL, and the kept cells, numbered row by row; None where there is no draft. Of a long video some frames
    are left out, evenly."""
    if kept is None or len(kept.grids) != len(videos):
        return [_video(video, range(len(video.frames)), 0, 0, None) for video in videos]
    listed, begin = [], 0
    for video, grid in zip(videos, kept.grids, strict=True):
        own = kept.indices[(kept.indices >= begin) & (kept.indices < begin + grid.tokens)] - begin
        begin += grid.tokens
        cells = cells_of(own.numpy(), grid).reshape(grid.frames, -1)
        listed.append(_video(video, shown(len(video.frames), grid.frames), grid.rows, grid.columns, cells))
    return listed


def _video(video: Video, steps: Sequence[int], rows: int, columns: int, cells: np.ndarray | None) -> dict[str, Any]:
    every = -(-len(steps) // _MOST)
    frames = [
        {
            "time": round(video.timestamps[steps[index]], 3),
            "image": _picture(video.frames[steps[index]]),
            "kept": None if cells is None else cells[index].nonzero()[0].tolist(),
        }
        for index in range(0, len(steps), every)
    ]
    return {"rows": rows, "columns": columns, "frames": frames}


def _picture(frame: np.ndarray) -> str:
    image, file = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((_LONGER, _LONGER))
    image.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
