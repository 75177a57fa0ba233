"""The columns of Ray's LLM processors, with the words of generate()."""

import subprocess
import sys

import numpy as np
import pytest

from hippo.cli.demo import CLIP
from hippo.errors import HippoError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'hippo-video[ray]'")

from hippo.ray import Captioner
from hippo.ray.captioner import COLUMNS

TURNS = [
    {"role": "system", "content": [{"type": "text", "text": "Be short.", "video": None}]},
    {
        "role": "user",
        "content": np.array(
            [{"type": "video", "video": str(CLIP), "text": None}, {"type": "text", "text": "What?", "video": None}],
            dtype=object,
        ),
    },
]


@pytest.fixture
def captioner(tiny, monkeypatch):
    monkeypatch.setattr("hippo.ray.captioner.load", lambda *_, **__: tiny)
    made = Captioner(max_tokens=6, frames=4)
    yield made
    made._llm = None  # it would close the pair of all tests


def batch(**columns):
    return {name: np.array(values, dtype=object) for name, values in columns.items()}


def test_videos_prompts_and_options_of_rows(captioner, tiny):
    given = batch(
        video=[str(CLIP), None, str(CLIP)],
        prompt=["What?", "Say hello.", None],
        sampling_params=[{}, {"max_tokens": 2}, None],
        label=["a", "b", "c"],
    )
    done = captioner(given)
    assert list(done) == [*given, *COLUMNS] and list(done["label"]) == ["a", "b", "c"]
    alone = [
        tiny.generate(str(CLIP), "What?", frames=4, max_new_tokens=6),
        tiny.generate(None, "Say hello.", max_new_tokens=2),
        tiny.generate(str(CLIP), frames=4, max_new_tokens=6),
    ]
    assert list(done["generated_text"]) == [one.text for one in alone]
    assert list(done["num_generated_tokens"]) == [len(one.token_ids) for one in alone]
    assert list(done["num_input_tokens"]) == [one.stats.prompt_tokens for one in alone]
    assert list(done["__inference_error__"]) == ["", "", ""] and (done["time_taken_llm"] > 0).all()


def test_messages_as_arrow_returns_them(captioner, tiny):
    turns = np.empty(1, dtype=object)
    turns[0] = np.array(TURNS, dtype=object)
    (text,) = captioner({"messages": turns})["generated_text"]
    assert text == tiny.generate(str(CLIP), "What?", system="Be short.", frames=4, max_new_tokens=6).text


def test_what_is_wrong_with_a_row_is_in_the_row(captioner, tmp_path):
    given = batch(
        video=[str(tmp_path / "gone.mp4"), None, None, None],
        prompt=["What?", None, "Say hello.", "Say hello."],
        sampling_params=[None, None, {"temprature": 1}, None],
    )
    done = captioner(given)
    errors = list(done["__inference_error__"])
    assert "gone.mp4" in errors[0] and "no video" in errors[1] and "temperature" in errors[2] and not errors[3]
    assert list(done["generated_text"])[:3] == ["", "", ""] and done["generated_text"][3]


def test_an_unknown_option_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("hippo.ray.captioner.load", None)
    with pytest.raises(HippoError, match="max_tokns"):
        Captioner(max_tokns=3)


def test_hippo_alone_does_not_import_ray():
    script = "import sys, hippo, hippo.cli.main, hippo.cli.app; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
