"""Sizes by keys and by budget: those of the processor and of qwen-vl-utils, known before anything is decoded."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hippo.cli.demo import CLIP
from hippo.errors import BadRequest
from hippo.inputs import fit, memory, messages_of, prepare, read_messages
from hippo.inputs.options import MediaOptions
from hippo.inputs.pixels import Scaling, plan
from hippo.video import write_video
from tests.families.test_processors import internvl_processor

SHAPES = [(720, 1280), (360, 640), (1080, 608)]


def part(**keys):
    return [{"role": "user", "content": [{"type": "video", "video": CLIP, **keys}, {"type": "text", "text": "?"}]}]


@pytest.fixture(scope="module")
def scaling(tiny):
    return Scaling.of(tiny.processor.video_processor)


def qwen_vl_utils(count, height, width, **ele):
    """The size that `fetch_video` of qwen-vl-utils 0.0.11 gives, from its source."""
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

    token = 28 * 28
    if "resized_height" in ele:
        return smart_resize(ele["resized_height"], ele["resized_width"], 28, 4 * token, 16384 * token)
    least = ele.get("min_pixels", 128 * token)
    total = ele.get("total_pixels", int(128000 * token * 0.9))
    most = max(min(768 * token, total / count * 2), int(least * 1.05))
    return smart_resize(height, width, 28, least, min(ele.get("max_pixels", most), most))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [4, 16, 200])
@pytest.mark.parametrize(
    "keys",
    [
        {"max_pixels": 360 * 420},
        {"min_pixels": 50176, "max_pixels": 50176},
        {"min_pixels": 4 * 784, "max_pixels": 256 * 784, "total_pixels": 20480 * 784},
        {"total_pixels": 2000 * 784},
        {"resized_height": 280, "resized_width": 420},
    ],
)
def test_documented_options_give_the_sizes_of_qwen_vl_utils(scaling, shape, count, keys):
    assert scaling.size(count, *shape, MediaOptions(**keys)) == qwen_vl_utils(count, *shape, **keys)


@pytest.fixture(scope="module")
def theirs():
    """qwen-vl-utils, which has no reader that works beside this torchvision; its rules choose the frames."""
    process = pytest.importorskip("qwen_vl_utils.vision_process")

    def read(keys):
        with av.open(keys["video"]) as container:
            rate = float(container.streams.video[0].average_rate)
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        first, last, total = process.calculate_video_frame_range(keys, len(frames), rate)
        count = process.smart_nframes(keys, total_frames=total, video_fps=rate)
        chosen = torch.linspace(first, last, count).round().long()
        return torch.from_numpy(frames[chosen]).permute(0, 3, 1, 2), {}, count / total * rate

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(process.VIDEO_READER_BACKENDS, "torchvision", read)
        patch.setattr(process, "get_video_reader_backend", lambda: "torchvision")
        yield process


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Of three shapes, rates and lengths."""
    paths = []
    for width, height, rate, count in ((320, 180, 10, 60), (224, 398, 24, 150), (96, 96, 30, 45)):
        paths.append(tmp_path_factory.mktemp("clips") / f"{width}x{height}.mp4")
        frames = np.random.default_rng(width).integers(0, 255, (count, 1, 1, 3), np.uint8)
        write_video((np.tile(frame, (height, width, 1)) for frame in frames), paths[-1], rate, (width, height))
    return paths


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"nframes": 8},
        {"nframes": 9, "max_pixels": 360 * 420},
        {"fps": 2.0},
        {"fps": 1.0, "min_frames": 6},
        {"fps": 4.0, "max_frames": 5},
        {"fps": 2.0, "resized_height": 84, "resized_width": 168},
        {"video_start": 0.5, "video_end": 1.3, "fps": 5.0},
        {"video_start": 0.5, "nframes": 4},
        {"video_end": 1.0, "nframes": 4, "min_pixels": 200 * 784},
        {"nframes": 6, "min_pixels": 50176, "max_pixels": 50176},
        {"nframes": 6, "total_pixels": 2000 * 784},
    ],
)
def test_documented_options_give_the_grids_of_qwen_vl_utils(tiny, theirs, clips, keys):
    if not keys.keys() & {"nframes", "fps"}:
        keys = {"fps": theirs.FPS, **keys}  # the default there; here 16 frames
    if not keys.keys() & {"min_pixels", "max_pixels", "total_pixels", "resized_height"}:
        keys = {"total_pixels": int(128000 * 784 * 0.9), **keys}  # else the checkpoint's own sizes are used here
    for clip in clips:
        messages = part(**keys)
        messages[0]["content"][0]["video"] = str(clip)
        _, videos = theirs.process_vision_info(messages)
        frames, _, height, width = videos[0].shape
        assert tiny.inputs(messages=messages)["video_grid_thw"].tolist() == [[frames // 2, height // 14, width // 14]]


def test_a_list_of_pictures_gives_the_grid_of_qwen_vl_utils(tiny, theirs, tmp_path):
    for index in range(5):
        Image.new("RGB", (160, 120), (index, 0, 0)).save(tmp_path / f"{index}.png")
    messages = part(resized_height=168, resized_width=224)
    messages[0]["content"][0]["video"] = [f"file://{path}" for path in sorted(tmp_path.iterdir())]
    _, videos = theirs.process_vision_info(messages)
    frames, _, height, width = videos[0].shape
    assert tiny.inputs(messages=messages)["video_grid_thw"].tolist() == [[frames // 2, height // 14, width // 14]]


@pytest.mark.parametrize(
    ("keys", "frames"),
    [
        ({"nframes": 5}, 4), ({"num_frames": 7}, 8), ({"fps": 1}, 10),
        ({"fps": 0.1}, 4), ({"fps": 1, "min_frames": 11}, 12),
        ({"fps": 9, "max_frames": 10}, 10), ({"video_start": 1, "video_end": 2, "fps": 4}, 4),
    ],
)  # fmt: skip
def test_frames_are_counted_in_whole_steps(tiny, keys, frames):
    assert tiny.inputs(messages=part(**keys))["video_grid_thw"][0, 0] == frames // 2


def test_keys_and_options_are_what_the_processor_does_with_that_size(tiny):
    messages = read_messages(messages_of(CLIP, "?"), frames=4)
    size = {"size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}}
    theirs = prepare(tiny.processor, messages, {"videos_kwargs": size})
    limits = {"min_pixels": 28 * 28, "max_pixels": 112 * 112}
    for ours in (
        tiny.inputs(CLIP, "?", frames=4, **limits),
        tiny.inputs(messages=part(num_frames=4, **limits)),
        tiny.inputs(CLIP, "?", frames=4, processor_kwargs={"videos_kwargs": size}),
    ):
        assert torch.equal(ours["pixel_values_videos"], theirs["pixel_values_videos"])
        assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])


def test_a_part_comes_before_the_request_and_images_have_sizes_too(tiny):
    image = np.zeros((224, 224, 3), np.uint8)
    content = [
        {"type": "video", "video": CLIP, "max_pixels": 56 * 56},
        {"type": "video", "video": CLIP},
        {"type": "image", "image": image, "max_pixels": 84 * 84},
        {"type": "text", "text": "?"},
    ]
    inputs = tiny.inputs(messages=[{"role": "user", "content": content}], frames=2, max_pixels=112 * 112)
    assert inputs["video_grid_thw"].tolist() == [[1, 4, 4], [1, 8, 8]]
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 6]]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"max_pixels": 500}, "max_pixels 500 is less than one token, 28x28 pixels"),
        ({"resized_height": 20, "resized_width": 56}, "resized_height 20 is less than one token"),
        ({"min_pixels": 9999, "max_pixels": 8888}, "min_pixels 9999 is above max_pixels 8888"),
        ({"max_pixel": 9999}, "unknown option 'max_pixel': did you mean max_pixels"),
        ({"video_start": 99}, "video_start is 99 s"),
        ({"processor_kwargs": {"videos": 1}}, "processor_kwargs has 'videos'"),
    ],
)
def test_options_that_cannot_be_are_one_line(tiny, keys, words):
    with pytest.raises(BadRequest, match=words) as error:
        tiny.inputs(CLIP, **keys)
    assert "\n" not in str(error.value)


