"""The fused forward against transformers' own, and what keeps a model from it."""

import copy
import gc
import sys
import weakref

import pytest
import torch
from torch import nn

from hippo.families import Embeds, family_of
from hippo.forward import CachedModel
from hippo.forward.fused import fused, why_not_fused
from hippo.forward.quantize import quantize
from tests.models import FAMILIES, model


def requests(family):
    """Two requests of one model, the first with the fused forward, the second without; both have read one prompt."""
    torch.manual_seed(0)
    net = model(family)
    axes = 3 if family.startswith("qwen") else 1
    embeds, positions = torch.randn(20, 64), torch.randint(0, 30, (axes, 20)).sort(dim=1).values
    both = []
    for wanted in (True, False):
        one = CachedModel.of(family_of(net), net, may_fuse=wanted)
        one.prefill(Embeds(embeds), positions, positions[:, -1] + 1)
        both.append(one)
    return both


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3_vl_moe"])
def test_a_few_tokens_of_a_prompt_are_read_alike(family):
    net = model(family)
    axes = 3 if family.startswith("qwen") else 1
    embeds, positions = torch.randn(20, 64), torch.randint(0, 30, (axes, 20)).sort(dim=1).values
    few, whole = (CachedModel.of(family_of(net), net) for _ in range(2))
    given = Embeds(embeds), positions, positions[:, -1] + 1
    torch.testing.assert_close(few.prefill_few(*given), whole.prefill(*given), rtol=1e-3, atol=1e-3)
    assert few._fused is not None and whole._fused is None
    torch.testing.assert_close(few.extend([3, 1]), whole.extend([3, 1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3_vl_moe"])
def test_it_computes_what_transformers_does(family):
    ours, theirs = requests(family)
    for ids, back in (([7], 0), ([3, 1, 4, 1, 5], 3), ([9, 2], 0), ([6] * 700, 690), ([8], 0)):
        mine, other = ours.extend(ids), theirs.extend(ids)
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)
        assert ours._fused is not None and theirs._fused is None
        for one in (ours, theirs):
            one.rollback(back)
    assert ours.length == theirs.length


def used(net):
    """Answer once, as a request would."""
    one = CachedModel.of(family_of(net), net)
    one.prefill(Embeds(torch.randn(4, 64)), torch.arange(4).expand(3, -1), torch.full((3,), 4))
    one.extend([1, 2])
    return one


def storages(net):
    return {name: value.untyped_storage().data_ptr() for name, value in net.named_parameters()}


def of_decoder(decoder):
    """The storages of a fused form's products."""
    products = [product for layer in decoder._layers for product in layer.qkv + layer.gate_up]
    return {product.keywords["weight"].untyped_storage().data_ptr() for product in products}


def test_the_model_is_not_changed():
    net = copy.deepcopy(model("qwen2_5_vl"))
    before, places = {name: value.clone() for name, value in net.state_dict().items()}, storages(net)
    decoder = fused(net.model.language_model)
    assert used(net)._fused is decoder
    assert of_decoder(decoder) <= set(storages(net).values()) and storages(net) == places
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_one_switch_turns_it_off(monkeypatch):
    text = copy.deepcopy(model("qwen2_5_vl")).model.language_model
    monkeypatch.setattr(sys.modules["hippo.forward.fused"], "_ENABLED", False)
    assert fused(text) is None and why_not_fused(text) == "HIPPO_FUSED is 0"


def test_a_model_that_is_done_with_is_let_go():
    for dtype in (torch.float32, torch.bfloat16):
        net = copy.deepcopy(model("qwen2_5_vl")).to(dtype)
        text = weakref.ref(net.model.language_model)
        fused(text())
        del net
        gc.collect()
        assert text() is None


def doubled(text):
    text.layers[1].self_attn.q_proj = Halved(text.layers[1].self_attn.q_proj)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.layers[1].self_attn.k_proj.bias.data.add_(1.0),
        lambda text: text.layers[1].mlp.gate_proj.weight.data.mul_(2.0),
        lambda text: setattr(text.layers[0].mlp.down_proj, "weight", nn.Parameter(torch.randn(64, 96))),
        lambda text: setattr(text.norm, "weight", nn.Parameter(torch.rand(64))),
        doubled,
        lambda text: text.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * 2),
        lambda text: text.double().float(),
    ],
)
def test_a_model_changed_after_its_first_answer_answers_as_it_then_is(change):
    answers_as_it_is_after(change, "qwen2_5_vl")


def test_so_does_one_whose_heads_have_norms():
    answers_as_it_is_after(lambda text: text.layers[1].self_attn.k_norm.weight.data.mul_(2.0), "qwen3_vl")


def answers_as_it_is_after(change, family):
    net = copy.deepcopy(model(family))
    fused(net.model.language_model)
    used(net)
    change(net.model.language_model)
    torch.manual_seed(1)
    embeds, positions = torch.randn(6, 64), torch.arange(6).expand(3, -1)
    rows = []
    for may_fuse in (True, False):
        one = CachedModel.of(family_of(net), net, may_fuse)
        one.prefill(Embeds(embeds), positions, positions[:, -1] + 1)
        rows.append(one.extend([3, 4, 5]))
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-3, atol=1e-3)


