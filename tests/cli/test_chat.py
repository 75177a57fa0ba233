"""hippo chat: questions from standard input, answers to standard output, the rest to standard error."""

import pytest
from typer.testing import CliRunner

from hippo.cli.app import app
from hippo.cli.demo import CLIP


@pytest.fixture(autouse=True)
def _loaded_once(tiny, monkeypatch):
    """One pair for all tests, which a command does not close."""
    monkeypatch.setattr(tiny, "close", lambda: None)
    monkeypatch.setattr("hippo.llm.load", lambda *_, **__: tiny)


def chat(*lines):
    command = ["chat", str(CLIP), "--max-new-tokens", "6"]
    return CliRunner().invoke(app, command, input="\n".join(lines), catch_exceptions=False)


def test_each_line_is_a_question_and_later_ones_are_cached(tiny):
    done = chat("What happens?", "", "Where is it?", "/quit", "never asked")
    first, second = done.stdout.splitlines()
    talk = tiny.open(str(CLIP), max_new_tokens=6)
    assert [first, second] == [talk.ask("What happens?").text, talk.ask("Where is it?").text]
    assert done.exit_code == 0 and "tokens cached" in done.stderr


def test_back_and_new(tiny):
    done = chat("What happens?", "/back", "/back", "What happens?", "/new", "/help", "What happens?")
    assert len(set(done.stdout.splitlines())) == 1 and len(done.stdout.splitlines()) == 3
    assert "0 questions were asked" in done.stderr and "/quit ends" in done.stderr
