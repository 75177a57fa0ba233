"""The first, cheap pass over a clip: its packets' timestamps, nothing decoded."""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from PIL import Image, UnidentifiedImageError

from hippo.errors import HippoError
from hippo.video.timeline import Timeline, build_timeline
from hippo.video.truncation import has_mp4_header, is_cut_off

# VP8 packets may hold frames that are never shown, so packets are not frames there.
HIDDEN_FRAME_CODECS = frozenset({"vp8"})
PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")
# FFmpeg draws text files as pictures of a terminal.
TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})
COPY_AGAIN = "copy or download it again in full"


@dataclass
class Scan:
    """What a clip's packets say, in the order they are stored.

    Attributes:
        path: the file.
        stream: index of the video stream in the file.
        format: FFmpeg's name of the container format, such as "mov,mp4,m4a,3gp,3g2,mj2".
        time_base: seconds per tick of the timestamps.
        rate: frames per second the container claims, if it does.
        declared: seconds the container's header promises, if it does.
        declared_own: whether that promise is about the video alone and not the longest of several streams.
        cut_off: whether the file ends before its container says it should.
        trusted: whether every packet is one frame shown at the packet's own timestamp.
        stamps: presentation time of each video packet in ticks, None if it has none.
        keys: whether each packet is a key frame.
        hidden: whether each packet is marked as not to be shown.
        last_duration: ticks the last frame shown lasts, if known.
    """

    path: Path
    stream: int
    format: str
    time_base: Fraction
    rate: Fraction | None
    declared: float | None
    declared_own: bool
    cut_off: bool
    trusted: bool = True
    stamps: list[int | None] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    last_duration: int | None = None

    def shown(self) -> list[int]:
        """Positions of the packets that are shown and carry a timestamp, in the order shown."""
        timed = [
            (stamp, index)
            for index, (stamp, hidden) in enumerate(zip(self.stamps, self.hidden, strict=True))
            if stamp is not None and not hidden
        ]
        return [index for _, index in sorted(timed)]

    def timeline(self) -> Timeline:
        """The clip's timeline as the packets tell it; right only if the scan is trusted."""
        stamps = [self.stamps[index] for index in self.shown()]
        return build_timeline(stamps, self.time_base, self.last_duration, self.rate)


def check_file(path: Path) -> None:
    """Refuse a path that cannot be a readable file with something in it.

    Raises:
        HippoError: the path is missing, a folder, special, empty or may not be read.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise HippoError(f"{path} is a folder, not a video", "name one video file in it")
        if not stat.S_ISREG(status.st_mode):
            raise HippoError(f"{path} is not an ordinary file", "save the video to a file first")
        if status.st_size == 0:
            raise HippoError(f"{path} is empty", COPY_AGAIN)
        with path.open("rb") as file:
            file.read(1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise HippoError(f"{path} does not exist", "check the path") from error
    except PermissionError as error:
        raise HippoError(f"{path} may not be read by this user", "change its permissions") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise HippoError(f"{path} cannot be read ({reason})", "check the disk and the path") from error


def is_picture(path: Path) -> bool:
    """Whether a file holds a still picture (jpg, png, webp and their like), by its content.

    Raises:
        HippoError: the file cannot be read.
    """
    check_file(path)
    try:
        # Not FFmpeg, which takes milliseconds to look into a clip.
        Image.open(path, formats=PICTURES).close()
    except UnidentifiedImageError:
        return False
    except Exception:  # damaged pictures fail in many ways, and whoever reads it says how
        return True
    return True


def _is_picture(container: InputContainer) -> bool:
    name = container.format.name
    return name == "image2" or name.endswith("_pipe")


def open_container(path: Path) -> InputContainer:
    """The opened clip; close it after use.

    Raises:
        HippoError: FFmpeg does not know the format, or an mp4 has lost its index.
    """
    try:
        # The prefix keeps a colon in the name from being read as a protocol; the whitelist keeps a
        # playlist from reaching the network.
        return av.open(f"file:{path}", metadata_errors="replace", container_options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        if has_mp4_header(path):
            raise HippoError(f"{path.name} is cut off and its index is lost", COPY_AGAIN) from error
        cause = f"{path.name} is not a video, or is damaged from the start"
        raise HippoError(cause, "give a video file such as mp4, mkv, webm, avi or mpg") from error


def video_stream(container: InputContainer, name: str) -> Any:
    """The main video stream of a clip, its decoder ready.

    Raises:
        HippoError: the file is text or a picture, has no video, or needs a decoder that is not there.
    """
    if container.format.name in TEXT_FORMATS:
        raise HippoError(f"{name} is not a video but text", "give a video file")
    if _is_picture(container):
        raise HippoError(f"{name} is a picture, not a video", "give a video file")
    covers = Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        what = "has sound but no video" if container.streams.audio else "has no video in it"
        raise HippoError(f"{name} {what}", "give a video file")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise HippoError(f"{name} uses a video codec that is not known here", "convert it to H.264 first")
    return stream


def scan_packets(path: Path) -> Scan:
    """Read the timestamps of a clip's video packets.

    Raises:
        HippoError: the file is not a video (see `open_container` and `video_stream`).
    """
    with open_container(path) as container:
        stream = video_stream(container, path.name)
        declared, declared_own = _declared_seconds(container, stream)
        scan = Scan(
            path=path,
            stream=stream.index,
            format=container.format.name,
            time_base=stream.time_base,
            rate=stream.guessed_rate or stream.average_rate,
            declared=declared,
            declared_own=declared_own,
            cut_off=is_cut_off(path),
        )
        _collect(container, stream, scan)
        reorders = "avi" in scan.format and bool(stream.codec_context.has_b_frames)
        hides = stream.codec_context.name in HIDDEN_FRAME_CODECS
    scan.trusted = scan.trusted and not (scan.cut_off or reorders or hides) and _consistent(scan)
    return scan


def _declared_seconds(container: InputContainer, stream: Any) -> tuple[float | None, bool]:
    """Seconds a container's header promises, None where FFmpeg would only guess; if of the video alone."""
    format_name = container.format.name
    whole = container.duration / av.time_base if container.duration else None
    if "mp4" in format_name or format_name == "avi":
        # Without a frame count (a fragmented mp4) the duration is that of what was found.
        known = stream.frames and stream.duration
        return (float(stream.duration * stream.time_base), format_name == "avi") if known else (None, False)
    if "matroska" not in format_name or whole is None:
        return None, False
    # Matroska's durations are the moments at which things end, wherever they start.
    start = float((stream.start_time or 0) * stream.time_base)
    own = _clock_seconds(stream.metadata.get("DURATION", ""))
    # A tag beyond the container's duration was copied from a longer clip this one was cut from.
    if own and own < whole + 1:
        return own - start, True
    return whole - start, len(container.streams) == 1


