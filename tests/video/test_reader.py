"""Reading whole clips: formats, times, turned and damaged files, errors."""

import io
import re
import wave
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from hippo.errors import HippoError
from hippo.video import read_video

from .clips import (
    HEIGHT,
    REAL_CLIPS,
    WIDTH,
    add_cover,
    cut,
    numbered_image,
    numbers,
    slow_decode,
    turn,
    write_clip,
    write_sound,
)

FORMATS = [  # FFmpeg's pixel formats that phones and editors seldom write
    ("clip.mkv", "ffv1", "yuv444p10le"),
    ("clip.mp4", "libx264", "yuv444p10le"),
    ("clip.mkv", "ffv1", "gray"),
    ("clip.mkv", "ffv1", "gray10le"),
    ("clip.mkv", "ffv1", "bgra"),
    ("clip.webm", "libvpx-vp9", "yuva420p"),
]
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize("sound", [0.0, 4.0], ids=["mute", "sound"])
@pytest.mark.parametrize(
    "name, codec",
    [
        ("clip.mp4", "libx264"),
        ("clip.mkv", "libx264"),
        ("clip.webm", "libvpx-vp9"),
        ("clip.webm", "libvpx"),
        ("clip.avi", "mpeg4"),
        ("clip.avi", "libx264"),
        ("clip.mov", "mpeg4"),
        ("clip.mpg", "mpeg2video"),
        ("clip.ts", "libx264"),
    ],
)
def test_every_format_gives_the_right_frames_at_the_right_times(tmp_path, name, codec, sound):
    rate = 25 if name.endswith("mpg") else 10
    path = write_clip(tmp_path / name, codec=codec, rate=rate, sound=sound)
    video = read_video(path, frames=6)
    assert video.frames.shape == (6, HEIGHT, WIDTH, 3)
    assert video.frames.dtype == np.uint8
    assert numbers(video.frames) == [2, 7, 12, 17, 22, 27]
    assert video.timestamps == pytest.approx([number / rate for number in (2, 7, 12, 17, 22, 27)], abs=1e-3)
    assert video.duration == pytest.approx(30 / rate, abs=1e-3)
    assert video.source_fps == pytest.approx(rate, rel=1e-3)
    assert video.source_frames == 30
    assert (video.path, video.warnings) == (path, ())


def test_fps_samples_true_time(tmp_path):
    video = read_video(write_clip(tmp_path / "clip.mp4"), fps=2.0)
    assert numbers(video.frames) == [0, 5, 10, 15, 20, 25]
    assert video.timestamps == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    assert video.sampled_fps == pytest.approx(2.0)


def test_sixteen_frames_unless_told(tmp_path):
    assert len(read_video(write_clip(tmp_path / "clip.mp4", count=40)).frames) == 16


def test_short_clip_gives_what_it_has(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", count=5)
    assert numbers(read_video(path, frames=99).frames) == [0, 1, 2, 3, 4]
    assert numbers(read_video(path, fps=1000).frames) == [0, 1, 2, 3, 4]


def test_single_frame(tmp_path):
    video = read_video(write_clip(tmp_path / "clip.mkv", count=1))
    assert video.timestamps == (0.0,)
    assert video.duration == pytest.approx(0.1)
    assert video.sampled_fps == pytest.approx(10)


# A burst, a still of 3 s, then half-second steps, in hundredths of a second.
VARIABLE = [0, 1, 2, 3, 4, 5, 6, 7, 8, 300, 350, 400, 450, 500, 550]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_variable_rate_is_sampled_by_time(tmp_path, name):
    path = write_clip(tmp_path / name, ticks=VARIABLE, count=len(VARIABLE), options={"bf": "0"})
    video = read_video(path, fps=1.0)
    assert numbers(video.frames) == [0, 8, 9, 11, 13]
    assert video.timestamps == pytest.approx([0.0, 0.08, 3.0, 4.0, 5.0])
    assert read_video(path, frames=15).timestamps == pytest.approx([tick / 100 for tick in VARIABLE])


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "clip.ts"])
def test_times_count_from_the_first_frame_not_from_zero(tmp_path, name):
    path = write_clip(tmp_path / name, ticks=range(500, 600, 10), count=10)
    video = read_video(path, fps=2.0)
    assert video.timestamps == (0.0, 0.5)
    assert video.duration == pytest.approx(1.0, abs=0.1)
    assert video.warnings == ()


