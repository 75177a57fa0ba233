"""Frames cut into patches before they are normalised: the bits of transformers' own processors."""

import pytest
import torch
from transformers import (
    InternVLVideoProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
    VideoLlama3VideoProcessor,
)

from hippo.cli.demo import CLIP
from hippo.inputs import messages_of, patches, prepare, read_messages
from hippo.inputs.patches import patches_first

KNOWN = (Qwen2VLVideoProcessor, Qwen3VLVideoProcessor, VideoLlama3VideoProcessor)
MEAN = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
GIVEN = {"do_sample_frames": False, "return_metadata": False, "return_tensors": "pt"}


def frames(count, height=70, width=122, dtype=torch.uint8):
    values = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(count))
    return values.to(dtype)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("options", [{}, {"do_normalize": False}, {"do_rescale": False}, {"do_resize": True}])
def test_the_pixels_are_those_of_the_processor(known, options):
    theirs = known(**MEAN)
    mine = patches_first(theirs)
    assert mine is not theirs and type(mine) is not known and type(theirs) is known
    side = 4 * theirs.patch_size * theirs.merge_size
    several = [frames(4), frames(2, 122, 70), frames(4)]
    for clips in ([frames(4)], [frames(5)], several, [frames(2, dtype=torch.float32)]):
        given = {"videos": clips, "size": {"shortest_edge": side**2, "longest_edge": 4 * side**2}, **GIVEN, **options}
        expected, got = theirs(**given), mine(**given)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert value.dtype == got[name].dtype and torch.equal(value, got[name]), (name, options)


class OtherPatches(Qwen2VLVideoProcessor):
    """Patches whose channels come last."""

    __module__ = Qwen2VLVideoProcessor.__module__

    def patchify(self, videos, *sizes, **named):
        patches, *grid = super().patchify(videos, *sizes, **named)
        return patches.unflatten(-1, (3, -1)).mT.flatten(-2), *grid


@pytest.mark.parametrize("videos", [OtherPatches(**MEAN), InternVLVideoProcessor(), None])
def test_other_processors_are_left_as_they_are(videos):
    assert patches_first(videos) is videos


def test_a_request_has_the_bits_that_the_processor_itself_gives(tiny, monkeypatch):
    messages = read_messages(messages_of(CLIP, "?"), frames=5)
    ours, read = prepare(tiny.processor, messages), tiny.inputs(CLIP, "?", frames=5)
    monkeypatch.setattr(patches, "_swapped", lambda known: None)
    theirs = prepare(tiny.processor, messages)
    for name in ("pixel_values_videos", "video_grid_thw", "input_ids"):
        assert torch.equal(ours[name], theirs[name]) and torch.equal(read[name], theirs[name])
    assert type(tiny.processor.video_processor) is Qwen2VLVideoProcessor
