"""hippo bench: short forms of the studies. They check words and counts, never seconds."""

import json
import subprocess
from functools import partial

import pytest
from typer.testing import CliRunner

from hippo.bench import long, memory, scoring, serving, speed
from hippo.cli.app import app
from hippo.cli.demo import CLIP
from hippo.errors import HippoError


def bench(*arguments):
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if isinstance(done.exception, HippoError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def few_steps(monkeypatch):
    """Steps are timed a few times only: their seconds are not looked at."""
    monkeypatch.setattr(speed, "steps", partial(speed.steps, count=2))


@pytest.fixture
def few_looks(monkeypatch):
    """Memory is read five times a second: reading it takes a third of a core at fifty."""
    monkeypatch.setattr(memory, "EVERY", 0.2)


def in_this_process(command, **_):
    """Stands for `subprocess.run`, where one start of an interpreter is enough to see that it works."""
    done = CliRunner().invoke(app, command[3:], catch_exceptions=False)
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)


@pytest.mark.usefixtures("patient_targets", "few_steps", "few_looks")
def test_speed_compares_words_and_counts_forwards(tmp_path, monkeypatch):
    peak = speed.peak
    monkeypatch.setattr(speed, "peak", lambda command: peak(command) if command[2] == "hippo" else len(command[2]))
    methods = "static,assisted,sd,specvlm,pearl,hippo,wrong-draft"
    out = tmp_path / "speed"
    result = json.loads(
        bench("speed", "--methods", methods, "--runs", 1, "--max-new-tokens", 24, "--out", out, "--json")
    )
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["generate", "ar", *methods.split(",")]
    assert all(row["identical"] is True and row["new_tokens"] == 24 and not row["synthetic"] for row in rows.values())
    assert rows["ar"]["target_forwards"] == 23 and rows["ar"]["speedup_vs_ar"]["median"] == 1
    for name in ("sd", "specvlm", "pearl", "hippo"):
        assert rows[name]["target_forwards"] < 23 and rows[name]["efficiency"] > 0
    assert rows["wrong-draft"]["target_forwards"] == 23 and rows["wrong-draft"]["acceptance_rate"] == 0
    assert rows["hippo"]["peak_memory"] > 100 << 20, "of a process of its own, which takes its time"
    assert all(row["peak_memory"] == len(name) for name, row in rows.items() if name != "hippo")
    assert json.loads((out / "speed.json").read_text()) == result
    assert (out / "speed.md").read_text().count("| yes |") == len(rows)


@pytest.mark.parametrize("clip", [True, False])
def test_speed_asks_each_prompt_once(tmp_path, monkeypatch, clip):
    asked, file = [], tmp_path / "prompts.txt"
    stream = speed.VideoLLM.stream

    def watched(self, video, prompt, **options):
        asked.append((options["decoder"], video is not None, prompt))
        return stream(self, video, prompt, **options)

    monkeypatch.setattr(speed.VideoLLM, "stream", watched)
    file.write_text("What moves?\n\nWhat colour is it?\n")
    also = ["--video", CLIP] if clip else []
    text = bench("speed", "--prompts", file, *also, "--methods", "hippo", "--max-new-tokens", 4)
    questions = ["What moves?", "What moves?", "What colour is it?"]
    assert asked == [(decoder, clip, one) for one in questions for decoder in ("ar", "auto")]
    assert "| hippo | 4 |" in text and text.count("| yes |") == 3


def test_speed_in_a_conversation(tmp_path, monkeypatch):
    """Every method gets the same turns, with the answers of ar."""
    asked, stream = [], speed.VideoLLM.stream

    def watched(self, messages, **options):
        words = [part["text"] for turn in messages for part in turn["content"] if part["type"] == "text"]
        asked.append((options["decoder"], words, [part["type"] for part in messages[0]["content"]]))
        return stream(self, messages=messages, **options)

    monkeypatch.setattr(speed.VideoLLM, "stream", watched)
    file = tmp_path / "prompts.txt"
    file.write_text("What moves?\nWhat moves?\nWhere?\n")
    options = ("--models", "tiny,ngram", "--methods", "hippo", "--prompts", file, "--max-new-tokens", 6)
    text = bench("speed", *options, "--chat")
    assert [way for way, _, _ in asked] == ["ar", "auto"] * 4 and all(first[0] == "video" for _, _, first in asked)
    assert all(plain[1] == ours[1] for plain, ours in zip(asked[::2], asked[1::2], strict=True))
    assert asked[-1][1][::2] == ["What moves?", "What moves?", "Where?"] and len(asked[-1][1]) == 5
    assert "| decode vs our ar |" in text and text.count("| yes |") == 3