def _clock_seconds(text: str) -> float | None:
    """Seconds of an "HH:MM:SS.fraction" text, None if it is not one."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _collect(container: InputContainer, stream: Any, scan: Scan) -> None:
    """Fill in a scan from the packets, noting a file that ends in an error or in half a packet."""
    latest: int | None = None
    decoding_time: int | None = None
    corrupt = False
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            corrupt = packet.is_corrupt
            scan.stamps.append(packet.pts)
            scan.keys.append(packet.is_keyframe)
            scan.hidden.append(packet.is_discard)
            if packet.pts is not None and not packet.is_discard and (latest is None or packet.pts > latest):
                latest, scan.last_duration = packet.pts, packet.duration
            backwards = packet.dts is not None and decoding_time is not None and packet.dts < decoding_time
            decoding_time = decoding_time if packet.dts is None else packet.dts
            scan.trusted = scan.trusted and not (corrupt or backwards)
    except av.FFmpegError:
        corrupt = True
    scan.cut_off = scan.cut_off or corrupt


def _consistent(scan: Scan) -> bool:
    """Whether the timestamps can be used as they are and decoding can start at the first packet."""
    visible = [stamp for stamp, hidden in zip(scan.stamps, scan.hidden, strict=True) if not hidden]
    stamps = [stamp for stamp in visible if stamp is not None]
    if not stamps or len(stamps) != len(visible) or len(set(stamps)) != len(stamps) or not scan.keys[0]:
        return False
    # Frames shown before the first key frame refer to frames the clip does not hold.
    first = scan.stamps[0]
    return scan.hidden[0] or first == min(stamps)


def needed_runs(scan: Scan, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of packets, as (start, stop), that must be decoded to get some packets' frames.

    Each starts at a key frame; the groups of pictures between them need not be decoded.

    Args:
        scan: a trusted scan.
        wanted: positions of the packets whose frames are wanted.
    """
    keys = [index for index, key in enumerate(scan.keys) if key]
    runs: list[tuple[int, int]] = []
    for packet in sorted(wanted):
        group = bisect_right(keys, packet) - 1
        # A frame shown before its group's key frame also refers to the group before.
        if group and _shown_before(scan, packet, keys[group]):
            group -= 1
        start = keys[group]
        while runs and start <= runs[-1][1]:
            start = min(start, runs.pop()[0])
        runs.append((start, packet + 1))
    return runs


def _shown_before(scan: Scan, packet: int, key: int) -> bool:
    early, late = scan.stamps[packet], scan.stamps[key]
    return early is None or late is None or early < late
