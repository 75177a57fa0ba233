"""torchcodec: used where it works and agrees with the clip's timestamps."""

import sys
from bisect import bisect_right
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest

from hippo.errors import BadRequest
from hippo.video import available_backends, read_video, torchcodec

from .clips import slow_decode, turn, write_clip


@pytest.fixture(autouse=True)
def forget_torchcodec():
    torchcodec.problem.cache_clear()
    yield
    torchcodec.problem.cache_clear()


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
            assert options["dimension_order"] == "NHWC" and options["seek_mode"] == "approximate"

    def get_frame_at(self, index):
        return SimpleNamespace(pts_seconds=self.shift + self.times[index])

    def get_frame_played_at(self, second):
        return self.get_frame_at(bisect_right(self.times, second) - 1)

    def get_frames_played_at(self, seconds):
        indices = [bisect_right(self.times, second) - 1 for second in seconds]
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
    with pytest.raises(BadRequest, match=r"torchcodec cannot be used .*no FFmpeg here.*: use backend"):
        read_video(path, backend="torchcodec")


@pytest.mark.parametrize("failure", ["ImportError", "OSError", "RuntimeError"])
def test_torchcodec_that_does_not_import_is_one_line(tmp_path, monkeypatch, failure):
    package = tmp_path / "torchcodec"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "decoders.py").write_text(f"raise {failure}('libcudart.so.13 is not there. Read on:\\nmany lines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)  # and out again after the test
        del sys.modules[name]
    path = write_clip(tmp_path / "clip.mp4", count=4)
    assert available_backends()["torchcodec"] == f"not usable: {failure}: libcudart.so.13 is not there"
    video = read_video(path)
    assert (video.backend, video.warnings) == ("pyav", ())
    with pytest.raises(
        BadRequest, match=rf"torchcodec cannot be used \({failure}: libcudart.* backend pyav or auto"
    ) as error:
        read_video(path, backend="torchcodec")
    assert "\n" not in str(error.value)


def test_torchcodec_that_is_missing_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(torchcodec, "find_spec", lambda name: None)
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