def test_speed_without_a_draft_model_and_past_the_end_of_answers(tmp_path):
    (tmp_path / "prompts.txt").write_text("Say hello.\n")
    options = ("--prompts", tmp_path / "prompts.txt", "--max-new-tokens", 60, "--ignore-eos", "--json")
    methods = ("--methods", "assisted,hippo,pearl,wrong-draft")
    result = json.loads(bench("speed", "--models", "tiny,ngram", *methods, *options))
    rows = {row["method"]: row for row in result["rows"]}
    assert result["machine"]["draft"] == "ngram" and result["steps"] == {}
    assert all(rows[name]["new_tokens"] == 60 and rows[name]["identical"] for name in ("generate", "ar", "hippo"))
    assert rows["hippo"]["peak_memory"] is None and rows["hippo"]["target_forwards"] <= 59
    assert "needs a draft model" in rows["assisted"]["cannot_run"] and "in turns" in rows["pearl"]["cannot_run"]
    assert "without a model" in rows["wrong-draft"]["cannot_run"]


@pytest.mark.usefixtures("patient_targets", "few_steps")
def test_speed_with_drawn_verdicts_is_synthetic_and_may_have_any_context(tmp_path):
    picture = tmp_path / "timeline.svg"
    result = json.loads(
        bench("speed", "--methods", "hippo", "--runs", 1, "--max-new-tokens", 16, "--acceptance", 1, "--context", 600,
              "--timeline", picture, "--json")
    )  # fmt: skip
    assert picture.read_text().count("target forwards after the prompt") == 2, "of ar and hippo"
    generate, alone, hippo = result["rows"]
    assert generate["synthetic"] and generate["identical"] is None and generate["new_tokens"] == 16
    assert alone["target_forwards"] == 15 > hippo["target_forwards"] and hippo["acceptance_rate"] == 1


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--methods", "magic"), "unknown method 'magic'"),
        (("--methods", "serial+magic"), "unknown pruner 'magic'"),
        (("--acceptance", "2"), "neither measured nor in"),
        (("--models", "shape:none", "--acceptance", "0.8"), "unknown shape 'none'"),
        (("--models", "shape:qwen2.5-vl-7b"), "no acceptance to measure"),
        (("--models", "some/target"), "no draft model"),
        (("--models", "tiny,ngram", "--acceptance", "0.8"), "drafter 'ngram' has no model"),
        (("--ignore-eos", "--acceptance", "0.8"), "no end to ignore"),
        (("--chat",), "a conversation needs its questions"),
        (("--draft-bits", "5"), "draft_bits '5'"),
        (("--timeline", "timeline.txt"), "timeline.txt is no picture"),
        (("--timeline", "/nowhere/timeline.svg"), "there is no folder /nowhere"),
        (("--prompts", "/nowhere.txt"), "/nowhere.txt cannot be read"),
        (("--prompts", __file__, "--acceptance", "0.8"), "say nothing of prompts"),
    ],
)
def test_speed_says_what_it_cannot_do(arguments, cause):
    with pytest.raises(HippoError, match=cause):
        bench("speed", *arguments)


class Fake:
    """A subject that answers at once, and whose generate() takes no other options."""

    synthetic = ""

    def library(self, tokens, also):
        if also:
            raise ValueError("this model has\nno static cache")
        return speed.Run([1] * tokens, 2.0, 1.0)

    def ours(self, options):
        return speed.Run([1] * options.max_new_tokens, 1.0, 0.5)


def test_a_method_that_cannot_run_is_a_row_with_the_reason():
    rows = speed.measure(Fake(), Fake(), None, ["static", "assisted"], 2, 8, lambda name, share: None)
    assert [row["method"] for row in rows] == ["generate", "ar", "static", "assisted"]
    assert rows[1]["speedup_vs_transformers"]["median"] == 2 and rows[1]["cannot_run"] is None
    reasons = ["this model has no static cache", "transformers' assisted generation needs a draft model"]
    assert [row["cannot_run"] for row in rows[2:]] == reasons and not any(row["seconds"] for row in rows[2:])


