"""One clip: the packets needed are read once; its timeline and the frames asked for come from them."""

from __future__ import annotations

import gc
import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from hippo.errors import MediaError, OutOfMemory
from hippo.system import available_memory, memory_limit
from hippo.video import torchcodec
from hippo.video.files import COPY_AGAIN, Media, check_file, open_container, video_stream
from hippo.video.sampling import DEFAULT_FRAMES, Sampling
from hippo.video.timeline import Timeline, build_timeline

HIDDEN_FRAME_CODECS = frozenset({"vp8"})  # their packets may hold frames that are never shown
TIME_TOLERANCE = 0.001  # seconds
HEADER_SLACK = 0.5  # seconds by which a header may promise more than there is
PACKET_SHARE = 1 / 16  # of the free memory, for the compressed packets of a clip
YOUNG_PACKETS = 5000  # no more than these are all in the collector's young generations
LONG = 60.0  # seconds; of longer clips with an index, only the packets around the wanted frames are read
INDEXED = ("mp4", "matroska")  # containers whose key frames are found without reading what is between them
REORDER = 17  # frames by which the order of decoding may differ from that of showing: H.264's most, and one
THREADED = 320 * 240  # pixels; of smaller frames, handing them to threads costs more than decoding them
UNREFERENCED = frozenset({"h264"})  # codecs in which no frame is made from one that is marked so; not in HEVC's layers
SPARSE = 8  # times as many frames as are wanted must be there, or reading all of them costs no more

Progress = Callable[[float], None]
Room = Callable[[tuple[int, ...]], np.ndarray]  # a shape -> an array of uint8


def private(shape: tuple[int, ...]) -> np.ndarray:
    """Memory of this process alone."""
    return np.empty(shape, np.uint8)


