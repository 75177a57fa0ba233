"""Which images of a prompt are a video's frames, where only the text between them tells."""

import pytest
import torch

from hippo.errors import HippoError
from hippo.families.base import prompt_of_images

FRAME = 4  # tokens, of 2 x 2
IMAGE = 9


def place(*runs):
    """The prompt of (tokens of text, tokens of an image after it), with two more of text at its end."""
    ids = [token for words, images in runs for token in [1] * words + [IMAGE] * images] + [1, 1]
    return prompt_of_images({"input_ids": torch.tensor([ids])}, IMAGE, sum(size for _, size in runs) // FRAME, 2)


def frames(*runs):
    return [grid.frames for grid in place(*runs).grids]


def test_a_video_is_frames_with_a_label_each():
    prompt = place((20, FRAME), *[(7, FRAME)] * 8, *[(8, FRAME)] * 3)  # from the tenth on, the number has two digits
    (grid,) = prompt.grids
    assert (grid.frames, grid.rows, grid.columns) == (12, 2, 2)
    assert prompt.video_at.tolist() == (prompt.input_ids == IMAGE).nonzero()[:, 0].tolist()
    assert prompt.positions.tolist() == [list(range(len(prompt.input_ids)))]
    assert prompt.next_position.tolist() == [len(prompt.input_ids)]


def test_words_between_part_two_videos():
    assert frames((20, FRAME), (7, FRAME), (7, FRAME), (15, FRAME), (7, FRAME)) == [3, 2]


def test_images_beside_a_video_are_not_its_frames():
    assert frames((5, FRAME), (15, FRAME), (7, FRAME), (30, FRAME)) == [2]
    assert frames((5, 3 * FRAME), (7, FRAME), (7, FRAME), (7, 5 * FRAME)) == [2]
    assert frames((5, FRAME), (2, FRAME), (3, FRAME), (40, FRAME), (13, FRAME), (13, FRAME)) == [3]


def test_images_by_themselves_are_no_video():
    assert frames((5, FRAME)) == frames((5, FRAME), (3, FRAME), (3, FRAME)) == frames((5, 3 * FRAME)) == []
    assert frames((5, 3 * FRAME), (9, 3 * FRAME), (9, 3 * FRAME)) == frames() == []


def test_other_tokens_than_pixels_are_refused():
    with pytest.raises(HippoError, match="8 video tokens in the prompt, 12 in the videos"):
        prompt_of_images({"input_ids": torch.tensor([[1, *[IMAGE] * 8, 1]])}, IMAGE, 3, 2)