def test_identical_says_so_clip_by_clip():
    result = json.loads(bench("identical", "--clips", 1, "--json"))
    (clip,) = result["clips"]
    assert result["identical"] is True and clip["seed"] == 90001 and set(clip["identical"].values()) == {True}


def test_scoring_measures_seconds_and_memory(monkeypatch):
    run = subprocess.run

    def one_apart(command, **options):
        if command[-1] == "hippo":
            return run(command, **options)
        of = scoring.prefill(command[3], *map(int, command[4:6]), command[6])
        return subprocess.CompletedProcess(command, 0, json.dumps(of))

    monkeypatch.setattr(subprocess, "run", one_apart)
    (row,) = json.loads(bench("scoring", "--tokens", 128, "--layers", 2, "--runs", 1, "--json"))["rows"]
    assert row["video_tokens"] == 128 and row["layers"] == 2 and 0 < row["scoring_seconds"] < row["prefill_seconds"] * 9
    with pytest.raises(HippoError, match="not a multiple of 64"):
        bench("scoring", "--tokens", 100)


@pytest.mark.usefixtures("few_looks")
def test_a_long_clip_takes_memory_that_is_known_and_gets_the_same_words(monkeypatch):
    peak = long.peak

    def one_apart(command, out):
        if "hippo" in command[2:]:
            return peak(command, out)
        out.write_text(in_this_process(["python", *command]).stdout)
        return 1 << 40

    monkeypatch.setattr(long, "peak", one_apart)
    result = json.loads(bench("long", "--minutes", 0.25, "--fps", 2, "--max-new-tokens", 8, "--json"))
    assert result["identical"] and [row["method"] for row in result["rows"]] == ["hippo", "ar"]
    hippo, alone = result["rows"]
    assert hippo["video_tokens"] == 15 * 64 == alone["video_tokens"] and hippo["kept_tokens"] == 96
    assert hippo["peak_memory"] > hippo["above_weights"] > 100 << 20
    assert len(hippo["token_ids"]) == 8 and hippo["kv_cache_mib"] > 960 * 12 / 1024


def test_serve_asks_the_library_and_a_server_the_same():
    result = json.loads(bench("serve", "--concurrency", "1,2", "--requests", 2, "--max-new-tokens", 8, "--json"))
    rows = result["rows"]
    assert [(row["subject"], row["concurrency"]) for row in rows] == [
        (name, at_once) for at_once in (1, 2) for name in ("library", "server")
    ]
    for row in rows:
        assert row["same_texts"] and 0 < row["first_seconds"]["median"] < row["seconds"]["median"]
        assert row["tokens_a_second"] > 0 and row["second_question_first_seconds"]["median"] > 0
        assert row["second_question_over_first"] == 1 or row["subject"] == "server"


def test_serve_for_some_seconds_finds_what_grows_and_what_fails():
    arguments = ("serve", "--minutes", 0.05, "--concurrency", 2, "--max-new-tokens", 4, "--json")
    result = json.loads(bench(*arguments))
    assert result["errors"] == {} and result["same_texts"] and result["answers"] >= 2 and result["seconds"] >= 3
    assert result["tokens_a_second"] > 0 and result["library_tokens_a_second"] > 0
    assert result["memory_first_minute"] > 100 << 20 and abs(result["growth"]) < 1


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--url", "http://127.0.0.1:9"), "does not answer"),
        (("--concurrency", "1,x"), "no whole numbers"),
        (("--minutes", "1", "--concurrency", "1,8"), "one server"),
        (("--minutes", "1", "--url", "http://a", "--url", "http://b"), "one server"),
    ],
)
def test_serve_says_what_it_cannot_do(arguments, cause):
    with pytest.raises(HippoError, match=cause):
        bench("serve", *arguments)


def test_a_batch_job_beside_a_loop_and_a_command_each(monkeypatch):
    monkeypatch.setattr(serving.subprocess, "run", in_this_process)
    arguments = ["bench", "batch", "--clips", "2", "--commands", "1", "--max-new-tokens", "4", "--json"]
    found = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert found["identical"] and len(found["batch"]) == len(found["loop"]) == 2 and len(found["commands"]) == 1
    assert min(found["batch"] + found["loop"] + found["commands"]) > 0
