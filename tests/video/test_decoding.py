"""Decoding only the chosen frames, and which backend does it."""

import sys
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest

from hippo.errors import HippoError
from hippo.video import available_backends, decoding, read_video
from hippo.video.decoding import FrameStore, Request, decode_pyav
from hippo.video.packets import scan_packets

from .clips import frame_number, numbered_image, numbers, slow_decode, turn, write_clip


def quiet(done: float) -> None:
    """A progress report nobody reads."""


@pytest.fixture(autouse=True)
def forget_torchcodec():
    decoding.torchcodec_problem.cache_clear()
    yield
    decoding.torchcodec_problem.cache_clear()


OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0"}


@pytest.mark.parametrize(
    "name, options",
    [
        ("open.mkv", OPEN_GROUPS),
        ("b.mpg", {"bf": "2", "g": "9"}),
        ("short.mp4", {"g": "7"}),
        ("vp9.webm", {"g": "8"}),
    ],
)
def test_skipping_groups_gives_the_same_frames_as_decoding_all(tmp_path, name, options):
    path = write_clip(tmp_path / name, count=100, rate=25, options=options)
    scan = scan_packets(path)
    assert scan.trusted
    every, _ = slow_decode(path)
    for count in (1, 3, 7, 40):
        decoded = decoding._decode_planned(scan, Request(count, None), quiet)
        assert decoded is not None
        assert np.array_equal(decoded.frames, np.stack([every[index] for index in decoded.picks]))


def test_only_the_needed_packets_are_decoded(tmp_path):
    scan = scan_packets(
        write_clip(tmp_path / "clip.mp4", count=100, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    )
    runs = [(0, 2), (50, 53)]
    frames = list(decoding._frames_of_runs(scan, runs, quiet))
    assert [frame_number(frame.to_ndarray(format="rgb24")) for frame in frames] == [0, 1, 50, 51, 52]


def test_packets_that_lie_are_found_out(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", count=20)
    scan = scan_packets(path)
    scan.stamps[-1] = 99_999
    assert decoding._decode_planned(scan, Request(4, None), quiet) is None
    assert numbers(decode_pyav(scan, Request(4, None), quiet).frames) == [2, 7, 12, 17]


def test_frames_of_another_size_are_scaled_to_the_first():
    store = FrameStore(2, "clip.mp4")
    store.put(0, av.VideoFrame.from_ndarray(numbered_image(5), format="rgb24"))
    store.put(1, av.VideoFrame.from_ndarray(numbered_image(9).repeat(2, 0).repeat(2, 1), format="rgb24"))
    assert numbers(store.frames()) == [5, 9]


def test_more_frames_than_fit_in_memory_are_refused():
    store = FrameStore(2**40, "clip.mp4")
    with pytest.raises(HippoError, match=r"need .* GB of memory: ask for fewer"):
        store.put(0, av.VideoFrame(64, 48, "rgb24"))


def test_backends_are_listed():
    backends = available_backends()
    assert backends["pyav"] == av.__version__
    assert set(backends) == {"pyav", "torchcodec"}


class FakeDecoder:
    """torchcodec's VideoDecoder as far as hippo uses it, decoding with PyAV."""

    shift = 0.0

    def __init__(self, source, **options):
        if isinstance(source, bytes):
            self.images, self.times = [np.zeros((32, 32, 3), np.uint8)], [0.0]
        else:
            self.images, self.times = slow_decode(source)
            assert options["dimension_order"] == "NHWC" and options["seek_mode"] == "exact"

    def get_frame_at(self, index):
        return SimpleNamespace(pts_seconds=self.shift + self.times[index])

    def get_frames_at(self, indices):
        seconds = np.array([self.shift + self.times[index] for index in indices])
        images = np.stack([self.images[index] for index in indices])
        return SimpleNamespace(data=SimpleNamespace(numpy=lambda: images), pts_seconds=seconds)


@pytest.fixture
def install(monkeypatch):
    """Installs a fake torchcodec whose VideoDecoder is the given class."""

    def put(decoder):
        package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
        package.__version__ = "9.9"
        package.__spec__ = SimpleNamespace(name="torchcodec")
        decoders.VideoDecoder = decoder
        monkeypatch.setitem(sys.modules, "torchcodec", package)
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)

    return put


def test_torchcodec_is_used_where_it_works(tmp_path, install):
    install(FakeDecoder)
    path = write_clip(tmp_path / "clip.mp4", count=40)
    fast, plain = read_video(path, frames=20), read_video(path, frames=20, backend="pyav")
    assert available_backends()["torchcodec"] == "9.9"
    assert (fast.backend, plain.backend) == ("torchcodec", "pyav")
    assert np.array_equal(fast.frames, plain.frames)
    assert (fast.timestamps, fast.duration) == (plain.timestamps, plain.duration)


def test_torchcodec_with_other_timestamps_is_not_believed(tmp_path, install):
    install(type("Shifted", (FakeDecoder,), {"shift": 0.1}))
    path = write_clip(tmp_path / "clip.mp4")
    assert read_video(path, frames=3).backend == "pyav"
    demanded = read_video(path, frames=3, backend="torchcodec")
    assert demanded.backend == "pyav"
    assert demanded.warnings == ("torchcodec did not read clip.mp4 (its timestamps differ): used PyAV",)


def test_torchcodec_is_not_given_turned_clips(tmp_path, install):
    install(FakeDecoder)
    path = turn(write_clip(tmp_path / "clip.mp4"), 0, 1, -1, 0)
    video = read_video(path, frames=3)
    assert (video.backend, video.frames.shape) == ("pyav", (3, 64, 48, 3))


def test_torchcodec_that_cannot_load_is_passed_over(tmp_path, install):
    class Broken:
        def __init__(self, *args, **options):
            raise RuntimeError("no FFmpeg here\nand a long list")

    install(Broken)
    path = write_clip(tmp_path / "clip.mp4", count=4)
    assert available_backends()["torchcodec"] == "not usable: RuntimeError: no FFmpeg here"
    assert read_video(path).backend == "pyav"
    with pytest.raises(HippoError, match=r"torchcodec cannot be used .*no FFmpeg here.*: use backend"):
        read_video(path, backend="torchcodec")


def test_torchcodec_that_is_missing_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    assert available_backends()["torchcodec"] == "not usable: it is not installed"
    assert read_video(write_clip(tmp_path / "clip.mp4", count=4)).backend == "pyav"


def test_real_torchcodec_agrees_with_pyav(tmp_path):
    if "not usable" in available_backends()["torchcodec"]:
        pytest.skip("torchcodec does not work here")
    path = write_clip(tmp_path / "clip.mp4", count=40, options={"g": "10"}, sound=1.0)
    fast, plain = read_video(path, frames=4), read_video(path, frames=4, backend="pyav")
    assert fast.backend == "torchcodec"
    assert fast.timestamps == plain.timestamps
    assert np.abs(fast.frames.astype(int) - plain.frames).mean() < 2
