"""Reading a long prompt: in one forward or in parts, and told either way. That parts compute what the whole does is
among the families' tests."""

import pytest
import torch

from hippo.families import Embeds, family_of
from hippo.forward import CachedModel, cached_model
from hippo.forward.cached_model import prefill_parts
from tests.models import model


def test_parts_cover_a_prompt_and_the_last_holds_the_question():
    assert prefill_parts(8192, 16, 18944) == [slice(0, 8192)]
    assert prefill_parts(19200, 16, 512) == [slice(0, 19200)]
    for length, question in ((8193, 16), (20000, 5000), (9000, 9000)):
        parts = prefill_parts(length, question, 18944)
        assert [i for part in parts for i in range(length)[part]] == list(range(length))
        assert length - parts[-1].start >= question


@pytest.mark.parametrize("whole", [True, False])
def test_a_long_prompt_is_told_layer_by_layer(whole, monkeypatch):
    net = model("qwen2_5_vl")
    monkeypatch.setattr(cached_model, "_PART", 8)
    embeds, positions, told = Embeds(torch.randn(20, 64)), torch.arange(20).expand(3, -1), []
    layers = family_of(net).language_model(net).layers
    one = CachedModel.of(family_of(net), net)
    list(
        one.prefilling(
            embeds,
            positions,
            positions[:, -1] + 1,
            progress=lambda phase, share: told.append(share),
            part=None if whole else 8,
        )
    )
    assert len(told) == len(layers) * (1 if whole else 3) and told == sorted(told) and told[-1] == 1
    assert not any(layer._forward_hooks for layer in layers)
    told.clear()
    short = CachedModel.of(family_of(net), net)
    list(short.prefilling(embeds[:8], positions[:, :8], positions[:, 7] + 1, progress=lambda *_: told.append(1)))
    assert not told
