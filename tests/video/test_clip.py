"""A clip's packets, what they say, and decoding only what is needed."""

import gc
import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from hippo.errors import OutOfMemory
from hippo.video import Clip, Sampling, clip, read_video
from hippo.video.clip import FrameStore, clock_seconds, needed_runs

from .clips import cut, frame_number, numbered_image, numbers, slow_decode, write_clip

OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0"}


def quiet(done: float) -> None:
    """A progress report nobody reads."""


def keys(count: int, *at: int) -> list[bool]:
    return [index in at for index in range(count)]


def test_packets_tell_the_timeline_of_a_whole_clip(tmp_path):
    opened = Clip(write_clip(tmp_path / "clip.mp4", sound=6.0))
    assert opened.trusted and opened.size == (64, 48)
    assert len(opened.timeline().times) == 30 and opened.timeline().duration == pytest.approx(3.0)
    assert opened.estimate(Sampling(fps=2.0)) == 6


def test_clips_whose_packets_are_not_frames_are_not_trusted(tmp_path):
    assert not Clip(write_clip(tmp_path / "vp8.webm", codec="libvpx", count=5)).trusted
    assert not Clip(write_clip(tmp_path / "b.avi", codec="libx264")).trusted


def test_clip_that_starts_between_key_frames_is_not_trusted(tmp_path):
    path = write_clip(tmp_path / "clip.ts", codec="libx264", count=60, options={"g": "20"})
    assert Clip(path).trusted
    path.write_bytes(path.read_bytes()[188 * 20 :])
    assert not Clip(path).trusted


def test_timestamps_that_repeat_or_begin_before_the_first_key_frame_are_not_trusted(tmp_path):
    opened = Clip(write_clip(tmp_path / "clip.mkv", count=4))
    for stamps, consistent in (([0, 2, 1, 3], True), ([2, 0, 1, 3], False), ([0, 1, 1, 2], False)):
        opened.stamps, opened.keys = stamps, keys(4, 0)
        assert opened._is_consistent() == consistent


def test_stale_duration_tag_is_not_believed(tmp_path):
    path = write_clip(tmp_path / "clip.mkv")
    path.write_bytes(path.read_bytes().replace(b"00:00:03.0", b"00:20:00.0"))
    assert read_video(path).warnings == ()
    assert clock_seconds("00:20:00.5") == 1200.5 and clock_seconds("soon") is None


