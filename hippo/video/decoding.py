"""The second pass over a clip: decoding it and keeping only the chosen frames."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import av
import numpy as np

from hippo.errors import HippoError
from hippo.video.packets import Scan, needed_runs, open_container, video_stream
from hippo.video.sampling import pick, thin
from hippo.video.timeline import Timeline, build_timeline

BATCH = 16
TIME_TOLERANCE = 0.001
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Request:
    """How many frames are asked for: see `sampling.pick`. most: if they are more, they are thinned out to so many."""

    frames: int | None
    fps: float | None
    most: int | None = None

    def picks(self, timeline: Timeline) -> list[int]:
        """The positions (ascending) of the frames to keep."""
        picks = pick(timeline, self.frames, self.fps)
        return [picks[index] for index in thin(len(picks), self.most)]


@dataclass(frozen=True)
class Decoded:
    """The frames kept from a clip.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB, upright.
        picks: position of each kept frame among all of the clip's frames.
        timeline: all of the clip's frames that decode.
        errors: how many packets were refused by the decoder.
        lost_end: seconds between the last frame that decodes and the last one there are packets of.
    """

    frames: np.ndarray
    picks: list[int]
    timeline: Timeline
    errors: int = 0
    lost_end: float = 0.0


def available_backends() -> dict[str, str]:
    """Version of each decoding backend, or "not usable: " and the reason, by backend name."""
    reason = torchcodec_problem()
    if reason:
        return {"pyav": av.__version__, "torchcodec": f"not usable: {reason}"}
    import torchcodec

    return {"pyav": av.__version__, "torchcodec": str(getattr(torchcodec, "__version__", "unknown version"))}


@lru_cache(maxsize=1)
def torchcodec_problem() -> str:
    """Why torchcodec cannot be used, in one line; empty if it can."""
    if find_spec("torchcodec") is None:
        return "it is not installed"
    try:
        from torchcodec.decoders import VideoDecoder

        # It may import and yet find no FFmpeg libraries, which only decoding shows.
        VideoDecoder(_sample_clip(), device="cpu").get_frame_at(0)
    except Exception as error:  # it raises whatever its native libraries fail with
        return _first_line(error)
    return ""


def _sample_clip() -> bytes:
    """A grey clip of one frame, as bytes of an AVI file."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _first_line(error: Exception) -> str:
    """A failure's kind and the first sentence of its message."""
    kind = type(error).__name__
    lines = str(error).strip().splitlines()
    return f"{kind}: {lines[0].split('. ')[0].rstrip('. ')}" if lines else kind


def decode_torchcodec(scan: Scan, request: Request, progress: Progress) -> Decoded | str:
    """Decode the chosen frames of a clip with torchcodec, on the CPU.

    The frames are chosen from the same timeline as with PyAV and their timestamps compared with it,
    so the result is the same or none.

    Returns:
        The frames, or the reason why PyAV has to read this clip.
    """
    if not scan.trusted:
        return "the clip is damaged or its timestamps need repair"
    if not _is_plain(scan):
        return "its first frame is rotated or damaged"
    timeline = scan.timeline()
    picks = request.picks(timeline)
    try:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(
            str(scan.path.absolute()),
            stream_index=scan.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=0,
            device="cpu",
            seek_mode="exact",
        )
        frames, seconds = _torchcodec_frames(decoder, picks, progress)
        # The last frame shows whether the clip decodes up to its end.
        last = decoder.get_frame_at(len(timeline.times) - 1).pts_seconds
    except Exception as error:  # its failures have no common type
        return _first_line(error)
    # Times since the first frame would not tell frames before an edit list's start from those after it.
    shown = scan.shown()
    stamps = [scan.stamps[shown[index]] or 0 for index in (*picks, -1)]
    expected = np.array([float(stamp * scan.time_base) for stamp in stamps])
    if np.abs(np.array([*seconds, last]) - expected).max() > TIME_TOLERANCE:
        return "its timestamps differ"
    return Decoded(frames, picks, timeline)


