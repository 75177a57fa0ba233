"""Clips mixed of real ones are the same for the same seed, and all ways take turns."""

from pathlib import Path

import numpy as np

from hippo.bench.world.mixed import WAYS, write_mixed
from hippo.video import read_video

CLIP = Path("hippo/bundled/demo.mp4")


def test_ways_take_turns_and_seeds_decide(tmp_path):
    frames = []
    for number, seed in enumerate((0, 1, 2, 3, 0)):
        assert write_mixed([CLIP], seed, tmp_path / f"{number}.mp4") == WAYS[seed]
        frames.append(read_video(tmp_path / f"{number}.mp4", frames=4).frames)
    assert all(one.shape == (4, 224, 224, 3) for one in frames)
    assert np.array_equal(frames[0], frames[4]) and not np.array_equal(frames[0], frames[1])
