"""Which videos and images a client may have the server read, at what cost, and fetching them without being led
elsewhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpx2

from hippo.errors import unknown
from hippo.inputs.options import VIDEO_KEYS
from hippo.serve.errors import ApiError

MAX_REDIRECTS = 5
_TEXT = ("text/", "application/json", "application/xhtml+xml", "application/xml")
_NAT64 = ip_network("64:ff9b::/96")
_TYPES = ("text", "video", "video_url", "image", "image_url")
_PLACES = ("video", "video_url", "image", "image_url", "url", "path")


@dataclass(frozen=True)
class MediaPolicy:
    """What may be read.

    Args:
        folder: local files in it may be, as file:// URLs; None: none.
        domains: hosts that may be asked, and no others; a host that is named may also have a private address. Empty:
            every host with a public address.
        max_bytes: of one video or image.
        seconds: for fetching one.
        most: videos and images of one request.
        memory, decode_seconds: for decoding, see `hippo.video.process.Workers`.
        tokens: of all videos of one request, see `hippo.request.Request`; None: what memory and the context hold.
    """

    folder: Path | None = None
    domains: tuple[str, ...] = ()
    max_bytes: int = 64 << 20
    seconds: float = 30.0
    most: int = 16
    memory: int = 2 << 30
    decode_seconds: float = 120.0
    tokens: int | None = None

    async def resolved(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """A copy in which every video and image is content or a file that may be read, and the paths of these files.

        A part's `{"url": ..., "fps": ...}` becomes keys of the part. Raises ApiError.
        """
        contents = [content for one in messages if isinstance(content := one.get("content"), list)]
        count = sum(isinstance(part, Mapping) and part.get("type") != "text" for one in contents for part in one)
        if count > self.most:
            raise ApiError(400, f"there are {count} videos and images: this server takes {self.most} in one request")
        turns, hidden = [], list[str]()
        for message in messages:
            turn = dict(message)
            if isinstance(content := turn.get("content"), list):
                turn["content"] = [await self._part(part, hidden) for part in content]
            turns.append(turn)
        return turns, tuple(hidden)

    async def _part(self, part: Any, hidden: list[str]) -> Any:
        if not isinstance(part, Mapping):
            return part  # refused with its place where messages are checked
        if (kind := part.get("type")) not in _TYPES:
            raise ApiError(400, str(unknown("type of a part", kind, _TYPES)), "messages")
        for name in ("keys", "options"):  # of messages that the library has opened
            if name in part:
                raise ApiError(400, str(unknown("key of a part", name, VIDEO_KEYS)), "messages")
        part = dict(part)
        for place in [place for place in _PLACES if place in part]:
            value = part[place]
            if isinstance(value, Mapping):
                for name in value:
                    if name not in ("url", "detail", *VIDEO_KEYS):
                        raise ApiError(400, str(unknown(f"key of {place}", name, VIDEO_KEYS)), place)
                part |= {name: one for name, one in value.items() if name in VIDEO_KEYS}
                value = value.get("url")
            if not isinstance(value, str):
                raise ApiError(400, f"{place} is no URL: give a string", place)
            part[place] = content = await self.opened(value)
            if isinstance(content, Path):
                hidden.append(str(content))
        return part

    async def opened(self, url: str) -> str | bytes | Path:
        """What a URL names: the data: URL itself, fetched content, or a local file. Raises ApiError."""
        scheme, colon, _ = url.partition(":")
        match scheme.lower() if colon else "":
            case "data":
                if len(url) * 3 // 4 > self.max_bytes + 1024:
                    raise self._too_large()
                return url
            case "file":
                return self._local(url)
            case "http" | "https":
                try:
                    async with asyncio.timeout(self.seconds):
                        return await self._fetched(url)
                except TimeoutError:
                    raise ApiError(400, f"a URL takes more than {self.seconds:g} s to fetch") from None
        raise ApiError(400, "a video or image is named by an https:, http:, data: or file: URL")

    def _local(self, url: str) -> Path:
        refused = ApiError(400, "this local file may not be read: the server allows those in one folder, or none")
        if self.folder is None:
            raise refused
        try:
            parts, folder = urlsplit(url), self.folder.resolve(strict=True)
            path = Path(unquote(parts.path)).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise refused from None
        if parts.netloc not in ("", "localhost") or not path.is_relative_to(folder) or not path.is_file():
            raise refused
        if path.stat().st_size > self.max_bytes:
            raise self._too_large()
        return path

    async def _fetched(self, url: str) -> bytes:
        # An environment's proxy would connect by name, whatever was checked.
        async with httpx2.AsyncClient(trust_env=False, follow_redirects=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                try:
                    content = await self._answer(client, url)
                except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
                    raise ApiError(400, f"a URL cannot be fetched ({type(error).__name__})") from None
                if isinstance(content, bytes):
                    return content
                url = content
        raise ApiError(400, f"a URL redirects more than {MAX_REDIRECTS} times")

    async def _answer(self, client: httpx2.AsyncClient, url: str) -> bytes | str:
        """The content of a URL, or the URL it redirects to."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
            raise ApiError(400, "a URL names no host that may be asked")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await self._address(host, port)
        # The connection goes to the address that was checked, so that a second answer of the name server is never used.
        pinned = httpx2.URL(url).copy_with(host=address)
        headers = {"Host": parts.netloc, "Accept-Encoding": "identity"}
        async with client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": host}) as response:
            if response.is_redirect:
                return urljoin(url, response.headers.get("location", ""))
            if response.status_code != 200:
                raise ApiError(400, f"a URL answers {response.status_code}")
            kind = response.headers.get("content-type", "").strip().lower()
            if kind.startswith(_TEXT):
                raise ApiError(400, f"a URL is no video but {kind.partition(';')[0]}")
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > self.max_bytes:
                    raise self._too_large()
            return bytes(content)

    async def _address(self, host: str, port: int) -> str:
        """An address of a host that may be asked. Raises ApiError, the same for what is forbidden and what is not
        there, so that a client learns nothing of the server's network."""
        refused = ApiError(400, "a URL names no host that may be asked")
        if self.domains and host not in self.domains:
            raise refused
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise refused from None
        addresses = [str(address[4][0]) for address in found]
        if not addresses or not (host in self.domains or all(is_public(address) for address in addresses)):
            raise refused
        return addresses[0]

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a video or image has more than {self.max_bytes / (1 << 20):.4g} MiB")


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, also where a version 4 address is written inside one of
    version 6."""
    ip = ip_address(address.partition("%")[0])
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in _inside(ip))


def _inside(ip: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    if isinstance(ip, IPv4Address):
        return [ip]
    if ip.ipv4_mapped is not None:
        return [ip.ipv4_mapped]
    if ip in _NAT64:
        return [IPv4Address(int(ip) & 0xFFFFFFFF)]
    return [ip, *([] if ip.sixtofour is None else [ip.sixtofour]), *(ip.teredo or ())]