def test_a_processor_of_fixed_size_refuses_sizes_by_name():
    processor = internvl_processor()
    with pytest.raises(BadRequest, match="InternVLVideoProcessor has videos of a fixed size, and takes no max_pixels"):
        fit.read_fitting(processor, part(max_pixels=9999), len, fit.Budget(None, None, lambda pixels: 1))


@pytest.mark.parametrize(("limit", "frames", "scaled"), [(20000, 16, False), (2000, 16, True), (500, 8, True)])
def test_a_budget_lowers_pixels_first_and_then_frames(scaling, limit, frames, scaled):
    options = MediaOptions()
    planned = plan(scaling, [(16, 720, 1280, options)], limit, 1 << 62)
    size = scaling.size(planned.most, 720, 1280, options, planned.cap)
    assert planned.most == frames and (size != scaling.size(16, 720, 1280, options)) == scaled
    assert 0.7 * limit < scaling.tokens(planned.most, size) <= limit or not scaled
    assert scaling.tokens(1, size) >= 0.8 * 128


def test_a_budget_is_met_before_frames_are_decoded_and_said(tiny, monkeypatch):
    prepared, frames = [], np.random.default_rng(0).integers(0, 255, (8, 360, 640, 3), np.uint8)
    real = memory.prepare
    monkeypatch.setattr(memory, "prepare", lambda *given: prepared.append(1) or real(*given))
    out = tiny.generate(frames, max_video_tokens=600, max_new_tokens=2, method="ar")
    (warning,) = out.warnings
    assert len(prepared) == 1 and 500 < out.stats.video_tokens <= 600
    assert warning.startswith("frames is scaled to ") and warning.endswith(", from 640x360: --max-video-tokens is 600")


def test_the_context_is_a_budget_too(tiny, monkeypatch):
    monkeypatch.setattr(tiny.pair.target.config.get_text_config(), "max_position_embeddings", 400)
    inputs = tiny.inputs(np.zeros((8, 360, 640, 3), np.uint8))
    assert 300 < inputs["input_ids"].shape[1] < 400