def test_fragmented_mp4(tmp_path):
    video = read_video(write_clip(tmp_path / "clip.mp4", options={"g": "5"}, container_options=FRAGMENTED), frames=6)
    assert numbers(video.frames) == [2, 7, 12, 17, 22, 27]
    assert video.timestamps == pytest.approx([0.2, 0.7, 1.2, 1.7, 2.2, 2.7])


def test_joined_program_streams_are_read_through(tmp_path):
    path = write_clip(tmp_path / "clip.mpg", rate=25, count=50)
    path.write_bytes(path.read_bytes() * 2)
    video = read_video(path, frames=4)
    assert video.source_frames == 100
    assert video.duration == pytest.approx(4.0)
    assert numbers(video.frames) == [12, 37, 12, 37]
    assert video.timestamps == pytest.approx([0.48, 1.48, 2.48, 3.48])


# What a player shows of an image for a display matrix: its corners tell.
TURNS = {
    "as it is": ((1, 0, 0, 1), lambda image: image),
    "clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "counterclockwise": ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
    "upside down": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "turned and mirrored": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", TURNS)
def test_frames_are_upright(tmp_path, name):
    matrix, shown = TURNS[name]
    corner = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    corner[:16, :24] = 240
    corner[:16, 40:] = 120
    path = turn(write_clip(tmp_path / "clip.mp4", images=[corner] * 4), *matrix)
    video = read_video(path, frames=2)
    expected = shown(corner)
    assert video.frames.shape == (2, *expected.shape)
    assert np.abs(video.frames[1].astype(int) - expected).mean() < 6


@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi", "clip.mpg", "fragments.mp4"])
def test_cut_off_clip_is_sampled_over_the_part_that_decodes(tmp_path, name):
    options = FRAGMENTED if "fragments" in name else None
    path = write_clip(tmp_path / name, count=120, rate=25, options={"g": "10"}, container_options=options)
    video = read_video(cut(path, 0.6), frames=5)
    good, times = _good_frames(path)
    assert 30 < video.source_frames < 110
    assert len(good) <= video.source_frames <= len(good) + 3
    assert video.duration == pytest.approx(times[-1] + 0.04, abs=0.13)
    centres = [(segment + 0.5) * video.duration / 5 for segment in range(5)]
    assert all(shown <= centre + 1e-3 < shown + 0.05 for shown, centre in zip(video.timestamps, centres, strict=True))
    assert numbers(video.frames) == [round(shown * 25) for shown in video.timestamps]
    reached = rf"{re.escape(name)} is damaged after {video.duration:.1f} s( of \d\.\d s)?"
    assert len(video.warnings) == 1
    assert re.fullmatch(reached + ": used the part that decodes", video.warnings[0])


def _good_frames(path):
    """The frames and times that decode before the first error."""
    frames, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        try:
            for frame in container.decode(stream):
                frames.append(frame)
                times.append(float((frame.pts - frames[0].pts) * stream.time_base))
        except av.FFmpegError as error:
            assert frames, error
    return frames, times


def test_warning_says_how_long_the_clip_should_have_been(tmp_path):
    path = cut(write_clip(tmp_path / "clip.mkv", count=80, options={"g": "10"}), 0.5)
    (warning,) = read_video(path).warnings
    assert re.fullmatch(r"clip.mkv is damaged after [2-5]\.\d s of 8\.0 s: used the part that decodes", warning)


def noisy_images(count: int) -> list[np.ndarray]:
    """Numbered images that compress badly, so that their data and not the index fills the file."""
    noise = np.random.default_rng(0)
    return [
        np.clip(numbered_image(number) // 2 + noise.integers(0, 100, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        for number in range(count)
    ]


@pytest.mark.parametrize("how", ["cut", "zeroed"])
def test_mp4_with_its_index_in_front_is_read_as_far_as_it_goes(tmp_path, how):
    options = {"g": "10", "qp": "20"}
    front = {"movflags": "faststart"}
    path = write_clip(tmp_path / "clip.mp4", images=noisy_images(80), options=options, container_options=front)
    data = path.read_bytes()
    keep = len(data) * 6 // 10
    path.write_bytes(data[:keep] + (bytes(len(data) - keep) if how == "zeroed" else b""))
    video = read_video(path, frames=4)
    assert 3.5 < video.duration < 6.0
    (warning,) = video.warnings
    assert warning.startswith(f"clip.mp4 is damaged after {video.duration:.1f} s of 8.0 s")
    assert video.timestamps[-1] == pytest.approx(video.duration * 7 / 8, abs=0.11)


def test_damage_in_the_middle_is_told_and_the_rest_used(tmp_path):
    path = write_clip(tmp_path / "clip.avi", codec="libx264", count=60, options={"g": "10", "bf": "0"})
    data = bytearray(path.read_bytes())
    chunk = [found.start() for found in re.finditer(b"00dc", data)][33]
    length = int.from_bytes(data[chunk + 4 : chunk + 8], "little")
    data[chunk + 8 : chunk + 8 + length] = b"\xff" * length
    path.write_bytes(data)
    video = read_video(path, frames=60)
    assert video.duration == pytest.approx(6.0)
    assert 33 not in numbers(video.frames) and len(video.frames) == 59
    assert video.timestamps[33] == pytest.approx(3.4)
    assert video.warnings == ("clip.avi has damaged places: used the frames that decode",)


def test_video_shorter_than_its_sound_is_not_damaged(tmp_path):
    for name in ("clip.mkv", "clip.mp4", "clip.avi", "clip.webm"):
        assert read_video(write_clip(tmp_path / name, sound=6.0)).warnings == ()


def test_progress_rises_to_one(tmp_path):
    for name, damaged in (("clip.mp4", False), ("clip.mkv", True)):
        path = write_clip(tmp_path / name, count=60)
        heard: list[float] = []
        read_video(cut(path, 0.7) if damaged else path, backend="pyav", progress=heard.append)
        assert heard == sorted(set(heard))
        assert len(heard) > 10
        assert heard[-1] == 1.0
        assert max(late - early for early, late in pairwise([0.0, *heard])) < 0.2


def test_progress_can_stop_the_reading(tmp_path):
    class Stop(Exception):
        pass

    def stop(done: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        read_video(write_clip(tmp_path / "clip.mp4"), progress=stop)


def test_file_names_are_not_taken_for_addresses(tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.mp4", count=4).rename(tmp_path / "http: %03d [a].mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read_video("http: %03d [a].mp4").frames) == 4
    assert len(read_video(tmp_path / "http: %03d [a].mp4").frames) == 4


@pytest.mark.parametrize("name", ["notes.txt", "notes.mp4", "notes.json", "notes.m3u8"])
def test_text_is_not_a_video(tmp_path, name):
    (tmp_path / name).write_text("hello, this is no video\n" * 20)
    with pytest.raises(HippoError, match=f"{name} is not a video"):
        read_video(tmp_path / name)


def test_sound_alone_is_not_a_video(tmp_path):
    with pytest.raises(HippoError, match=r"sound\.m4a has sound but no video"):
        read_video(write_sound(tmp_path / "sound.m4a"))
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    with pytest.raises(HippoError, match=r"sound\.wav has sound but no video"):
        read_video(tmp_path / "sound.wav")


def test_the_cover_of_a_song_is_not_a_video(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (64, 48)).save(picture, "JPEG")
    path = add_cover(write_sound(tmp_path / "song.mp3"), picture.getvalue())
    with av.open(str(path)) as container:
        assert container.streams.video
    with pytest.raises(HippoError, match=r"song\.mp3 has sound but no video"):
        read_video(path)


def test_a_picture_is_not_a_video(tmp_path):
    for name in ("picture.png", "picture.jpg"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
        with pytest.raises(HippoError, match=f"{name} is a picture"):
            read_video(tmp_path / name)


def test_mp4_that_lost_its_index_is_refused(tmp_path):
    with pytest.raises(HippoError, match=r"clip\.mp4 is cut off and its index is lost: copy"):
        read_video(cut(write_clip(tmp_path / "clip.mp4"), 0.5))


def test_clip_without_a_frame_that_decodes_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", count=4)
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = b"\xff" * (end - start)
    path.write_bytes(data)
    with pytest.raises(HippoError, match="no frame that decodes"):
        read_video(path)


def test_errors_are_one_line_and_come_before_any_reading(tmp_path):
    for request, expected in [
        ({"frames": 0}, "frames must be"),
        ({"fps": -2.0}, "fps must be"),
        ({"frames": 2, "fps": 1.0}, "only one"),
        ({"backend": "vlc"}, "no video backend 'vlc'"),
        ({}, "does not exist"),
    ]:
        with pytest.raises(HippoError, match=expected) as caught:
            read_video(tmp_path / "none.mp4", **request)
        assert "\n" not in str(caught.value)


def test_metadata_gives_processors_the_true_times(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", ticks=VARIABLE, count=len(VARIABLE), options={"bf": "0"})
    for video in (read_video(path, fps=1.0), read_video(path, frames=15), read_video(path, frames=1)):
        metadata = video.metadata
        assert metadata.timestamps == pytest.approx(video.timestamps, abs=1e-4)
        assert metadata.sampled_fps == pytest.approx(video.sampled_fps, rel=1e-3)
        assert (metadata.height, metadata.width) == (HEIGHT, WIDTH)
        assert metadata.duration == video.duration


def test_qwen_processor_keeps_the_frames_and_their_times(tmp_path):
    from transformers import Qwen2VLVideoProcessor

    video = read_video(write_clip(tmp_path / "clip.mp4", ticks=range(0, 210, 7), count=30), fps=3.0)
    batch = Qwen2VLVideoProcessor()(
        videos=[video.frames],
        video_metadata=[video.metadata],
        do_sample_frames=False,
        return_metadata=True,
        return_tensors="pt",
    )
    frames = len(video.frames)
    assert batch["video_grid_thw"][0, 0] == (frames + 1) // 2
    assert batch["video_metadata"][0].timestamps == pytest.approx(video.timestamps, abs=1e-3)
    true_rate = (frames - 1) / (video.timestamps[-1] - video.timestamps[0])
    assert batch["video_metadata"][0].sampled_fps == pytest.approx(true_rate, rel=1e-3)


@pytest.mark.parametrize(
    "name, duration, rate, count",
    [("big_buck_bunny_trailer.mp4", 55.125, 24, 1323), ("city_night.mpg", 7.6, 25, 190)],
)
def test_real_clips(name, duration, rate, count):
    path = REAL_CLIPS / name
    if not path.exists():
        pytest.skip("the shared clips are not here")
    video = read_video(path, frames=3)
    assert (video.source_frames, video.warnings) == (count, ())
    assert video.duration == pytest.approx(duration, abs=1e-3)
    assert video.source_fps == pytest.approx(rate)
    if count < 300:
        every, times = slow_decode(path)
        picked = [times.index(pytest.approx(shown)) for shown in video.timestamps]
        assert np.array_equal(video.frames, np.stack([every[index] for index in picked]))


@pytest.mark.parametrize(("name", "codec", "pixels"), FORMATS, ids=lambda value: str(value))
def test_deep_gray_and_transparent_frames_are_rgb(tmp_path, name, codec, pixels):
    video = read_video(write_clip(tmp_path / name, codec=codec, pixels=pixels, count=16), frames=4)
    assert video.frames.dtype == np.uint8 and video.frames.shape == (4, HEIGHT, WIDTH, 3)
    assert numbers(video.frames) == [2, 6, 10, 14]


@pytest.mark.parametrize("size", [(2, 2), (1, 1), (4000, 8000)], ids=str)
def test_frames_of_one_pixel_and_of_many(tmp_path, size):
    image = np.full((*size, 3), 200, np.uint8)
    path = write_clip(tmp_path / "clip.mov", codec="png", pixels="rgb24", images=[image, image])
    video = read_video(path, frames=1)
    assert video.frames.shape == (1, *size, 3) and (video.frames == 200).all()
