"""What a clip's packets say before anything is decoded."""

import os
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from hippo.errors import HippoError
from hippo.video import packets
from hippo.video.packets import Scan, check_file, is_picture, needed_runs, scan_packets

from .clips import cut, write_clip


def scan_of(stamps: list[int], keys: list[int]) -> Scan:
    return Scan(
        path=Path("clip.mkv"),
        stream=0,
        format="matroska,webm",
        time_base=Fraction(1, 10),
        rate=None,
        declared=None,
        declared_own=False,
        cut_off=False,
        stamps=list(stamps),
        keys=[index in keys for index in range(len(stamps))],
        hidden=[False] * len(stamps),
    )


def test_scan_of_a_whole_clip(tmp_path):
    scan = scan_packets(write_clip(tmp_path / "clip.mp4", sound=6.0))
    timeline = scan.timeline()
    assert scan.trusted and not scan.cut_off
    assert len(timeline.times) == 30
    assert timeline.duration == pytest.approx(3.0)
    assert scan.declared == pytest.approx(3.0)


def test_shown_order_is_by_time_not_by_storage():
    assert scan_of([0, 4, 2, 1, 3], [0]).shown() == [0, 3, 2, 4, 1]


def test_clips_whose_packets_are_not_frames_are_not_trusted(tmp_path):
    assert not scan_packets(write_clip(tmp_path / "vp8.webm", codec="libvpx", count=5)).trusted
    assert not scan_packets(write_clip(tmp_path / "b.avi", codec="libx264")).trusted
    assert not scan_packets(cut(write_clip(tmp_path / "cut.mkv"), 0.7)).trusted


def test_clip_that_starts_between_key_frames_is_not_trusted(tmp_path):
    path = write_clip(tmp_path / "clip.ts", codec="libx264", count=60, options={"g": "20"})
    assert scan_packets(path).trusted
    path.write_bytes(path.read_bytes()[188 * 20 :])
    assert not scan_packets(path).trusted


def test_frames_shown_before_the_first_key_frame_are_not_trusted():
    assert packets._consistent(scan_of([0, 2, 1, 3], [0]))
    assert not packets._consistent(scan_of([2, 0, 1, 3], [0]))
    assert not packets._consistent(scan_of([0, 1, 1, 2], [0]))


def test_stale_duration_tag_is_not_believed(tmp_path):
    path = write_clip(tmp_path / "clip.mkv")
    path.write_bytes(path.read_bytes().replace(b"00:00:03.0", b"00:20:00.0"))
    scan = scan_packets(path)
    assert scan.declared == pytest.approx(3.0)


def test_runs_start_at_key_frames_and_skip_what_is_not_needed():
    scan = scan_of(list(range(12)), [0, 4, 8])
    assert needed_runs(scan, [1, 10]) == [(0, 2), (8, 11)]
    assert needed_runs(scan, [5, 6]) == [(4, 7)]
    assert needed_runs(scan, [3, 4]) == [(0, 5)]


def test_frame_shown_before_its_key_frame_needs_the_group_before():
    # Packet 5 is stored after the key frame 4 and shown before it.
    scan = scan_of([0, 1, 2, 3, 5, 4, 6, 7, 8], [0, 4, 8])
    assert needed_runs(scan, [5]) == [(0, 6)]
    assert needed_runs(scan, [6]) == [(4, 7)]
    # The run started for the key frame itself joins the one that leads up to it.
    assert needed_runs(scan, [1, 4, 5]) == [(0, 6)]


def test_missing_folder_and_empty_files_are_refused(tmp_path):
    with pytest.raises(HippoError, match="does not exist"):
        check_file(tmp_path / "none.mp4")
    with pytest.raises(HippoError, match="is a folder"):
        check_file(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(HippoError, match="is empty"):
        check_file(tmp_path / "empty.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(HippoError, match="not an ordinary file"):
        check_file(tmp_path / "pipe.mp4")


def test_unreadable_file_is_refused():
    # pytest's own folders are closed to other users, so a test run as root needs one that is not.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "secret.mp4"
        path.write_bytes(b"secret")
        path.chmod(0o000)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(HippoError, match="may not be read"):
                check_file(path)
        finally:
            if user == 0:
                os.seteuid(0)


def test_a_picture_is_told_from_a_clip_by_its_content(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "picture.mp4", "PNG")
    assert is_picture(tmp_path / "picture.mp4")
    assert not is_picture(write_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip.png"))
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 9)
    assert not is_picture(tmp_path / "noise.bin")
    (tmp_path / "cut.png").write_bytes((tmp_path / "picture.mp4").read_bytes()[:60])
    assert is_picture(tmp_path / "cut.png"), "what is left of a picture"
