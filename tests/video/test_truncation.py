"""Files shorter than their headers say."""

import pytest

from hippo.video.truncation import has_mp4_header, is_cut_off

from .clips import cut, write_clip

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm", "clip.avi", "clip.mpg", "clip.vob"])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
def test_cut_files_are_told_from_whole_ones(tmp_path, name, part):
    path = write_clip(tmp_path / name, rate=25)
    assert not is_cut_off(path)
    assert is_cut_off(cut(path, part))


def test_cut_fragmented_mp4(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", options={"g": "5"}, container_options=FRAGMENTED)
    assert not is_cut_off(path)
    assert is_cut_off(cut(path, 0.7))


def test_padding_after_an_mp4_is_not_damage(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes() + bytes(100))
    assert not is_cut_off(path)


def test_live_matroska_says_nothing_about_its_size(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", container_options={"live": "1"})
    assert not is_cut_off(cut(path, 0.7))


def test_other_files_say_nothing_about_their_size(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hi")
    assert not is_cut_off(path)
    assert not has_mp4_header(path)
    assert has_mp4_header(write_clip(tmp_path / "clip.mp4", count=2))
