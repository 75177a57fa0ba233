"""hippo world: a clip and its truth, both whole or neither."""

import json

import pytest
from typer.testing import CliRunner

from hippo.cli.app import app
from hippo.errors import BadRequest


def world(*arguments):
    return CliRunner().invoke(app, ["world", "--seed", "5", *map(str, arguments)], catch_exceptions=False)


def test_a_clip_and_its_truth(tmp_path):
    clip, truth = tmp_path / "clip.mp4", tmp_path / "truth.json"
    truth.write_text("old")
    assert world("--out", clip, "--truth", truth).exit_code == 0
    facts = json.loads(truth.read_text())
    assert clip.stat().st_size > 1000 and facts["seed"] == 5 and facts["description"] and facts["facts"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "truth.json"]


def test_a_truth_that_cannot_be_written_is_blamed_and_leaves_no_clip(tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_text("old")
    with pytest.raises(BadRequest, match=r"^/dev/full cannot be written \(No space left on device\)"):
        world("--out", clip, "--truth", "/dev/full")
    assert clip.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_clip_that_cannot_be_written_leaves_no_truth(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(BadRequest, match=r"clip\.mp4 cannot be written \(Is a directory\)"):
        world("--out", tmp_path / "clip.mp4", "--truth", tmp_path / "truth.json")
    assert not (tmp_path / "truth.json").exists()


@pytest.mark.parametrize(
    ("out", "words"), [("no/clip.mp4", "there is no folder"), ("clip.avi", r"does not end in \.mp4")]
)
def test_a_place_that_cannot_be(tmp_path, out, words):
    with pytest.raises(BadRequest, match=words):
        world("--out", tmp_path / out)
