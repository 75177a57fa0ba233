"""hippo plan and what hippo doctor says of a pair: words, places and one-line errors, no seconds."""

import json

import pytest
from typer.testing import CliRunner

from hippo.checkpoints import BUNDLED
from hippo.cli.app import app
from hippo.errors import HippoError
from hippo.report import plan as module
from hippo.report.rates import Rates


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Nothing is measured."""
    monkeypatch.setattr(module, "rates", lambda *_: Rates({1: 1e-10, 2: 1e-10, 4: 1e-10, 8: 1e-10}, 1e-6))
    monkeypatch.setattr(module, "free_width", lambda *_: 0)


def hippo(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(done.exception, HippoError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_a_table_and_one_sentence():
    done = hippo("plan", "--target", "shape:qwen2.5-vl-7b", "--device", "cpu", "--acceptance", "0.8,0.9")
    assert done.stdout.startswith("with this pair on this machine: in turns, ") and done.stdout.count("\n") == 1
    for words in ("7.07 + 1.22 billion weights", "8 tokens", "bits (used)", "GiB needed", "0.9", "not measured"):
        assert words in " ".join(done.stderr.split()), words


def test_json_is_one_object_of_numbers():
    target, draft = BUNDLED / "tiny" / "target", BUNDLED / "tiny" / "draft"
    done = hippo("plan", "--target", target, "--draft", draft, "--draft-bits", 8, "--json")
    result = json.loads(done.stdout)
    assert list(result["target_ms"]) == [str(width) for width in range(1, 9)] and list(result["draft_ms"]) == [
        "16",
        "8",
        "4",
    ]
    assert result["draft"]["bits"] == 8 and result["fits"] and result["short"] == "" and len(result["choices"]) == 5
    same = json.loads(hippo("plan", "--target", "tiny", "--draft-bits", 8, "--json").stdout)
    assert same["target_ms"] == result["target_ms"] and same["draft"]["read"] == result["draft"]["read"]
    itself = json.loads(hippo("plan", "--target", target, "--draft", "self", "--json").stdout)
    assert itself["draft"]["read"] == itself["target"]["read"] and itself["draft"]["bits"] == 4


def test_too_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 8 << 30)
    done = hippo("plan", "--target", "shape:qwen2.5-vl-7b", "--device", "cpu")
    assert "warning: not enough memory: " in done.stderr and "not even the target fits" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "nobody/nothing", "--draft", "tiny"), "no configuration of nobody/nothing on this machine"),
        (("--target", "nobody/nothing"), "no draft model"),
        (("--target", "tiny", "--draft", "ngram"), "ngram drafts without a model"),
        (("--target", "shape:none"), "unknown shape 'none'"),
        (("--target", "tiny", "--acceptance", "high"), "'high' is no list of numbers"),
        (("--target", "tiny", "--acceptance", "1"), "not in"),
        (("--target", "tiny", "--keep-ratio", "0"), "keep_ratio 0"),
        (("--target", "tiny", "--draft-bits", "5"), "draft_bits '5'"),
    ],
)
def test_bad_input_is_one_line(arguments, words):
    with pytest.raises(HippoError, match=words) as error:
        hippo("plan", *arguments)
    assert "\n" not in str(error.value)


def test_doctor_says_what_to_expect_of_a_pair():
    facts = json.loads(hippo("doctor", "--target", "tiny", "--json").stdout)
    assert facts["pair"]["expect"].startswith("with this pair on this machine: ")
    assert facts["pair"]["memory"] == "both models fit"
    assert "pair" not in json.loads(hippo("doctor", "--json").stdout)
