"""Of a long film only the packets around the wanted frames are read, and the frames are those of a full read."""

import numpy as np
import pytest

from hippo.video import Clip, Sampling, clip, read_video

from .film import RATE, frame_number, write_film

SECONDS, GROUP = 90.0, 50


@pytest.fixture(scope="module", params=["film.mp4", "film.mkv"])
def film(request, tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / request.param, SECONDS, 256, 144, group=GROUP)


@pytest.mark.parametrize(
    ("request_", "most"),
    [
        ({}, 0.9),
        ({"frames": 5}, 0.5),
        ({"frames": 5, "start": 40.0, "end": 45.0}, 0.3),
        ({"frames": 100, "start": 40.0, "end": 45.0}, 0.3),
        ({"fps": 2.0, "start": 30.3, "end": 33.3}, 0.3),
        ({"frames": 3, "start": 60.0}, 0.4),
        ({"frames": 3, "end": 9.99}, 0.3),
        ({"fps": 1.0, "start": 0.02, "end": 500.0}, 1.0),
    ],
)
def test_frames_and_times_are_those_of_a_full_read(film, request_, most, monkeypatch):
    some, video = Clip(film, Sampling(**request_)), read_video(film, **request_)
    assert not some.complete and len(some.stamps) <= most * SECONDS * RATE
    monkeypatch.setattr(clip, "LONG", 1e9)
    assert Clip(film, Sampling(**request_)).complete
    whole = read_video(film, **request_)
    assert np.array_equal(video.frames, whole.frames)
    assert (video.timestamps, video.duration) == (whole.timestamps, whole.duration)
    assert (video.source_frames, video.source_fps, video.warnings) == (whole.source_frames, whole.source_fps, ())
    expected = [round(time * RATE) % (8 * GROUP) for time in video.timestamps]
    assert [frame_number(frame) for frame in video.frames] == expected


def test_a_rate_or_nearly_every_frame_of_the_whole_film_reads_all_of_it(film):
    assert Clip(film, Sampling(fps=1.0)).complete and Clip(film, Sampling(frames=1000)).complete
    assert Clip(film).complete


def test_a_clip_that_was_read_in_part_is_read_again_for_other_frames(film):
    some = Clip(film, Sampling(frames=2))
    other = read_video(some, fps=0.1)
    assert np.array_equal(other.frames, read_video(film, fps=0.1).frames) and not some.complete


def test_a_film_that_is_cut_off_is_read_in_full(film):
    data = film.read_bytes()
    short = film.with_stem("short")
    short.write_bytes(data[: len(data) * 2 // 3])
    if film.suffix == ".mkv":
        (warning,) = read_video(short, frames=4).warnings
        assert "is damaged after" in warning
