"""Reading a long prompt: in one forward or in parts, and told either way. That parts compute what the whole does is
among the families' tests."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.bias import CausalBias

from hippo.errors import BadRequest
from hippo.families import Embeds, family_of
from hippo.forward import CachedModel, attention, cached_model, extend_together
from hippo.forward.cached_model import prefill_parts
from hippo.forward.observe import observing
from tests.models import model


def test_parts_cover_a_prompt_and_the_last_holds_the_question():
    assert prefill_parts(8192, 16, 8192) == [slice(0, 8192)]
    assert prefill_parts(19200, 16, 303104) == [slice(0, 19200)]
    for length, question in ((8193, 16), (20000, 5000), (9000, 9000)):
        parts = prefill_parts(length, question, 8192)
        assert [i for part in parts for i in range(length)[part]] == list(range(length))
        assert length - parts[-1].start >= question


def test_a_fixed_width_needs_attention_that_takes_a_mask(monkeypatch):
    net = model("qwen2_5_vl")
    monkeypatch.setattr(family_of(net).language_model(net).config, "_attn_implementation_internal", "flash_attention_2")
    one = CachedModel.of(family_of(net), net, fixed_width=8)
    with pytest.raises(BadRequest, match="'flash_attention_2' takes no mask, which a fixed width needs"):
        one.prefill(Embeds(torch.zeros(3, 64)), torch.arange(3).expand(3, -1), torch.full((3,), 3))


@pytest.mark.parametrize("whole", [True, False])
def test_a_long_prompt_is_reported_layer_by_layer(whole, monkeypatch):
    net = model("qwen2_5_vl")
    monkeypatch.setattr(cached_model, "_PART", 8)
    embeds, positions, reported = Embeds(torch.randn(20, 64)), torch.arange(20).expand(3, -1), []
    layers = family_of(net).language_model(net).layers
    hooks = [list(layer._forward_hooks) for layer in layers]  # transformers may have some of its own
    one = CachedModel.of(family_of(net), net)
    list(
        one.prefilling(
            embeds,
            positions,
            positions[:, -1] + 1,
            progress=lambda phase, share: reported.append(share),
            part=None if whole else 8,
        )
    )
    assert len(reported) == len(layers) * (1 if whole else 3) and reported == sorted(reported) and reported[-1] == 1
    assert [list(layer._forward_hooks) for layer in layers] == hooks
    reported.clear()
    short = CachedModel.of(family_of(net), net)
    list(short.prefilling(embeds[:8], positions[:, :8], positions[:, 7] + 1, progress=lambda *_: reported.append(1)))
    assert not reported


SEVEN_B = SimpleNamespace(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
)


def parts_on_a_gpu(monkeypatch, total, free, length):
    """How many forwards read a prompt of a 7B model in bfloat16 on a GPU of so many GiB, of which some are free."""
    monkeypatch.setattr(cached_model, "total_memory", lambda device: total << 30)
    monkeypatch.setattr(cached_model, "free_memory", lambda device: free << 30)
    one = CachedModel.of(family_of(model("qwen2_5_vl")), model("qwen2_5_vl"))
    config = SimpleNamespace(**vars(SEVEN_B), get_text_config=lambda: SEVEN_B)
    one._language_model, one._intermediate, one._first = SimpleNamespace(config=config), 18944, length
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16, shape=(length, 3584))
    return len(prefill_parts(length, 16, one._longest(on_gpu)))


def test_a_gpu_reads_a_prompt_whole_if_it_has_the_memory(monkeypatch):
    assert parts_on_a_gpu(monkeypatch, total=80, free=60, length=16384) == 1
    assert parts_on_a_gpu(monkeypatch, total=140, free=100, length=65536) == 1
    assert parts_on_a_gpu(monkeypatch, total=80, free=6, length=16384) == 8, "the weights of others take the rest"
    assert parts_on_a_gpu(monkeypatch, total=16, free=15, length=16384) == 8


def test_what_is_free_does_not_change_the_parts_while_there_is_plenty(monkeypatch):
    for length in (16384, 40000, 60000):
        assert len({parts_on_a_gpu(monkeypatch, 80, free, length) for free in (40, 50, 60)}) == 1


def test_on_a_cpu_memory_does_not_decide(monkeypatch):
    monkeypatch.setattr(cached_model, "free_memory", lambda device: 0)
    one = CachedModel.of(family_of(model("qwen2_5_vl")), model("qwen2_5_vl"))
    assert one._longest(torch.zeros(1, 64)) == cached_model._WHOLE // one._intermediate


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
def test_later_parts_need_no_mask_and_no_repeated_keys(family, monkeypatch):
    net, attend, seen = model(family), CausalBias._dispatch, []

    def watched(query, key, *args, **options):
        seen.append((query.shape[1:3], key.shape[1:3]))
        return attend(query, key, *args, **options)

    axes = 3 if family.startswith("qwen") else 1
    torch.manual_seed(0)
    embeds, positions = Embeds(torch.randn(21, 64)), torch.arange(21).expand(axes, -1)
    given, heads = (embeds, positions, positions[:, -1] + 1), set()
    whole = CachedModel.of(family_of(net), net)
    expected = whole.prefill(*given)
    monkeypatch.setattr(attention, "_has_flash", lambda *_: True)
    monkeypatch.setattr(CausalBias, "_dispatch", staticmethod(watched))
    parted = CachedModel.of(family_of(net), net)
    with observing(lambda layer, query, key, scaling: heads.add((layer, query.shape[2], key.shape[2]))):
        *_, logits = parted.prefilling(*given, part=8)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    config = family_of(net).language_model(net).config
    layers, many, few = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    assert seen == layers * [((many, 5), (few, 13))] + layers * [((many, 8), (few, 21))]
    assert {(layer, 8, 21) for layer in range(layers)} <= heads, "the attention is still recorded"
    torch.testing.assert_close(parted.extend([3, 4]), whole.extend([3, 4]), rtol=1e-3, atol=1e-3)
    assert len(seen) == 2 * layers, "short forwards are as they were"


@pytest.mark.parametrize("count", [1, 2])
def test_a_forward_that_fails_in_a_later_layer_leaves_no_token(count):
    net = copy.deepcopy(model("qwen2_5_vl")).bfloat16()
    family, positions = family_of(net), torch.arange(20).expand(3, -1)
    embeds = Embeds(torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).bfloat16())
    ones = [CachedModel.of(family, net) for _ in range(count + 1)]
    for one in ones:
        one.prefill(embeds, positions, positions[:, -1] + 1)
    *ones, untouched = ones

    def full(*_):
        raise RuntimeError("cannot allocate memory")

    hook = family.language_model(net).layers[-1].mlp.register_forward_pre_hook(full)
    with pytest.raises(RuntimeError, match="allocate"):
        extend_together([(one, [5, 6, 7]) for one in ones])
    hook.remove()
    assert {layer.get_seq_length() for one in ones for layer in one._kv.cache.layers} == {20}
    expected = untouched.extend([5, 6])
    for one in ones:
        assert torch.equal(one.extend([5, 6]), expected)
