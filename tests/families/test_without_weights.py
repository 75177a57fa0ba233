"""Prompts are prepared from a configuration alone."""

import pytest
import torch
from torch import nn

from hippo.families import family_of, require_family
from tests.models import FAMILIES, inputs, model, text_only, with_image, with_second_video


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_is_enough_for_a_prompt(name, monkeypatch):
    target, video = model(name), inputs(name)
    requests = [video, text_only(name), with_image(name, video), with_second_video(name, video)]
    expected = [family_of(target).prepare_prompt(target.config, request) for request in requests]
    config = type(target.config).from_dict(target.config.to_dict())
    monkeypatch.setattr(nn.Parameter, "__new__", lambda *_, **__: pytest.fail("a parameter is made"))
    for request, one in zip(requests, expected, strict=True):
        prompt = require_family(config.model_type).prepare_prompt(config, request)
        assert prompt.grids == one.grids
        for field in ("input_ids", "video_at", "positions", "next_position"):
            assert torch.equal(getattr(prompt, field), getattr(one, field))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("qwen")])
def test_positions_are_those_of_a_model_with_weights(name):
    target = model(name)
    for request in (inputs(name), with_image(name, inputs(name)), with_second_video(name, inputs(name))):
        positions, _ = target.model.get_rope_index(
            request["input_ids"],
            mm_token_type_ids=request["mm_token_type_ids"],
            image_grid_thw=request.get("image_grid_thw"),
            video_grid_thw=request.get("video_grid_thw"),
            attention_mask=request["attention_mask"],
            **{key: value for key, value in request.items() if key == "second_per_grid_ts"},
        )
        assert torch.equal(family_of(target).prepare_prompt(target.config, request).positions, positions[:, 0])
