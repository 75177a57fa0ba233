"""hippo explain: its pictures, its words, and what it leaves behind when it fails."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import hippo
from hippo.bench.pruners import ABLATIONS
from hippo.cli.app import app
from hippo.cli.demo import CLIP
from hippo.cli.explain import _folders, all_or_nothing
from hippo.errors import HippoError
from hippo.families import VideoGrid
from hippo.pruning import PRUNERS, pruner_named
from hippo.report.kept import caption
from hippo.report.pictures import HEADING, LINE, score_sheet
from hippo.video import read_video

FILES = ["caption.txt", "kept.mp4", "kept.png", "scores.png"]


def explain(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)], catch_exceptions=False)


def test_json_agrees_with_itself_and_with_the_files(tmp_path):
    out = tmp_path / "pictures"
    done = explain(CLIP, "--out", out, "--frames", 8, "--keep-ratio", 0.25, "--pruners", "uniform,hippo", "--json")
    result = json.loads(done.stdout)
    frames, rows, columns = result["grid"]
    assert len(result["times"]) == frames and result["times"] == sorted(result["times"])
    assert list(result["kept"]) == list(result["per_frame"]) == ["uniform", "hippo"]
    for name, kept in result["kept"].items():
        assert len(kept) == round(0.25 * frames * rows * columns)
        assert result["per_frame"][name] == np.bincount(np.array(kept) // (rows * columns), minlength=frames).tolist()
    assert result["files"] == [str(out / name) for name in FILES] and sorted(p.name for p in out.iterdir()) == FILES
    assert (out / "caption.txt").read_text() == result["caption"] + "\n"
    assert Image.open(out / "kept.png").width >= 640 and Image.open(out / "scores.png").width >= 640
    clip, source = read_video(out / "kept.mp4", frames=8), read_video(CLIP, frames=1)
    assert clip.duration == pytest.approx(source.duration, abs=0.1)
    assert all(side % 2 == 0 for side in clip.frames.shape[1:3]) and clip.source_fps >= 12


def test_every_pruner_judges_by_the_attention_it_asks_for(tmp_path):
    names = ["attention", "specvlm", "hippo", "uniform"]
    done = explain(CLIP, "--out", tmp_path, "--frames", 4, "--pruners", ",".join(names), "--json")
    kept = json.loads(done.stdout)["kept"]
    with hippo.load("tiny", start_draft=False) as llm:
        inputs = llm.inputs(CLIP, frames=4)
        for name in names:
            _, (signals,) = llm.pair.look(inputs, pruner_named(name).attention)
            assert kept[name] == pruner_named(name).keep(signals, 0.1).tolist()


def test_words_go_to_stdout_and_old_pictures_make_way(tmp_path, monkeypatch):
    monkeypatch.setitem(PRUNERS, "temporal", ABLATIONS["temporal"])
    (tmp_path / "kept.png").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    done = explain(CLIP, "--out", tmp_path, "--frames", 2, "--pruners", "temporal")
    assert "warning: the video tokens' scores are all equal" in done.stderr  # two frames are one step: nothing is new
    assert (
        done.stdout.startswith("The question: Describe the video in detail.\ntemporal kept ")
        and done.stdout == (tmp_path / "caption.txt").read_text()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "mine.txt"])
    assert Image.open(tmp_path / "kept.png").format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.mp4"], "nowhere.mp4"),
        ([CLIP, "--pruners", "hippo,magic"], "unknown pruner 'magic'"),
        ([CLIP, "--pruners", ""], "unknown pruner ''"),
        ([CLIP, "--keep-ratio", 0], "keep_ratio 0 is not in"),
        ([CLIP, "--keep-ratio", 1.5], "keep_ratio 1.5 is not in"),
        ([CLIP, "--frames", 0], "frames"),
        ([CLIP, "--target", "./nowhere"], "no checkpoint folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, words):
    with pytest.raises(HippoError, match=words) as error:
        explain(*arguments, "--out", tmp_path / "pictures")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    for out, words in ((tmp_path / "file", "is not a folder"), (tmp_path / "no" / "folder", "there is no folder")):
        with pytest.raises(HippoError, match=words):
            explain(CLIP, "--out", out)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), HippoError("so")])
@pytest.mark.parametrize("before", [True, False])
def test_a_failure_leaves_the_folder_as_it_was(tmp_path, failure, before):
    out = tmp_path / "pictures"
    if before:
        out.mkdir()
        (out / "kept.png").write_text("old")
    expected = HippoError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), all_or_nothing(out) as folder:
        (folder / "kept.png").write_text("half")
        raise failure
    assert out.exists() == before
    assert not before or [path.read_text() for path in out.iterdir()] == ["old"]


def test_several_clips_have_a_folder_each_and_one_that_fails_is_a_line(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "demo.mp4").write_bytes(CLIP.read_bytes())
    clips = [CLIP, tmp_path / "gone.mp4", tmp_path / "a" / "demo.mp4"]
    done = explain(*clips, "--out", tmp_path / "all", "--frames", 2, "--pruners", "uniform", "--json")
    assert done.exit_code == 2 and "gone.mp4 does not exist" in done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["kept"] == second["kept"] and second["video"] == str(clips[2])
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["demo-explained", "demo-explained-2"]
    assert sorted(path.name for path in (tmp_path / "all" / "demo-explained-2").iterdir()) == FILES


def test_standard_input_and_a_budget_of_tokens_as_in_caption(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["explain", "-", "--max-video-tokens", "100", "--pruners", "uniform", "--json"]
    done = CliRunner().invoke(app, arguments, input=CLIP.read_bytes(), catch_exceptions=False)
    frames, rows, columns = json.loads(done.stdout)["grid"]
    assert frames * rows * columns <= 100 and "--max-video-tokens is 100" in " ".join(done.stderr.split())
    assert sorted(path.name for path in (tmp_path / "stdin-explained").iterdir()) == FILES


def test_the_default_folder_is_one_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-explained").mkdir()
    (tmp_path / "demo-explained-2").write_text("mine")
    clips = ["demo.mp4", "https://there/a/demo.mp4?key=1", "-", "data:video/mp4;base64,AAAA/"]
    names = [folder.name for folder in _folders(clips, None).values()]
    assert names == ["demo-explained-3", "demo-explained-4", "stdin-explained", "clip-explained"]
    assert _folders(clips[:1], tmp_path / "demo-explained") == {"demo.mp4": tmp_path / "demo-explained"}


def test_scores_are_shown_by_rank():
    frames, scores = [np.zeros((40, 40, 3), np.uint8)], 2.0 ** np.arange(16)
    sheet = [score_sheet(frames, [0.0], VideoGrid(1, 4, 4), {"one": one}) for one in (scores, np.arange(16.0))]
    pictures = [np.asarray(one)[HEADING + 2 * LINE :] for one in sheet]
    assert np.array_equal(*pictures) and len(np.unique(pictures[0].reshape(-1, 3), axis=0)) > 16


def test_the_caption_tells_the_truth():
    grid = VideoGrid(3, 3, 4)  # ten of a frame's twelve places are at its edge
    kept = {
        "one": np.array([5, 6, 7, 17, 18]),
        "other": np.array([5, 6, 30]),
        "all": np.arange(36),
        "none": np.arange(0),
    }
    first, second, third, fourth = caption(kept, grid, [0.5, 1.5, 2.5]).splitlines()
    assert first == (
        "one kept 5 of 36 video tokens: the frame at 0.5 s got most (3), 1 frame got none; 20% of the kept tokens lie "
        "at the frames' edges, which are 83% of all places; it shares 40% of its tokens with other, 100% with all, "
        "0% with none."
    )
    assert second.startswith("other kept 3 of 36 video tokens: the frame at 0.5 s got most (2), 1 frame got none;")
    assert third.startswith("all kept 36 of 36 video tokens: 12 in every frame; 83% of the kept tokens lie")
    assert fourth == "none kept 0 of 36 video tokens."


def test_the_caption_names_no_single_best_frame_where_there_are_two():
    words = caption({"one": np.array([0, 12])}, VideoGrid(4, 3, 4), [0, 1, 2, 3])
    assert "2 frames got most (1 each), 2 frames got none;" in words and "shares" not in words
