"""The cache against transformers' own, through appends, growth and rollbacks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from hippo.kv_cache import RoomyLayer, make_cache
from tests.models import model


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 300), st.integers(-3, 0)), min_size=1, max_size=12))
def test_it_holds_what_transformers_own_holds(steps):
    torch.manual_seed(0)
    ours, theirs = RoomyLayer(), DynamicLayer()
    for step in [5, *steps]:
        if step <= 0:
            ours.crop(step)
            theirs.crop(step)
        else:
            keys, values = torch.randn(1, 2, step, 4), torch.randn(1, 2, step, 4)
            returned = ours.update(keys, values)
            assert all(torch.equal(a, b) for a, b in zip(returned, theirs.update(keys, values), strict=True))
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_text_config_gets_one_for_each_layer():
    cache = make_cache(model("qwen2_5_vl").model.language_model.config)
    assert [type(layer) for layer in cache.layers] == [RoomyLayer] * 3
