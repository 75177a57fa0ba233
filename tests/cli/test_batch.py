"""hippo batch: one file of answers, exit codes, and a kill in the middle."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hippo.bench.world import make_scene, write_clip
from hippo.cli.app import app
from hippo.cli.demo import CLIP
from hippo.errors import BadRequest

PAGE = Path(__file__).parents[2] / "docs" / "batch.md"
SHORT = ["--max-new-tokens", "4", "--method", "ar"]


@pytest.fixture
def loaded_once(tiny, monkeypatch):
    """One pair for all tests, which a command does not close."""
    monkeypatch.setattr(tiny, "close", lambda: None)
    monkeypatch.setattr("hippo.llm.load", lambda *_, **__: tiny)


def run(*arguments):
    return CliRunner().invoke(app, ["batch", *map(str, arguments)], catch_exceptions=False)


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(CLIP.read_bytes())
    return folder


def test_a_folder_becomes_a_file_of_answers(loaded_once, clips, tmp_path):
    out = tmp_path / "answers.jsonl"
    done = run(clips, "--out", out, *SHORT)
    assert done.exit_code == 0 and "3 answered now" in done.stderr and not done.stdout
    assert sorted(answer["custom_id"] for answer in answers(out)) == sorted(map(str, clips.iterdir()))
    before = out.read_bytes()
    again = run(clips, "--out", out, *SHORT)
    assert again.exit_code == 0 and "3 of 3 were answered before" in again.stderr and out.read_bytes() == before


def test_some_failed_is_exit_code_3_until_they_are_asked_again(loaded_once, clips, tmp_path):
    out = tmp_path / "answers.jsonl"
    (clips / "c.mp4").write_text("no video")
    done = run(clips, "--out", out, *SHORT)
    assert done.exit_code == 3 and "c.mp4: c.mp4 is not a video" in " ".join(done.stderr.split())
    assert "failed: MediaError" in done.stderr
    (clips / "c.mp4").write_bytes(CLIP.read_bytes())
    assert run(clips, "--out", out, *SHORT).exit_code == 3
    assert run(clips, "--out", out, *SHORT, "--retry-failed").exit_code == 0
    assert [answer["error"] for answer in answers(out)] == 3 * [None]


def test_shards_and_a_prompt_from_a_file(loaded_once, clips, tmp_path):
    (tmp_path / "prompt.txt").write_text("What is at the top?\n")
    for part in ("1/2", "2/2"):
        out = tmp_path / f"{part[0]}.jsonl"
        assert (
            run(clips, "--out", out, "--shard", part, "--prompt-file", tmp_path / "prompt.txt", *SHORT).exit_code == 0
        )
    lines = answers(tmp_path / "1.jsonl") + answers(tmp_path / "2.jsonl")
    assert len({line["custom_id"] for line in lines}) == len(lines) == 3


def test_what_cannot_be_is_said_before_anything_is_loaded(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("hippo.llm.load", None)
    out = ["--out", tmp_path / "answers.jsonl"]
    (tmp_path / "empty.txt").write_text("")
    for arguments, message in (
        ([tmp_path / "gone.jsonl", *out], "No such file"),
        ([clips, *out, "--shard", "3/2"], "--shard 3/2"),
        ([clips, *out, "--keep-ratio", "2"], "keep_ratio"),
        ([clips, *out, "--frames", "0"], "frames"),
        ([clips, *out, "-p", "x", "--prompt-file", tmp_path / "empty.txt"], "both"),
        ([clips, *out, "--prompt-file", tmp_path / "empty.txt"], "empty"),
        ([clips, *out, "--prompt-file", tmp_path / "gone.txt"], "cannot be read"),
        ([clips, "--out", clips / "a.mp4"], "no answer of a batch job"),
    ):
        with pytest.raises(BadRequest, match=message):
            run(*arguments)
    assert not (tmp_path / "answers.jsonl").exists()


def test_the_quick_start_of_the_documentation(loaded_once, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands, lines = re.findall(r"```(?:json)?\n(.*?)```", PAGE.read_text(), re.DOTALL)[:2]
    (tmp_path / "questions.jsonl").write_text(lines)
    for command in commands.splitlines():
        words = shlex.split(command)
        assert words[:2] == ["hippo", "batch"] and run(*words[2:], *SHORT[2:]).exit_code == 0, command
    assert len(answers(tmp_path / "answers.jsonl")) == len(answers(tmp_path / "moves.jsonl")) == 3
    answered = {line["custom_id"]: line for line in answers(tmp_path / "questions-answered.jsonl")}
    assert sorted(answered) == ["q1", "q2", "questions.jsonl:3"] and answered["q1"]["label"] == "circle"


def test_killed_at_any_moment_it_goes_on_to_the_same_answers(loaded_once, tmp_path, monkeypatch):
    """HIPPO_KILLS=20 is twenty kills and a hundred clips."""
    kills, rng = int(os.environ.get("HIPPO_KILLS", 2)), random.Random(0)
    (tmp_path / "clips").mkdir()
    for number in range(5 * kills):
        write_clip(make_scene(7000 + number), tmp_path / "clips" / f"{number}.mp4", 64)
    command = [sys.executable, "-m", "hippo", "batch", "clips", "--out", "out.jsonl", *SHORT]
    out = tmp_path / "out.jsonl"
    for _ in range(kills):
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            seen = out.stat().st_size if out.exists() else 0
            while process.poll() is None and not (out.exists() and out.stat().st_size > seen):
                time.sleep(0.005)
            time.sleep(0.2 * rng.random())
            os.killpg(process.pid, signal.SIGKILL)
    killed = len(out.read_text().splitlines())
    monkeypatch.chdir(tmp_path)
    for name in ("out.jsonl", "whole.jsonl"):
        assert run("clips", "--out", name, *SHORT).exit_code == 0

    def words(path):
        bodies = {line["custom_id"]: line["response"]["body"] for line in answers(path)}
        return {name: body["choices"][0]["message"]["content"] for name, body in bodies.items()}

    assert kills // 2 <= killed and len(answers(out)) == len(words(out)) == 5 * kills
    assert words(out) == words(tmp_path / "whole.jsonl")
