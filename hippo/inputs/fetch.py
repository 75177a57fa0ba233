"""Fetching a video or an image by its URL, within limits of size and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from hippo.errors import MediaError
from hippo.video.files import Stored, temporary

MAX_BYTES = 2 << 30
CONNECT_SECONDS, SILENT_SECONDS, MAX_SECONDS = 10.0, 20.0, 600.0  # for the connection, between two pieces, for all
MAX_REDIRECTS = 5
_TEXT = ("text/html", "application/json", "application/xhtml+xml")


def fetch(url: str, progress: Callable[[float], None] | None = None) -> Stored:
    """What an http:// or https:// URL holds, in a temporary file that is gone when it is closed.

    progress: called with the fraction that is there, where the server says how much there will be. Raises MediaError.
    """
    # The import takes tenths of a second, and most requests have files.
    import httpx2

    name, began = name_of(url), time.monotonic()
    limits = httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
    stored = temporary(name)
    file = stored.file
    try:
        with (
            httpx2.Client(follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=limits) as client,
            client.stream("GET", url) as response,
        ):
            _require_media(response, url)
            total = int(response.headers.get("content-length", 0))
            _require_room(total, name)
            for piece in response.iter_bytes():
                file.write(piece)
                _require_room(file.tell(), name)
                if time.monotonic() - began > MAX_SECONDS:
                    raise MediaError(f"{name} takes more than {MAX_SECONDS:g} s to fetch", "download it first")
                if progress is not None and total:
                    progress(min(1.0, file.tell() / total))
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise MediaError(f"{url} cannot be fetched ({_reason(error)})", "check the URL and the connection") from None
    return stored


def name_of(url: str) -> str:
    """What to call a URL's file: its last part."""
    return unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]) or url


def _require_media(response: Any, url: str) -> None:
    if response.status_code != 200:
        cause = f"{url} answers {response.status_code} {response.reason_phrase}".rstrip()
        raise MediaError(cause, "check the URL")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _TEXT:
        raise MediaError(f"{url} is no video but {kind}", "give the URL of the file itself")


def _require_room(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise MediaError(f"{name} has more than {MAX_BYTES >> 20} MiB", "download it first")


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
