"""What a request may ask of its answer."""

import subprocess
import sys

import pytest

from hippo.errors import BadRequest
from hippo.inputs import MediaOptions
from hippo.params import METHODS, SamplingParams
from hippo.request import Request


@pytest.mark.parametrize("method", METHODS)
def test_presets(method):
    options = SamplingParams(method)
    assert (options.decoder, options.pruner) == METHODS[method] and options.name == method


def test_parts_override_the_preset():
    options = SamplingParams("hippo", decoder="serial")
    assert (options.decoder, options.pruner, options.name) == ("serial", "hippo", "serial + hippo")


def test_one_stop_string():
    assert SamplingParams(stop="end").stop == ("end",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "nope"},
        {"decoder": "nope"},
        {"pruner": "nope"},
        {"keep_ratio": 0},
        {"keep_ratio": 1.1},
        {"keep_ratio": -1},
        {"keep_ratio": float("nan")},
        {"gamma": 0},
        {"gamma": -2},
        {"gamma": "many"},
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": "warm"},
        {"top_p": 0},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": "one"},
        {"logprobs": 21},
        {"logprobs": True},
        {"stop": ["a", ""]},
    ],
)
def test_senseless_options_name_themselves(wrong):
    with pytest.raises(BadRequest) as error:
        SamplingParams(**wrong)
    assert next(iter(wrong)).split("_")[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "hint"),
    [({"temprature": 1}, "temperature"), ({"max_new_token": 1}, "max_new_tokens"), ({"fram": 1}, "frames")],
)
def test_an_unknown_option_names_the_nearest(option, hint):
    with pytest.raises(BadRequest, match=f"unknown option .* did you mean {hint}"):
        SamplingParams.of(("frames",), **option)


def test_other_libraries_names_are_accepted():
    assert (
        SamplingParams.of(max_tokens=3).max_new_tokens == SamplingParams.of(max_completion_tokens=3).max_new_tokens == 3
    )
    assert SamplingParams.of(do_sample=False).greedy and SamplingParams.of(do_sample=True).temperature == 1
    with pytest.raises(BadRequest, match="given twice"):
        SamplingParams.of(max_tokens=3, max_new_tokens=4)
    with pytest.raises(BadRequest, match="do_sample"):
        SamplingParams.of(do_sample=False, temperature=0.5)


def test_parameters_are_read_without_torch():
    code = (
        "import sys, hippo.params; hippo.SamplingParams(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_request_samples_as_its_media_options_say_unless_it_says_it_itself():
    turns = [{"role": "user", "content": "x"}]
    assert Request(turns, media=MediaOptions(fps=2.0)).media.fps == 2.0
    assert Request(turns, frames=3, media=MediaOptions(frames=5)).media.frames == 3
    with pytest.raises(BadRequest, match="both frames and fps"):
        Request(turns, frames=3, media=MediaOptions(fps=2.0))