def test_cut_off_clip_with_sound_is_told_by_the_duration_of_both(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", count=120, rate=25, sound=4.8)
    data = path.read_bytes().replace(b"DURATION", b"NOTHING_")
    path.write_bytes(data)
    assert read_video(path).warnings == ()
    (warning,) = read_video(cut(path, 0.5)).warnings
    assert warning.startswith("clip.mkv is damaged after") and "of 4.8 s" in warning


def test_runs_start_at_key_frames_and_skip_what_is_not_needed():
    stamps, groups = list(range(12)), keys(12, 0, 4, 8)
    assert needed_runs(stamps, groups, [1, 10]) == [(0, 2), (8, 11)]
    assert needed_runs(stamps, groups, [5, 6]) == [(4, 7)]
    assert needed_runs(stamps, groups, [3, 4]) == [(0, 5)]


def test_frame_shown_before_its_key_frame_needs_the_group_before():
    # Packet 5 is stored after the key frame 4 and shown before it.
    stamps, groups = [0, 1, 2, 3, 5, 4, 6, 7, 8], keys(9, 0, 4, 8)
    assert needed_runs(stamps, groups, [5]) == [(0, 6)]
    assert needed_runs(stamps, groups, [6]) == [(4, 7)]
    # The run started for the key frame itself joins the one that leads up to it.
    assert needed_runs(stamps, groups, [1, 4, 5]) == [(0, 6)]


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
    opened, (every, _) = Clip(path), slow_decode(path)
    assert opened.trusted
    for picks in ([50], [3, 49, 97], list(range(1, 100, 2))):
        assert np.array_equal(opened._planned(picks, quiet), np.stack([every[index] for index in picks]))


def test_only_the_needed_packets_are_decoded(tmp_path):
    opened = Clip(write_clip(tmp_path / "clip.mp4", count=100, options={"g": "10", "bf": "0", "sc_threshold": "0"}))
    frames = list(opened._frames_of_runs([(0, 2), (50, 53)], set(), quiet))
    assert [frame_number(frame.to_ndarray(format="rgb24")) for frame in frames] == [0, 1, 50, 51, 52]


@pytest.mark.parametrize("threaded", [0, 1 << 30])
def test_frames_that_no_other_is_made_from_are_decoded_only_if_needed(tmp_path, monkeypatch, threaded):
    monkeypatch.setattr(clip, "THREADED", threaded)
    path = write_clip(tmp_path / "clip.mp4", count=100, rate=25, options={"bf": "3", "g": "50", "b-pyramid": "normal"})
    opened, (every, _) = Clip(path), slow_decode(path)
    needed = {opened.stamps[index] for index in range(0, 100, 7)}
    frames = list(opened._frames_of_runs([(0, 100)], needed, quiet))
    shown = [frame_number(frame.to_ndarray(format="rgb24")) for frame in frames]
    assert needed <= {frame.pts for frame in frames} and shown == sorted(shown) and len(frames) < 80
    for picks in ([50], [3, 49, 98], list(range(1, 100, 2))):
        assert np.array_equal(opened._planned(picks, quiet), np.stack([every[index] for index in picks]))


def test_packets_that_lie_are_found_out(tmp_path):
    opened = Clip(write_clip(tmp_path / "clip.mkv", count=20))
    opened.stamps[-1] = 99_999
    assert opened._planned([2, 7], quiet) is None
    assert numbers(read_video(opened, frames=4).frames) == [2, 7, 12, 17] and not opened.trusted


def test_a_clip_can_be_read_several_times_with_its_file_opened_once(tmp_path, monkeypatch):
    path, opened = write_clip(tmp_path / "clip.mp4", count=40), []
    real = av.open
    monkeypatch.setattr(av, "open", lambda file, *args, **options: opened.append(file) or real(file, *args, **options))
    once = Clip(path)
    first, second = read_video(once, frames=4), read_video(once, fps=1.0)
    assert numbers(first.frames) == [5, 15, 25, 35] and numbers(second.frames) == [0, 10, 20, 30]
    assert len(opened) == 1


def test_a_clip_too_large_for_memory_is_read_from_the_disk_again(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "PACKET_SHARE", 0.0)
    opened = Clip(write_clip(tmp_path / "clip.mp4", count=40, options={"g": "10"}))
    assert opened._packets is None
    assert numbers(read_video(opened, frames=4).frames) == [5, 15, 25, 35]


def test_a_clip_that_is_read_leaves_no_file_and_no_thread(tmp_path):
    def held() -> int:
        return len(list(Path("/proc/self/task").iterdir())) + len(list(Path("/proc/self/fd").iterdir()))

    path = write_clip(tmp_path / "clip.mp4")
    read_video(path)
    before, threads = held(), threading.active_count()
    for _ in range(5):
        read_video(path)
    assert held() <= before + 2 and threading.active_count() <= threads


def test_frames_of_another_size_are_scaled_to_the_first():
    store = FrameStore(2, "clip.mp4")
    store.put(0, av.VideoFrame.from_ndarray(numbered_image(5), format="rgb24"))
    store.put(1, av.VideoFrame.from_ndarray(numbered_image(9).repeat(2, 0).repeat(2, 1), format="rgb24"))
    assert numbers(store.frames) == [5, 9]


def test_more_frames_than_fit_in_memory_are_refused():
    store = FrameStore(2**40, "clip.mp4")
    with pytest.raises(OutOfMemory, match=r"need .* GB of memory: ask for fewer"):
        store.put(0, av.VideoFrame(64, 48, "rgb24"))


def test_decoded_frames_and_their_threads_are_not_kept(tmp_path):
    """Else each would have threads of its own, and stay in the decoder's format until the clip is closed."""
    opened = Clip(write_clip(tmp_path / "clip.mp4", count=60))
    gc.collect()
    before = len(os.listdir("/proc/self/task"))
    frames, _ = opened.decode(lambda timeline: list(range(60)), quiet)
    left = sum(type(one).__name__ == "VideoFrame" for one in gc.get_objects())
    assert len(frames) == 60 and left < 6
    assert len(os.listdir("/proc/self/task")) - before < 2 * (os.cpu_count() or 1) + 20
