"""Weights and inputs of several dtypes and devices."""

import copy

import pytest
import torch

import hippo
from hippo.errors import HippoError
from hippo.forward import mixed_dtypes_explained
from hippo.inputs import on_device
from tests.models import generated, inputs, model


def test_layers_in_two_dtypes_are_told_in_one_line():
    target = copy.deepcopy(model("qwen2_5_vl"))
    target.model.language_model.layers[1].to(torch.bfloat16)
    with pytest.raises(HippoError, match=r"weights are in bfloat16 and float32, .*: load it in one") as error:
        hippo.generate(target, None, inputs("qwen2_5_vl"), method="ar", max_new_tokens=4)
    assert "\n" not in str(error.value)


def test_a_vision_tower_may_have_a_dtype_of_its_own():
    target, request = copy.deepcopy(model("qwen2_5_vl")), inputs("qwen2_5_vl")
    target.model.visual.to(torch.bfloat16)
    assert hippo.generate(target, None, request, method="ar", max_new_tokens=24).token_ids == generated(target, request)


def test_other_errors_stay_what_they_are():
    for net in (torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).bfloat16())):
        with pytest.raises(RuntimeError, match="something else"), mixed_dtypes_explained(net):
            raise RuntimeError("something else")


def test_inputs_are_put_on_the_models_device():
    moved = on_device({"input_ids": torch.ones(1, 2), "names": ["a"]}, torch.device("meta"))
    assert moved["input_ids"].device.type == "meta" and moved["names"] == ["a"]
