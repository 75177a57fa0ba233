"""What `return_tokens` says of an answer."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import hippo
from hippo.checkpoints import BUNDLED
from hippo.families import VideoGrid
from hippo.serve.page import Account, shown_frames
from hippo.trace import Kept
from hippo.video import Video

CLIP = BUNDLED / "demo.mp4"


def flat(count, height=48, width=64):
    """Frame i has the grey value i."""
    return Video(
        np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 3)), fps=4
    )


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))


@pytest.mark.usefixtures("patient_targets")
def test_pieces_add_up_to_the_answer(tiny):
    account = Account(tiny.processor.tokenizer)
    content = [{"type": "video", "video": str(CLIP)}, {"type": "text", "text": "Describe the video in detail."}]
    stream = tiny.stream(hippo.Request([{"role": "user", "content": content}], on_read=account.on_read))
    pieces = [account.more(stream) for _ in stream]
    account.draw(stream)
    pieces.append(account.last(stream))
    tokens = [token for piece in pieces for token in piece["tokens"]]
    output = stream.output
    assert "".join(token["text"] for token in tokens) == output.text
    assert len(tokens) == len(output.tokens) and sum(token["drafted"] for token in tokens) == output.stats.accepted
    spans = [span for piece in pieces for span in piece["timeline"]]
    assert sorted(span["began"] for span in spans) == [span.began for span in output.timeline]
    (video,) = pieces[-1]["videos"]
    (grid,) = output.kept.grids
    assert (len(video["frames"]), video["rows"], video["columns"]) == (grid.frames, grid.rows, grid.columns)
    cells = [step * grid.rows * grid.columns + cell for step, one in enumerate(video["frames"]) for cell in one["kept"]]
    assert cells == output.kept.indices.tolist()


def test_each_video_has_its_own_kept_cells_and_the_last_frame_of_each_step():
    first, second = VideoGrid(2, 2, 2), VideoGrid(3, 1, 2, with_token=torch.tensor([0, 1, 3, 5]))
    kept = Kept(torch.tensor([1, 6, 8, 10, 11]), (first, second))
    one, two = shown_frames([flat(4), flat(3)], kept)
    assert [frame["kept"] for frame in one["frames"]] == [[1], [2]]
    assert [frame["kept"] for frame in two["frames"]] == [[0], [1], [1]]
    assert [frame["time"] for frame in one["frames"]] == [0.25, 0.75]
    assert [round(np.asarray(opened(frame["image"])).mean()) for frame in one["frames"]] == [1, 3]


def test_without_a_draft_all_frames_and_nothing_kept():
    (video,) = shown_frames([flat(5)], None)
    assert [frame["kept"] for frame in video["frames"]] == [None] * 5


def test_pictures_are_small_and_few():
    (video,) = shown_frames([flat(200, 400, 800)], None)
    assert len(video["frames"]) == 100 and opened(video["frames"][0]["image"]).size == (320, 160)