class Clip:
    """A clip whose packets have been read, once, whatever is then asked of it.

    path: the file. sampling: what will be asked; of a long clip only that part is read, by seeking to key frames. size:
    (width, height) of its frames in pixels, as its header declares them. trusted: whether every
    packet is one frame shown at the packet's own timestamp. errors: how many packets and frames turned out damaged.
    Making one raises MediaError if the file cannot be read or is not a video.
    """

    def __init__(self, path: Media, sampling: Sampling | None = None) -> None:
        self.path = path
        check_file(path)
        self._read(sampling)
        self.size: tuple[int, int] = self.stream.codec_context.width, self.stream.codec_context.height
        self.errors = 0

    def _read(self, sampling: Sampling | None) -> None:
        """Open the file and read its packets, or of a long clip those that the sampling needs."""
        self.sampling = sampling
        self.stamps: list[int | None] = []  # of the packets in the order stored, in ticks of the stream's time base
        self.keys: list[bool] = []
        self.hidden: list[bool] = []
        self._last_duration: int | None = None
        self._packets: list[Any] | None = []
        self._cut = False
        self._open()
        self.complete = not self._seeks()  # whether every packet is known, and not only those around the wanted frames
        if self.complete:
            self.trusted = self._demux(packets_of(self.container)) and self._is_consistent()
        if self.trusted:  # else without frame threads, which lose the good frames next to a damaged one
            decoder = self.stream.codec_context
            self.stream.thread_type = "AUTO" if decoder.width * decoder.height > THREADED else "NONE"
        self._timeline: Timeline | None = self._promised() if self.trusted else None

    def __del__(self) -> None:
        if container := self.__dict__.pop("container", None):
            container.close()
            packets = len(self.stamps)
            del container
            self.__dict__.clear()
            # PyAV's containers and streams refer to each other: without this the decoder's threads stay.
            gc.collect(1 if packets < YOUNG_PACKETS else 2)

    def timeline(self, progress: Progress = lambda done: None) -> Timeline:
        """When each frame is shown. A clip whose packets carry no times is decoded. Raises MediaError."""
        if self._timeline is None:
            stamps: list[int | None] = []
            for frame in self._every_frame(progress):
                stamps.append(frame.pts)
                self._last_duration = frame.duration
            if not stamps:
                raise MediaError(f"{self.path.name} has no frame that decodes", COPY_AGAIN)
            self._timeline = build_timeline(stamps, self.stream.time_base, self._last_duration, self._rate)
        return self._timeline

    def estimate(self, sampling: Sampling) -> int:
        """About how many frames a request takes, with nothing decoded. Raises BadRequest."""
        if not self._shown():
            return sampling.frames or 1
        return len(sampling.pick(self._timeline or self._promised(), self.path.name))

    def for_sampling(self, sampling: Sampling) -> Clip:
        """This clip, or the same file read again if the frames now wanted are not among its packets."""
        return self if self.complete or sampling == self.sampling else Clip(self.path, sampling)

    @property
    def frame_count(self) -> int:
        """How many frames the clip has; if only a part was read, as its header says."""
        timeline = self.timeline()
        return len(timeline.times) if self.complete else self.stream.frames or round(timeline.duration * self._rate)

    def decode(
        self, choose: Callable[[Timeline], list[int]], progress: Progress, room: Room = private
    ) -> tuple[np.ndarray, list[int]]:
        """Frames (F, H, W, 3) uint8 RGB, upright, and their positions in the timeline, as `choose` says.

        room: where they are put. Raises MediaError, or OutOfMemory if the frames do not fit.
        """
        if self.trusted:
            picks = choose(self.timeline())
            if (planned := self._planned(picks, progress, room)) is not None:
                return planned, picks
            if not self.complete:
                self._read(None)
                return self.decode(choose, progress, room)
            self.trusted, self._timeline = False, None
            self._open()  # for another decoder
        half = 0.5 if self._timeline is None else 0.0
        picks = choose(self.timeline(lambda done: progress(half * done)))
        slots = {index: slot for slot, index in enumerate(picks)}
        store = FrameStore(len(picks), self.path.name, room)
        for index, frame in enumerate(self._every_frame(lambda done: progress(half + (1 - half) * done))):
            if (slot := slots.pop(index, None)) is not None:
                store.put(slot, frame)
        if slots:
            raise MediaError(f"{self.path.name} changed while it was being read", "read it again")
        return store.frames, picks

    def decode_torchcodec(self, picks: list[int], progress: Progress) -> np.ndarray | str:
        """The same from torchcodec, for a trusted clip; or the reason why PyAV has to read it."""
        if not isinstance(self.path, Path):
            return "it has no path"
        shown = self._shown()
        expected = np.array([float((self.stamps[shown[i]] or 0) * self.stream.time_base) for i in (*picks, -1)])
        within = min(TIME_TOLERANCE, self.timeline().interval / 4)
        try:
            first = next(self._frames_of_runs([(0, 1)], {self.stamps[0]}, lambda done: None), None)
            if first is None or orientation(first) != (False, False, False):
                return "its first frame is rotated or damaged"
            frames, seconds = torchcodec.frames_at(self.path, self.stream.index, (expected + within).tolist(), progress)
        except Exception as error:  # its failures have no common type
            return torchcodec.first_line(error)
        return "its timestamps differ" if np.abs(seconds - expected).max() > TIME_TOLERANCE else frames

    def damage(self) -> list[str]:
        """Warnings about the parts that are missing or do not decode, once the clip was decoded."""
        reached, interval, promised = self.timeline().duration, self.timeline().interval, self._own
        if promised is None:
            short, promised = self._cut, self._whole
        else:
            short = reached + (interval / 2 if self._cut or self.errors else HEADER_SLACK) < promised
        if short:
            of = f" of {promised:.1f} s" if promised and f"{promised:.1f}" != f"{reached:.1f}" else ""
            return [f"{self.path.name} is damaged after {reached:.1f} s{of}: used the part that decodes"]
        return [f"{self.path.name} has damaged places: used the frames that decode"] if self.errors else []

    def _open(self) -> None:
        self.container = open_container(self.path)
        self.stream = video_stream(self.container, self.path.name)
        self._rate = self.stream.guessed_rate or self.stream.average_rate
        self._own, self._whole = declared_seconds(self.container, self.stream)

    def _seeks(self) -> bool:
        """Read only the packets around the wanted frames of a long clip. False, with the file opened afresh, if that is
        not possible or not worth it."""
        wanted, seconds = self.sampling, (self.container.duration or 0) / av.time_base
        indexed = any(name in self.container.format.name for name in INDEXED)
        if wanted is None or not indexed or not self._rate or seconds < LONG or (wanted.fps and not wanted.bounded):
            return False
        try:
            self.trusted = self._read_sparsely(wanted, seconds)
        except (av.FFmpegError, LookupError):
            self.trusted = False
        if not self.trusted:
            self._open()
        return self.trusted

    def _read_sparsely(self, wanted: Sampling, seconds: float) -> bool:
        begin, end, found = wanted.start, min(seconds, wanted.end or seconds), list[list[Any]]()
        for moment in (math.inf, 0.0, begin, end):  # the clip's end says how long it is
            self._read_around(moment, found)
        if wanted.fps or (wanted.frames or DEFAULT_FRAMES) * SPARSE > (end - begin) * self._rate:
            if not wanted.bounded:
                return False
            self._read_around(begin, found, end)
            return self._note(found)
        if not self._note(found):
            return False
        moments = wanted.moments(self._promised(), self.path.name)
        for moment in moments:
            self._read_around(moment, found)
        if not self._note(found):
            return False
        # Where a frame stays on screen so long that it is wanted twice, the frames beside it are needed as well.
        timeline, slack = self._promised(), TIME_TOLERANCE
        shown = [bisect_right(timeline.times, moment + min(slack, timeline.interval / 4)) - 1 for moment in moments]
        return wanted.pick(timeline, self.path.name) == shown

    def _read_around(self, moment: float, found: list[list[Any]], until: float | None = None) -> None:
        """Add the packets from the key frame at or before a moment to those shown next after it.

        moment: seconds after the first frame; inf is the last key frame, and on to the end of the file. until: the
        moment to read on to. Raises LookupError, or what FFmpeg fails with.
        """
        base, zero, last = float(self.stream.time_base), self.stream.start_time or 0, moment == math.inf
        place = zero + (self.stream.duration or 1 << 62 if last else math.floor(moment / base))
        stop = math.inf if last else zero + ((until or moment) + TIME_TOLERANCE + REORDER / self._rate) / base
        first, ours = None, iter(())
        for back in (0.0, 1.0, 10.0):  # seconds: a seek goes by the order of decoding, and may come out too late
            self.container.seek(max(zero, int(place - back / base)), stream=self.stream)
            ours = (each for each in packets_of(self.container) if each.stream_index == self.stream.index)
            first = next(ours, None)
            if first is not None and first.pts is not None and first.pts <= max(zero, place):
                break
        found.append([])
        for packet in chain([first], ours):
            if packet is None or packet.pts is None:
                raise LookupError("a packet without its time")
            found[-1].append(packet)
            if packet.dts is not None and packet.dts > stop:
                break

    def _note(self, found: list[list[Any]]) -> bool:
        """Take these packets as the clip's; whether they can be used as they are."""
        # In the order stored, each once. Matroska does not say when the first packets after a seek are decoded.
        packets = {packet.pts: packet for some in sorted(found, key=lambda some: some[0].pts) for packet in some}
        return (
            self._demux(iter(packets.values()))
            and self._packets is not None
            and self._is_consistent()
            and not self._cut
        )

    def _demux(self, packets: Iterator[Any]) -> bool:
        """Note every packet of the video; whether their timestamps are in order and none is damaged."""
        self.stamps, self.keys, self.hidden, self._packets = [], [], [], []
        self._last_duration, self._cut = None, False
        sound, room, end = True, PACKET_SHARE * min(available_memory(), memory_limit()), 0.0
        latest = decoding_time = -math.inf
        try:
            for packet in packets:
                pts, dts, length = packet.pts, packet.dts, packet.duration or 0
                if pts is not None:
                    base = packet.time_base
                    end = max(end, (pts + length) * base.numerator / base.denominator)
                if packet.stream_index != self.stream.index:
                    continue
                self._cut = packet.is_corrupt
                self.stamps.append(pts)
                self.keys.append(packet.is_keyframe)
                self.hidden.append(packet.is_discard)
                if pts is not None and not packet.is_discard and pts > latest:
                    latest, self._last_duration = pts, length
                sound = sound and not packet.is_corrupt and (dts is None or dts >= decoding_time)
                decoding_time = decoding_time if dts is None else dts
                room -= packet.size
                if room < 0:
                    self._packets = None  # a very large file is read from the disk again
                elif self._packets is not None:
                    self._packets.append(packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            self._cut = True
        self._cut |= bool(self._whole and end + HEADER_SLACK < self._whole)
        decoder = self.stream.codec_context
        # AVI has no presentation times, so those of frames that refer to later ones come shuffled.
        shuffled = self.container.format.name == "avi" and decoder.has_b_frames
        return sound and not shuffled and decoder.name not in HIDDEN_FRAME_CODECS

    def _is_consistent(self) -> bool:
        """Whether the timestamps can be used as they are and decoding can start at the first packet."""
        visible = [stamp for stamp, hidden in zip(self.stamps, self.hidden, strict=True) if not hidden]
        if not visible or None in visible or len(set(visible)) != len(visible) or not self.keys[0]:
            return False
        # Frames shown before the first key frame refer to frames that the clip does not hold.
        return self.hidden[0] or self.stamps[0] == min(stamp for stamp in visible if stamp is not None)

    def _shown(self) -> list[int]:
        """Positions of the packets that are shown and have a timestamp, in the order shown."""
        listed = enumerate(zip(self.stamps, self.hidden, strict=True))
        return [i for _, i in sorted((stamp, i) for i, (stamp, hidden) in listed if stamp is not None and not hidden)]

    def _promised(self) -> Timeline:
        """The timeline from the packets' timestamps."""
        stamps = [self.stamps[index] for index in self._shown()]
        return build_timeline(stamps, self.stream.time_base, self._last_duration, self._rate)

    def _stored(self) -> Iterator[Any]:
        """The video's packets once more."""
        if self._packets is not None:
            yield from self._packets
            return
        with open_container(self.path) as container:
            yield from (packet for packet in packets_of(container) if packet.stream_index == self.stream.index)

    def _planned(self, picks: list[int], progress: Progress, room: Room = private) -> np.ndarray | None:
        """Decode only around the chosen frames; None if the decoder contradicts the packets."""
        shown = self._shown()
        # The last frame is decoded too: it shows whether the clip decodes up to its end.
        last = shown[picks[-1] if self.sampling is not None and self.sampling.end is not None else -1]
        runs = needed_runs(self.stamps, self.keys, [*(shown[index] for index in picks), last])
        missing = {self.stamps[shown[index]]: slot for slot, index in enumerate(picks)}
        needed = {*missing, self.stamps[last]}
        store = FrameStore(len(picks), self.path.name, room)
        latest: int | None = None
        try:
            for frame in self._frames_of_runs(runs, needed, progress):
                if frame.pts is None or (latest is not None and frame.pts <= latest) or frame.is_corrupt:
                    return None
                latest = frame.pts
                if (slot := missing.pop(latest, None)) is not None:
                    store.put(slot, frame)
        except av.FFmpegError:
            return None
        return None if missing or latest is None or latest < (self.stamps[last] or 0) else store.frames

    def _frames_of_runs(
        self, runs: Sequence[tuple[int, int]], needed: Set[int | None], progress: Progress
    ) -> Iterator[Any]:
        """The decoded frames of runs of packets, each run started afresh; not those that neither are needed nor have
        others made from them. needed: timestamps."""
        decoder, fed, total = self.stream.codec_context, 0, sum(stop - start for start, stop in runs)
        decoder.flush_buffers()
        skips = decoder.name in UNREFERENCED
        waiting = iter(runs)
        start, stop = next(waiting)
        for index, packet in enumerate(self._stored()):
            if index < start:
                continue
            if skips:
                decoder.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
            yield from decoder.decode(packet)
            fed += 1
            progress(fed / total)
            if index == stop - 1:
                yield from decoder.decode(None)
                decoder.flush_buffers()
                start, stop = next(waiting, (-1, -1))
                if stop < 0:
                    return

    def _every_frame(self, progress: Progress) -> Iterator[Any]:
        """Every frame that decodes, passing over what does not."""
        decoder, errors, last_is_corrupt = self.stream.codec_context, 0, False
        decoder.flush_buffers()
        for index, packet in enumerate(chain(self._stored(), [None])):
            try:
                frames = decoder.decode(packet)
            except MemoryError:
                raise
            except av.FFmpegError:
                errors += 1
                continue
            for frame in frames:
                errors += frame.is_corrupt
                last_is_corrupt = frame.is_corrupt
                yield frame
            progress(min(1.0, (index + 1) / max(1, len(self.stamps))))
        self.errors = errors
        self._cut |= last_is_corrupt


class FrameStore:
    """Room for the frames kept from one clip, taken when the first one shows their size."""

    def __init__(self, count: int, name: str, room: Room = private) -> None:
        self.count, self.name, self._room = count, name, room
        self._reformatter = VideoReformatter()  # each has threads of its own: one for all frames
        self._turns: dict[int, tuple[bool, bool, bool]] = {}  # by the rotation, which does not say what is mirrored
        self.size: tuple[int, int] | None = None
        self.frames = np.empty((0, 0, 0, 3), np.uint8)

    def put(self, slot: int, frame: Any) -> None:
        """Keep a decoded frame as upright RGB; a frame of another size is scaled to the first one's.

        Raises MediaError if it cannot be converted to RGB, OutOfMemory if the frames do not fit.
        """
        first = self.size is None
        width, height = self.size = self.size or (frame.width, frame.height)
        if first and (needed := self.count * width * height * 3) > available_memory():
            cause = f"{self.count} frames of {self.name} need {needed / 1e9:.1f} GB of memory"
            raise OutOfMemory(cause, "ask for fewer frames or a lower fps")
        try:
            image = self._reformatter.reformat(frame, width, height, "rgb24").to_ndarray()
        except MemoryError:
            raise
        except (av.FFmpegError, OSError, ValueError) as error:
            cause = f"{self.name} has frames of the pixel format {frame.format.name}, which cannot be shown as RGB"
            raise MediaError(cause, "convert it to H.264 first") from error
        # A frame whose side data was asked for refers to itself, and stays until the clip is closed.
        if (turn := self._turns.get(frame.rotation)) is None:
            turn = self._turns[frame.rotation] = orientation(frame)
        image = upright(image, turn)
        if first:
            self.frames = self._room((self.count, *image.shape))
        self.frames[slot] = image


def packets_of(container: Any) -> Iterator[Any]:
    """The packets of all streams that hold something."""
    for _ in range(100):
        try:
            yield from (packet for packet in container.demux() if packet.size)
            return
        except IndexError:  # PyAV does not list a stream that begins in the middle; asked again, it goes on
            continue


def declared_seconds(container: Any, stream: Any) -> tuple[float | None, float | None]:
    """Seconds that a header promises of the video, and of all streams; None where FFmpeg would only guess."""
    name = container.format.name
    if name == "avi":
        return (float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else None), None
    if "mp4" in name:
        # Without a frame count (a fragmented mp4) the duration is that of what was found.
        return (float(stream.duration * stream.time_base) if stream.frames and stream.duration else None), None
    if not container.duration or not (name == "flv" or "matroska" in name):
        return None, None
    # The durations are the moments at which things end, wherever they start.
    whole = container.duration / av.time_base
    start = float((stream.start_time or 0) * stream.time_base)
    own = clock_seconds(stream.metadata.get("DURATION", ""))
    # A tag beyond the container's duration was copied from a longer clip this one was cut from.
    if not own or own >= whole + 1:
        own = whole if len(container.streams) == 1 else None
    return own and own - start, whole


def clock_seconds(text: str) -> float | None:
    """Seconds of an "HH:MM:SS.fraction" text, None if it is not one."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def needed_runs(stamps: Sequence[int | None], keys: Sequence[bool], wanted: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of packets, as (start, stop), that must be decoded to get the frames of the packets at `wanted`.

    Each starts at a key frame; the groups of pictures between them need not be decoded.
    """
    starts = [index for index, key in enumerate(keys) if key]
    runs: list[tuple[int, int]] = []
    for packet in sorted(wanted):
        group = bisect_right(starts, packet) - 1
        # A frame shown before its group's key frame also refers to the group before.
        if group and (stamps[packet] or 0) < (stamps[starts[group]] or 0):
            group -= 1
        start = starts[group]
        while runs and start <= runs[-1][1]:
            start = min(start, runs.pop()[0])
        runs.append((start, packet + 1))
    return runs


def upright(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """An image (H, W, 3) turned as `orientation` says, (W, H, 3) if by a quarter."""
    transpose, flip_x, flip_y = turn
    image = image.transpose(1, 0, 2) if transpose else image
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Whether to transpose a frame, then mirror it left to right, then top to bottom."""
    if "DISPLAYMATRIX" not in frame.side_data:
        return False, False, False
    # Read row by row, the matrix takes (x, y) to (a x + c y, b x + d y).
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(frame.side_data["DISPLAYMATRIX"]))
    return (False, a < 0, d < 0) if abs(a) >= abs(b) else (True, c < 0, b < 0)
