"""Fewer frames where a video has too many tokens: as many as fit, never more, and said."""

import av
import pytest

from hippo.bench.world import make_scene, write_clip
from hippo.errors import BadRequest, OutOfMemory
from hippo.inputs import Budget, MediaOptions, fit, messages_of, read_fitting, read_messages, room_for
from hippo.video import decoder, read_video
from tests.models import inputs, model

TOKENS = 64  # of a step of two frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(make_scene(90001), path, side=56)
    return path


def read(monkeypatch, source, limit=None, room=1 << 40, first=128, **sampling):
    """(frames taken, warnings, how many frames each look took)."""
    looks = []

    def prepare(processor, turns, options):
        videos = [part["video"] for turn in turns for part in turn["content"] if part["type"] == "video"]
        looks.append(max((len(video.frames) for video in videos), default=0))
        return {"tokens": sum(-(-len(video.frames) // 2) * TOKENS for video in videos)}

    monkeypatch.setattr(fit, "prepare", prepare)
    monkeypatch.setattr(fit, "FIRST_LOOK", first)
    _, made, warnings = read_fitting(
        None,
        messages_of(source, "What?"),
        lambda made: made["tokens"],
        Budget(limit, None, lambda pixels: room),
        options=MediaOptions(**sampling),
    )
    return made["tokens"], warnings, looks


def test_what_fits_is_read_once_and_whole(monkeypatch, clip):
    assert read(monkeypatch, clip) == (8 * TOKENS, (), [16])
    assert read(monkeypatch, clip, limit=8 * TOKENS) == (8 * TOKENS, (), [16])
    assert read(monkeypatch, None) == (0, (), [0])


@pytest.mark.parametrize("limit", [64, 100, 300, 500])
def test_a_limit_takes_as_many_frames_as_fit(monkeypatch, clip, limit):
    tokens, (warning,), _ = read(monkeypatch, clip, limit=limit)
    assert limit - TOKENS < tokens <= limit
    assert "of 16 frames are used" in warning and f"--max-video-tokens is {limit}" in warning


def test_a_long_video_is_looked_at_shortly_before_all_that_fits_is_read(monkeypatch, clip):
    every = len(read_video(clip, fps=6).frames)
    assert every > 20
    tokens, warnings, looks = read(monkeypatch, clip, fps=6, first=8)
    assert looks == [8, every] and warnings == () and tokens == -(-every // 2) * TOKENS
    tokens, (warning,), looks = read(monkeypatch, clip, fps=6, first=8, room=7 * TOKENS)
    assert looks[0] == 8 and looks[-1] == 14 and tokens == 7 * TOKENS
    assert f"14 of {every} frames are used: {7 * TOKENS} video tokens fit the free memory" in warning


def test_frames_in_memory_are_thinned_too_and_stay_evenly_spread(monkeypatch, clip):
    video = read_video(clip, frames=12)
    tokens, warnings, looks = read(monkeypatch, video, limit=3 * TOKENS)
    assert looks == [12, 6] and tokens == 3 * TOKENS and "6 of 12" in warnings[0]
    thinned = video.thinned(6)
    assert thinned.timestamps == video.timestamps[1::2] and (thinned.frames == video.frames[1::2]).all()
    assert video.thinned(12) is video and video.thinned(None) is video


def test_what_cannot_fit_is_refused(monkeypatch, clip):
    with pytest.raises(BadRequest, match="64 video tokens at one frame a video: --max-video-tokens is 9"):
        read(monkeypatch, clip, limit=9)


def test_a_request_opens_its_clip_once(monkeypatch, clip):
    real, opened = av.open, []
    monkeypatch.setattr(av, "open", lambda file, *args, **options: opened.append(file) or real(file, *args, **options))
    tokens, _, looks = read(monkeypatch, clip, fps=6, first=8, room=7 * TOKENS)
    assert len(looks) > 1 and tokens == 7 * TOKENS and len(opened) == 1
    read_messages(messages_of(clip, "What?"))
    assert len(opened) == 2
    read(monkeypatch, None), read(monkeypatch, [clip, clip], limit=300)
    assert len(opened) == 4


def test_memory_is_asked_before_anything_is_decoded(monkeypatch, clip):
    """A frame of 56x56 costs 36 bytes a pixel while it is prepared."""
    asked = []
    real = decoder.sample
    monkeypatch.setattr(
        decoder, "sample", lambda *args, **options: asked.append(options["most"]) or real(*args, **options)
    )
    monkeypatch.setattr(fit, "free_memory", lambda device="cpu": 5.5 * 56 * 56 * 36 / 0.8)
    tokens, (warning,), looks = read(monkeypatch, clip)
    assert asked == [5] and looks == [5] and tokens == 3 * TOKENS
    assert warning == "5 of 16 frames are used: more of this size do not fit the free memory"
    monkeypatch.setattr(fit, "free_memory", lambda device="cpu": 56 * 56 * 36 / 2)
    with pytest.raises(OutOfMemory, match=r"one frame of each video needs 0\.0 GB of memory"):
        read(monkeypatch, clip)
    assert len(asked) == 1


def test_memory_that_runs_out_while_inputs_are_prepared_is_one_line(monkeypatch, clip):
    def prepare(processor, turns, options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(fit, "prepare", prepare)
    with pytest.raises(OutOfMemory, match="more memory than is free: use fewer frames"):
        read_fitting(None, messages_of(clip, "What?"), len, Budget(None, None, lambda pixels: 1))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_the_room_grows_with_the_free_memory_and_shrinks_with_what_a_token_costs(monkeypatch, name):
    target, request = model(name), inputs(name)
    for free in (10**6, 10**7):
        monkeypatch.setattr(fit, "free_memory", lambda device="cpu", free=free: free)
        pixels = sum(value.nbytes for value in request.values() if value.is_floating_point())
        tokens = 12
        layers, cache = target.config.get_text_config().num_hidden_layers, 2 * 2 * 16 * 4
        cost = 4 * pixels / tokens + 2 * layers * cache + 3 * 64 * 4
        assert room_for(target.config, target.dtype, target.device, pixels / tokens) == int(0.8 * free / cost)
