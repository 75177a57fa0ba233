"""Clips we write."""

from fractions import Fraction

import numpy as np
import pytest

from hippo.video import read_video, write_video


def test_a_written_clip_has_its_frames_its_size_and_its_pace(tmp_path):
    shades = [30, 90, 150, 210]
    images = (np.full((46, 80, 3), shade, np.uint8) for shade in shades)
    write_video(images, tmp_path / "clip.mp4", Fraction(5, 2), (80, 46))
    video = read_video(tmp_path / "clip.mp4")
    assert video.frames.shape == (4, 46, 80, 3) and video.duration == pytest.approx(1.6, abs=0.01)
    assert np.abs(video.frames.mean((1, 2, 3)) - shades).max() < 4
