"""hippo caption and verify with several clips: an answer for each, unless one for all is asked for."""

import json

import av
import pytest
from typer.testing import CliRunner

from hippo.cli import common
from hippo.cli.app import app
from hippo.cli.demo import CLIP
from hippo.errors import BadRequest, HippoError

SHORT = ["--max-new-tokens", "4", "--method", "ar"]


@pytest.fixture(autouse=True)
def _loaded_once(tiny, monkeypatch):
    """One pair for all tests, which a command does not close."""
    monkeypatch.setattr(tiny, "close", lambda: None)
    monkeypatch.setattr("hippo.llm.load", lambda *_, **__: tiny)


@pytest.fixture
def clips(tmp_path):
    """Two good clips, one that is no clip, one that is not there."""
    good = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path in good:
        path.write_bytes(CLIP.read_bytes())
    (tmp_path / "bad.mp4").write_text("not a video")
    return [*good, tmp_path / "bad.mp4", tmp_path / "nowhere.mp4"]


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_several_clips_are_several_answers_each_under_its_name(clips):
    alone = run("caption", clips[0], *SHORT).stdout
    done = run("caption", clips[0], clips[0], clips[1], *SHORT)
    assert done.exit_code == 0 and "==>" not in alone
    heads = [f"==> {clip} <==\n" for clip in (clips[0], clips[0], clips[1])]
    assert done.stdout == "\n".join(head + alone for head in heads)


def test_json_is_one_line_for_each_clip_with_its_name(clips):
    lines = run("caption", *clips[:2], *SHORT, "--json").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["video"] for answer in answers] == [str(clip) for clip in clips[:2]]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    assert len(run("caption", clips[0], *SHORT, "--json").stdout.splitlines()) == 1


def test_together_is_one_prompt(clips):
    one, both = (
        json.loads(run("caption", *chosen, *SHORT, "--json").stdout)["stats"]
        for chosen in (clips[:1], [*clips[:2], "--together"])
    )
    assert both["video_tokens"] == 2 * one["video_tokens"]


def test_one_bad_clip_among_several_is_a_line_and_the_others_are_answered(clips):
    done = run("caption", *reversed(clips), *SHORT, "--json")
    assert done.exit_code == 2
    assert [json.loads(line)["video"] for line in done.stdout.splitlines()] == [str(clips[1]), str(clips[0])]
    lines = [line for line in done.stderr.splitlines() if line.startswith("hippo: ")]
    assert len(lines) == 2 and "nowhere.mp4 does not exist" in lines[0] and "bad.mp4 is not a video" in lines[1]


def test_a_pruner_and_a_drafter_of_ones_own(clips, tmp_path, monkeypatch):
    (tmp_path / "own_pruners.py").write_text("def keep(signals, keep_ratio): return [1, 3, 5]")
    monkeypatch.syspath_prepend(tmp_path)
    done = run("caption", clips[0], "--pruner", "own_pruners:keep", "--max-new-tokens", 4, "--json")
    assert json.loads(done.stdout)["stats"]["kept_tokens"] == 3
    assert json.loads(done.stdout)["method"] == "auto + own_pruners:keep"
    with pytest.raises(BadRequest, match="pruner 'own_pruners:nothing' does not load"):
        run("caption", clips[0], "--pruner", "own_pruners:nothing")
    given = {}
    monkeypatch.setattr("hippo.llm.load", lambda *models, **where: given.update(where, models=models) or 1 / 0)
    for command in (["caption"], ["verify"], ["chat"], ["batch", "--out", tmp_path / "answers.jsonl"]):
        with pytest.raises(ZeroDivisionError):
            run(*command, clips[0], "--target", "some/target", "--drafter", "mine:Mine")
        assert given["drafter"] == "mine:Mine" and given["models"] == ("some/target", None)


def test_an_option_that_cannot_be_is_told_once_whatever_the_clips(clips):
    with pytest.raises(HippoError, match="frames must be"):
        run("caption", *clips, "--frames", 0)


def test_no_model_is_loaded_where_no_clip_is_there(clips, monkeypatch):
    monkeypatch.setattr("hippo.llm.load", None)
    assert run("caption", clips[3], clips[3]).exit_code == 2


@pytest.mark.parametrize("command", ["caption", "verify"])
def test_a_folder_says_what_to_run(command, tmp_path):
    folder = tmp_path / "my clips"
    folder.mkdir()
    with pytest.raises(BadRequest, match=rf"is a folder, not a video: run hippo {command} '.*/my clips'/\*\.mp4"):
        run(command, CLIP, folder)


def test_content_in_place_of_a_path_is_one_short_line():
    with pytest.raises(HippoError, match="is no path") as error:
        run("caption", "A" * 5000)
    assert len(str(error.value)) < 200


def test_verify_reports_on_each_clip(clips):
    done = run("verify", *clips[:3], "--max-new-tokens", 4, "--json")
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 2 and [report["video"] for report in reports] == [str(clip) for clip in clips[:2]]
    (report,) = map(json.loads, run("verify", *clips[:2], "--together", *SHORT[:2], "--json").stdout.splitlines())
    assert report["videos"] == [str(clip) for clip in clips[:2]]
    assert report["video_tokens"] == 2 * reports[0]["video_tokens"]


def test_a_clip_is_read_once(clips, monkeypatch):
    scanned = []
    opened = av.open
    monkeypatch.setattr(av, "open", lambda file, *rest, **how: scanned.append(file) or opened(file, *rest, **how))
    run("caption", clips[0], *SHORT)
    assert len(scanned) == 1


def test_min_p_and_repetition_penalty_reach_the_library(monkeypatch):
    asked = {}

    def params_of(options):
        asked.update(options)
        raise BadRequest("seen")

    monkeypatch.setattr(common, "params_of", params_of)
    with pytest.raises(BadRequest, match="seen"):
        run("caption", CLIP, "--min-p", 0.1, "--repetition-penalty", 1.2)
    assert (asked["min_p"], asked["repetition_penalty"]) == (0.1, 1.2)


def test_a_clip_from_standard_input_and_parts_of_it(clips):
    part = ["--start", 1, "--end", 3, "--frames", 4, "--max-pixels", 112 * 112]
    by_path = json.loads(run("caption", clips[0], *SHORT, *part, "--json").stdout)
    arguments = ["caption", "-", *SHORT, *part, "--json", "--compare"]
    done = CliRunner().invoke(app, [*map(str, arguments)], input=CLIP.read_bytes(), catch_exceptions=False)
    answer = json.loads(done.stdout)
    assert answer["token_ids"] == by_path["token_ids"] and answer["video"] == "-" and answer["identical"]
    assert answer["stats"]["video_tokens"] == 2 * 4 * 4


def test_a_url_is_refused_with_no_fetch():
    with pytest.raises(HippoError, match=r"clip.mp4 is a URL, and fetching is off: download it, or leave --no-fetch"):
        run("caption", "http://127.0.0.1:1/clip.mp4", *SHORT, "--no-fetch")
