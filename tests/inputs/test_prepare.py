"""From a clip to inputs: true times, no second sampling, the video before the question."""

import numpy as np
import pytest
import torch

from hippo.cli.demo import CLIP
from hippo.inputs import prepare
from hippo.video import read_video


def test_frames_and_times_are_those_of_the_video(tiny):
    video = read_video(CLIP, frames=8)
    inputs = prepare(tiny.processor, video, "What happens?")
    assert inputs["video_grid_thw"].tolist() == [[4, 16, 16]]
    step = np.diff(video.timestamps).mean()
    assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(2 * step, rel=0.05)
    ids = inputs["input_ids"][0].tolist()
    text = tiny.processor.tokenizer.decode(ids)
    assert text.index("<|video_pad|>") < text.index("What happens?") < text.index("assistant")
    assert ids.count(tiny.pair.target.config.video_token_id) == 4 * 8 * 8


def test_pixels_are_the_frames(tiny):
    video = read_video(CLIP, frames=2)
    inputs = prepare(tiny.processor, video, "?")
    patch = inputs["pixel_values_videos"][0].view(3, 2, 14, 14)
    mean, std = (
        torch.tensor(tiny.processor.video_processor.image_mean),
        torch.tensor(tiny.processor.video_processor.image_std),
    )
    shown = (patch * std.view(3, 1, 1, 1) + mean.view(3, 1, 1, 1)) * 255
    corner = torch.from_numpy(video.frames[:, :14, :14]).permute(3, 0, 1, 2).float()
    assert (shown - corner).abs().max() < 1
