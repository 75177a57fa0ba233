"""The cache against transformers' own, through appends, growth and rollbacks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from hippo.forward.kv_cache import KVCache, Room, RoomyLayer
from tests.models import model


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 300), st.integers(-3, 0)), min_size=1, max_size=12))
def test_it_holds_what_transformers_own_holds(steps):
    torch.manual_seed(0)
    room = Room(2)
    ours, theirs = [RoomyLayer(room, index) for index in range(2)], [DynamicLayer() for _ in range(2)]
    for step in [5, *steps]:
        for mine, other in zip(ours, theirs, strict=True):
            if step <= 0:
                mine.crop(step)
                other.crop(step)
            else:
                keys, values = torch.randn(1, 2, step, 4), torch.randn(1, 2, step, 4)
                returned = mine.update(keys, values)
                assert all(torch.equal(a, b) for a, b in zip(returned, other.update(keys, values), strict=True))
            assert mine.get_seq_length() == other.get_seq_length()


def test_a_text_config_gets_one_for_each_layer():
    cache = KVCache(model("qwen2_5_vl").model.language_model.config, together=True)
    assert [type(layer) for layer in cache.cache.layers] == [RoomyLayer] * 3


def test_what_is_appended_at_once_is_what_each_layer_then_holds():
    torch.manual_seed(0)
    cache = KVCache(model("qwen2_5_vl").model.language_model.config, together=True)
    first, new = torch.randn(3, 2, 1, 2, 5, 16), torch.randn(3, 2, 2, 300, 16)
    for layer, (keys, values) in zip(cache.cache.layers, first, strict=True):
        layer.update(keys, values)
    window = cache.append(300, first[0, 0])
    for index in range(3):
        keys, values = window.write(index, new[index])
        assert torch.equal(keys, torch.cat([first[index, 0, 0], new[index, 0]], dim=1))
        assert torch.equal(values, torch.cat([first[index, 1, 0], new[index, 1]], dim=1))
    cache.rollback(301)
    assert cache.length == 4


def test_room_for_what_is_expected_is_made_once():
    cache = KVCache(model("qwen2_5_vl").model.language_model.config, together=True, spare=10)
    assert cache.size == 0
    cache.expect(90)
    for layer in cache.cache.layers:
        layer.update(torch.zeros(1, 2, 30, 16), torch.zeros(1, 2, 30, 16))
    assert cache.size == 3 * 2 * 2 * 100 * 16 * 4
    for layer in cache.cache.layers:
        layer.update(torch.zeros(1, 2, 60, 16), torch.zeros(1, 2, 60, 16))
    assert cache.size == 3 * 2 * 2 * 100 * 16 * 4 and cache.length == 90