def _torchcodec_frames(decoder: Any, picks: list[int], progress: Progress) -> tuple[np.ndarray, list[float]]:
    """Frames (F, H, W, 3) uint8 and their timestamps in seconds, as torchcodec has them."""
    frames: np.ndarray | None = None
    seconds: list[float] = []
    for start in range(0, len(picks), BATCH):
        batch = decoder.get_frames_at(indices=picks[start : start + BATCH])
        data = batch.data.numpy()
        if frames is None:
            frames = np.empty((len(picks), *data.shape[1:]), np.uint8)
        frames[start : start + len(data)] = data
        seconds += batch.pts_seconds.tolist()
        progress(len(seconds) / len(picks))
    assert frames is not None, "a timeline has at least one frame"
    return frames, seconds


def _is_plain(scan: Scan) -> bool:
    """Whether the clip's first frame decodes and is stored upright, neither turned nor mirrored."""
    with open_container(scan.path) as container:
        try:
            frame = next(iter(container.decode(container.streams[scan.stream])), None)
        except av.FFmpegError:
            return False
        return frame is not None and _orientation(frame) == (False, False, False)


def decode_pyav(scan: Scan, request: Request, progress: Progress) -> Decoded:
    """Decode the chosen frames of a clip with PyAV.

    Raises:
        HippoError: no frame decodes, or the frames asked for do not fit in memory.
    """
    if scan.trusted:
        decoded = _decode_planned(scan, request, progress)
        if decoded is not None:
            return decoded
    return _decode_carefully(scan, request, progress)


def _decode_planned(scan: Scan, request: Request, progress: Progress) -> Decoded | None:
    """Trust the packets' timestamps and decode only around the chosen frames.

    Returns:
        None if the decoder contradicts the packets.
    """
    timeline = scan.timeline()
    shown = scan.shown()
    picks = request.picks(timeline)
    # The last frame is decoded too: it shows whether the clip decodes up to its end.
    runs = needed_runs(scan, [*(shown[index] for index in picks), shown[-1]])
    missing = {scan.stamps[shown[index]]: slot for slot, index in enumerate(picks)}
    end = scan.stamps[shown[-1]]
    store = FrameStore(len(picks), scan.path.name)
    latest: int | None = None
    try:
        for frame in _frames_of_runs(scan, runs, progress):
            if frame.pts is None or (latest is not None and frame.pts <= latest):
                return None
            latest = frame.pts
            slot = missing.pop(frame.pts, None)
            if slot is not None:
                store.put(slot, frame)
    except av.FFmpegError:
        return None
    if missing or latest != end:
        return None
    return Decoded(store.frames(), picks, timeline)


def _frames_of_runs(scan: Scan, runs: Sequence[tuple[int, int]], progress: Progress) -> Iterator[Any]:
    """The decoded frames of runs of packets, each run started afresh."""
    total = sum(stop - start for start, stop in runs)
    fed = 0
    waiting = iter(runs)
    start, stop = next(waiting)
    with open_container(scan.path) as container:
        stream: Any = container.streams[scan.stream]
        stream.thread_type = "AUTO"
        decoder = stream.codec_context
        packets = (packet for packet in container.demux(stream) if packet.size)
        for index, packet in enumerate(packets):
            if index < start:
                continue
            yield from decoder.decode(packet)
            fed += 1
            progress(fed / total)
            if index == stop - 1:
                yield from decoder.decode(None)
                decoder.flush_buffers()
                start, stop = next(waiting, (-1, -1))
                if stop < 0:
                    return


def _decode_carefully(scan: Scan, request: Request, progress: Progress) -> Decoded:
    """Decode everything twice: once to learn which frames there are, once to keep the chosen ones."""
    stamps: list[int | None] = []
    duration: int | None = None
    source = _AllFrames(scan, lambda done: progress(done / 2))
    for frame in source:
        stamps.append(frame.pts)
        duration = frame.duration
    if not stamps:
        raise HippoError(f"{scan.path.name} has no frame that decodes", "copy or download it again in full")
    timeline = build_timeline(stamps, scan.time_base, duration, scan.rate)
    picks = request.picks(timeline)
    slots = {index: slot for slot, index in enumerate(picks)}
    store = FrameStore(len(picks), scan.path.name)
    for index, frame in enumerate(_AllFrames(scan, lambda done: progress(0.5 + done / 2))):
        slot = slots.pop(index, None)
        if slot is not None:
            store.put(slot, frame)
    if slots:
        raise HippoError(f"{scan.path.name} changed while it was being read", "read it again")
    return Decoded(store.frames(), picks, timeline, source.errors, _lost_end(scan, stamps))


