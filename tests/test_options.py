"""What a request may ask."""

import pytest

from hippo.errors import HippoError
from hippo.options import METHODS, make_options


@pytest.mark.parametrize("method", METHODS)
def test_presets(method):
    options = make_options(method)
    assert (options.decoder, options.pruner) == METHODS[method] and options.name == method


def test_parts_override_the_preset():
    options = make_options("hippo", decoder="serial")
    assert (options.decoder, options.pruner, options.name) == ("serial", "hippo", "serial + hippo")


def test_one_stop_string():
    assert make_options(stop="end").stop == ("end",)


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
        {"top_p": 0},
    ],
)
def test_senseless_options_name_themselves(wrong):
    with pytest.raises(HippoError) as error:
        make_options(**wrong)
    assert next(iter(wrong)) in str(error.value) and "\n" not in str(error.value)