def test_a_model_is_looked_at_again_when_what_kept_it_is_gone():
    text = copy.deepcopy(model("qwen2_5_vl")).model.language_model
    hook = text.layers[0].register_forward_hook(lambda *_: None)
    assert "hooks" in why_not_fused(text)
    hook.remove()
    assert fused(text) is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.to(torch.bfloat16), "float32"),
        (lambda text: text.layers[1].register_forward_hook(lambda *_: None), "hooks"),
        (lambda text: setattr(text.layers[0].mlp, "up_proj", Halved(text.layers[0].mlp.up_proj)), "quantised"),
        (lambda text: setattr(text.layers[2].mlp.up_proj, "weight", Packed(torch.rand(96, 64))), "quantised"),
        (lambda text: setattr(text.layers[0].self_attn, "q_norm", nn.LayerNorm(16)), "laid out"),
        (lambda text: setattr(text.layers[2].self_attn, "scaling", 1.0), "something else"),
        (lambda text: setattr(text.config, "layer_types", ["full_attention", "sliding_attention"]), "attend"),
    ],
)
def test_a_model_it_does_not_fit_keeps_its_own_forward_and_says_why(change, reason):
    text = copy.deepcopy(model("qwen2_5_vl")).model.language_model
    change(text)
    assert reason in why_not_fused(text) and fused(text) is None


def test_norms_of_heads_that_compute_something_else_are_found_out():
    text = copy.deepcopy(model("qwen3_vl")).model.language_model
    text.layers[0].self_attn.q_norm = nn.LayerNorm(32)
    assert "something else" in why_not_fused(text)


def test_a_model_of_experts_keeps_its_own_forward_and_says_why():
    assert "laid out" in why_not_fused(model("qwen3_vl_moe").model.language_model)


@pytest.fixture
def on_gpu(monkeypatch):
    """Models are taken for such on a GPU."""
    monkeypatch.setattr(sys.modules["hippo.forward.fused"], "_serves_packed", lambda device: True)


def in_bits(bits):
    return lambda net: quantize(net, bits)


def partly(net):
    """A product of its own, and a weight of a class of its own, as torchao's."""
    layer = net.model.language_model.layers[1]
    layer.self_attn.o_proj = Halved(layer.self_attn.o_proj)
    layer.mlp.up_proj.weight = Packed(layer.mlp.up_proj.weight.data)


@pytest.mark.parametrize("change", [in_bits(4), in_bits(8), partly])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_quantised_layers_on_a_gpu_are_fused_with_their_own_products(family, change, on_gpu):
    net = copy.deepcopy(model(family))
    change(net)
    embeds, positions = torch.randn(20, 64), torch.arange(20).expand(3, -1)
    rows = []
    for may_fuse in (True, False):
        one = CachedModel.of(family_of(net), net, may_fuse)
        one.prefill(Embeds(embeds), positions, positions[:, -1] + 1)
        rows.append(torch.cat([one.extend([3, 1, 4]), one.extend([5])]))
        assert (one._fused is not None) == may_fuse
    # Activations are rounded to few bits: a sum in another order may be rounded to the next number.
    assert (rows[0] - rows[1]).norm() < 0.02 * rows[1].norm()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: setattr(text.layers[1].mlp.up_proj, "weight", InParts(torch.rand(96, 64))), "in parts"),
        (lambda text: setattr(text.norm, "weight", Packed(torch.rand(64))), "adapted"),
        (lambda text: setattr(text.layers[0].mlp, "up_proj", Adapted()), "adapted"),
    ],
)
def test_other_weights_are_not_fused_on_a_gpu_either(change, reason, on_gpu):
    text = copy.deepcopy(model("qwen2_5_vl")).model.language_model
    change(text)
    assert reason in why_not_fused(text)


class Packed(nn.Parameter):
    """A weight of a class of its own in a plain linear layer."""


class InParts(Packed):
    """A weight of which each process has a part."""

    device_mesh = None


class Adapted(nn.Module):
    """A product whose weights may change without a trace."""


class Halved(nn.Linear):
    """A product that does not compute with its weight alone, as a quantised or adapted one."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = linear.weight

    def forward(self, x):
        return super().forward(x) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_of_heads_have_the_bits_of_transformers_own(dtype):
    attention = copy.deepcopy(model("qwen3_vl")).model.language_model.layers[0].self_attn.to(dtype)
    norms = attention.q_norm, attention.k_norm
    generator = torch.Generator().manual_seed(0)
    for norm in norms:
        norm.weight.data.normal_(1.0, 0.3, generator=generator)
    size = len(norms[0].weight)
    x = (30 * torch.randn(50, 6, size, generator=generator)).to(dtype)
    expected = torch.cat([norms[0](x[:, :4]), norms[1](x[:, 4:])], dim=1)
    weights = tuple(norm.weight.detach() for norm in norms)
    sys.modules["hippo.forward.fused"]._normalise(x, (4, 2), weights, norms[0].variance_epsilon)
    if dtype == torch.float32:
        torch.testing.assert_close(x, expected)  # the order of two products differs
    else:
        assert torch.equal(x, expected)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_half_precision_as_on_a_gpu_differs_by_rounding_alone(family, monkeypatch):
    monkeypatch.setattr(sys.modules["hippo.forward.fused"], "_served", lambda device, dtype: True)
    net = copy.deepcopy(model(family)).bfloat16()
    axes = 3 if family.startswith("qwen") else 1
    embeds, positions = torch.randn(20, 64, dtype=torch.bfloat16), torch.arange(20).expand(axes, -1)
    ours, theirs = (CachedModel.of(family_of(net), net, may_fuse=wanted) for wanted in (True, False))
    for one in (ours, theirs):
        one.prefill(Embeds(embeds), positions, positions[:, -1] + 1)
    mine, other = ours.extend([3, 1, 4]).float(), theirs.extend([3, 1, 4]).float()
    assert ours._fused is not None and theirs._fused is None
    assert 0 < (mine - other).norm() < 0.03 * other.norm()