def _lost_end(scan: Scan, decoded: Sequence[int | None]) -> float:
    """Seconds from the last decoded frame to the last packet shown; 0 where timestamps do not tell."""
    shown = scan.shown()
    known = [stamp for stamp in decoded if stamp is not None]
    last = scan.stamps[shown[-1]] if shown else None
    if last is None or not known:
        return 0.0
    return max(0.0, float((last - max(known)) * scan.time_base))


class _AllFrames:
    """Iterating decodes a whole clip, passing over what does not decode.

    Attributes:
        errors: packets refused so far.
    """

    def __init__(self, scan: Scan, progress: Progress) -> None:
        self.scan = scan
        self.progress = progress
        self.errors = 0

    def __iter__(self) -> Iterator[Any]:
        with open_container(self.scan.path) as container:
            stream = video_stream(container, self.scan.path.name)
            # Frame threads report an error late and lose the good frames next to the bad one.
            stream.thread_type = "SLICE"
            for index, packet in enumerate(self._packets(container, stream)):
                yield from self._decode(stream.codec_context, packet)
                self.progress(min(1.0, (index + 1) / len(self.scan.stamps)))
            yield from self._decode(stream.codec_context, None)

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        try:
            yield from (packet for packet in container.demux(stream) if packet.size)
        except av.FFmpegError:
            self.errors += 1

    def _decode(self, decoder: Any, packet: Any) -> list[Any]:
        try:
            return decoder.decode(packet)
        except av.FFmpegError:
            self.errors += 1
            return []


class FrameStore:
    """Room for the frames kept from one clip, taken when the first one shows their size."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self.name = name
        self.size: tuple[int, int] | None = None
        self.array: np.ndarray | None = None

    def put(self, slot: int, frame: Any) -> None:
        """Keep a decoded frame as upright RGB; a frame of another size is scaled to the first one's.

        Raises:
            HippoError: the frames do not fit in memory.
        """
        width, height = self.size = self.size or (frame.width, frame.height)
        image = upright(frame.reformat(width=width, height=height, format="rgb24").to_ndarray(), frame)
        if self.array is None:
            self.array = self._room(image.shape)
        self.array[slot] = image

    def _room(self, shape: tuple[int, ...]) -> np.ndarray:
        try:
            return np.empty((self.count, *shape), np.uint8)
        except MemoryError as error:
            gigabytes = self.count * shape[0] * shape[1] * shape[2] / 1e9
            cause = f"{self.count} frames of {self.name} need {gigabytes:.1f} GB of memory"
            raise HippoError(cause, "ask for fewer frames or a lower fps") from error

    def frames(self) -> np.ndarray:
        """The frames, (F, H, W, 3) uint8, once every slot is filled."""
        assert self.array is not None, "a timeline has at least one frame"
        return self.array


def upright(image: np.ndarray, frame: Any) -> np.ndarray:
    """An image (H, W, 3) turned the way a frame's display matrix says, (W, H, 3) if by a quarter."""
    transpose, flip_x, flip_y = _orientation(frame)
    if transpose:
        image = image.transpose(1, 0, 2)
    if flip_x:
        image = image[:, ::-1]
    if flip_y:
        image = image[::-1]
    return image


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Whether to transpose a frame, then mirror it left to right, then top to bottom."""
    if "DISPLAYMATRIX" not in frame.side_data:
        return False, False, False
    # Read row by row, the matrix takes (x, y) to (a x + c y, b x + d y).
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(frame.side_data["DISPLAYMATRIX"]))
    if abs(a) >= abs(b):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
