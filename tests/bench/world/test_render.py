"""Pictures."""

import numpy as np
import pytest

from hippo.bench.world.render import render, write_clip
from hippo.bench.world.scene import COLOURS, SHAPES, make_scene
from hippo.video import read_video


def test_objects_are_where_and_as_the_scene_says():
    for seed in range(20):
        scene = make_scene(seed)
        frame = render(scene, [0.0])[0]
        for thing in scene.things:
            look = thing.first
            if look.visible and thing.shape != "ring":
                pixel = frame[round(look.y * 224), round(look.x * 224)].astype(int)
                assert np.abs(pixel - COLOURS[look.colour]).max() <= 2


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_differ(shape):
    from hippo.bench.world.render import _mask

    others = [_mask(other, 20) for other in SHAPES if other != shape]
    assert min(np.abs(_mask(shape, 20) - other).mean() for other in others) > 0.05


def test_a_written_clip_reads_back(tmp_path):
    scene = make_scene(3)
    write_clip(scene, tmp_path / "clip.mp4")
    video = read_video(tmp_path / "clip.mp4", frames=8)
    assert video.duration == pytest.approx(scene.duration, abs=0.2) and video.frames.shape == (8, 224, 224, 3)
    last = scene.duration
    drawn = render(scene, [min(1.0, t / (last - 1 / 12)) for t in video.timestamps])
    assert np.abs(drawn.astype(int) - video.frames.astype(int)).mean() < 4
