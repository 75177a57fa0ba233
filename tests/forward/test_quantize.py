"""Drafts in fewer bits: what is packed, how far it is off, and what is told."""

import copy
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hippo.errors import CheckpointError
from hippo.families import Embeds, family_of
from hippo.forward import CachedModel, why_not_fused
from hippo.forward import quantize as module
from hippo.forward.quantize import GROUP, PackedLinear, fastest_bits, linear_shapes, product_seconds, quantize, unpacked
from tests.models import FAMILIES, model


@pytest.fixture(params=[True, False], ids=["vnni", "no vnni"])
def integers(request, monkeypatch):
    """Both products of 8 bits, whatever this CPU would choose; whether activations are integers too."""
    if request.param and not module._integer_products():
        pytest.skip("this CPU has no AVX-512 VNNI")
    monkeypatch.setattr(module, "_integer_products", lambda: request.param)
    return request.param


@pytest.fixture
def scarce(monkeypatch):
    """Memory, so that nothing is packed twice."""
    monkeypatch.setattr(module, "free_memory", lambda: 0)


def linear(inputs, outputs, bias=True, dtype=torch.float32):
    torch.manual_seed(inputs)
    return nn.Sequential(nn.Linear(inputs, outputs, bias=bias)).to(dtype).requires_grad_(False)


def off(layer, packed, x):
    """Relative error, the rounding of the input to bfloat16 left out."""
    expected = F.linear(x.bfloat16().float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())
    return float((packed(x).float() - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize(("width", "outputs"), [(32, 16), (96, 80), (160, 4096 + 48), (896, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_off_by_the_rounding_of_weights(integers, rows, width, outputs, dtype, bias):
    net = linear(width, outputs, bias, dtype)
    x = torch.randn(rows, width, dtype=dtype)
    for bits, most in ((4, 0.12), (8, 0.02)):
        packed = copy.deepcopy(net)
        quantize(packed, bits)
        assert isinstance(packed[0], PackedLinear)
        assert off(net[0], packed, x) < most
        y = packed(x.view(1, rows, width))
        assert y.shape == (1, rows, outputs) and y.dtype == dtype and packed(x[:0]).shape == (0, outputs)


@torch.no_grad()
@pytest.mark.usefixtures("scarce")
def test_four_bits_reach_every_level_of_a_group():
    net = linear(GROUP, 16, bias=False)
    net[0].weight.copy_((torch.arange(16.0).repeat(2) - 8).expand(16, -1))
    packed = copy.deepcopy(net)
    quantize(packed, 4)
    torch.testing.assert_close(packed(torch.eye(GROUP)), net(torch.eye(GROUP)), rtol=0, atol=1e-2)


@torch.no_grad()
@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_and_tokens_of_zeros_give_zeros(bits):
    net = linear(64, 32, bias=False)
    net[0].weight[3] = 0
    quantize(net, bits)
    y = net(torch.stack([torch.zeros(64), torch.ones(64)]))
    assert y.isfinite().all() and (y[0] == 0).all() and y[1, 3] == 0


@torch.no_grad()
@pytest.mark.usefixtures("integers")
def test_a_large_token_does_not_round_the_others():
    net, x = linear(64, 32), torch.randn(4, 64)
    quantize(net, 8)
    alone = net(x)
    x[0] *= 1e4
    torch.testing.assert_close(net(x)[1:], alone[1:])


@pytest.mark.parametrize(
    ("width", "outputs", "reasons"),
    [(33, 32, {4: "input width"}), (48, 16, {4: "input width"}), (64, 24, {4: "output width"}), (7, 5, {4: "input"})],
)
def test_a_layer_that_does_not_fit_stays_and_the_reason_is_said(integers, width, outputs, reasons):
    net = linear(width, outputs)
    if not integers and width % GROUP:
        reasons = reasons | {8: "input width"}
    for bits in (4, 8):
        packed = copy.deepcopy(net)
        (left, every), _ = unpacked(packed, bits), quantize(packed, bits)
        assert every == 1 and set(left) == ({"0"} if bits in reasons else set())
        assert reasons.get(bits, "") in left.get("0", "")
        assert type(packed[0]) is nn.Linear if bits in reasons else isinstance(packed[0], PackedLinear)


def test_what_stays_is_known_without_weights():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(64, 64), nn.Linear(33, 32), nn.Linear(64, 24))
    left, every = unpacked(net, 4)
    assert every == 3 and left == {"1": "input width not a multiple of 32", "2": "output width not a multiple of 16"}
    assert set(unpacked(net, 8)[0]) == ({"1"} if not module._integer_products() else set())


def test_adapted_layers_stay():
    class Adapted(nn.Linear):
        pass

    net = nn.Sequential(Adapted(64, 64), nn.Linear(64, 64))
    assert unpacked(net, 4) == ({"0": "quantised or adapted already"}, 2)
    quantize(net, 4)
    assert type(net[0]) is Adapted and isinstance(net[1], PackedLinear)
    packed = net[1]
    quantize(net, 4)
    assert net[1] is packed


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_and_head_are_packed_and_nothing_else(family, bits):
    net, before = copy.deepcopy(model(family)), model(family)
    (left, every), count = unpacked(net, bits), len(linear_shapes(net))
    quantize(net, bits)
    text = family_of(net).language_model(net)
    layers = sum(isinstance(m, PackedLinear) for name, m in net.named_modules() if not name.endswith("._many"))
    assert layers + len(left) == count == every and layers
    assert isinstance(net.get_output_embeddings(), PackedLinear) or "lm_head" in left
    assert all(type(m) is not nn.Linear or n in str(left) for n, m in text.named_modules())
    outside = [n for n, m in before.named_modules() if type(m) is nn.Linear and type(net.get_submodule(n)) is nn.Linear]
    assert len(outside) == sum(type(m) is nn.Linear for m in before.modules()) - layers
    assert torch.equal(net.get_input_embeddings().weight, before.get_input_embeddings().weight)


@torch.no_grad()
@pytest.mark.parametrize(("bits", "most"), [(4, 0.6), (8, 0.1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_reads_and_extends_with_its_own_forward(family, bits, most):
    plain, packed = model(family), copy.deepcopy(model(family))
    quantize(packed, bits)
    assert "quantised" in why_not_fused(family_of(packed).language_model(packed)) or family == "qwen3_vl_moe"
    torch.manual_seed(0)
    axes = 3 if family.startswith("qwen") else 1
    embeds, positions = torch.randn(20, 64), torch.arange(20).expand(axes, -1)
    rows = []
    for net in (plain, packed):
        one = CachedModel.of(family_of(net), net, may_fuse=net is packed)
        first = one.prefill(Embeds(embeds), positions, positions[:, -1] + 1)
        rows.append(torch.cat([first[None], one.extend([3, 1]), one.extend([4])]))
    assert 0 < (rows[0] - rows[1]).norm() < most * rows[0].norm()


@torch.no_grad()
@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_weights_give_the_same_bits(bits):
    nets = [linear(96, 80), linear(96, 80)]
    for net in nets:
        quantize(net, bits)
    x = torch.randn(5, 96)
    y = nets[0](x)
    assert torch.equal(y, nets[1](x)) and torch.equal(y, nets[0](x)) and torch.equal(y, copy.deepcopy(nets[0])(x))


def test_sixteen_bits_change_nothing():
    net = linear(64, 32)
    layer = net[0]
    quantize(net, 16)
    assert net[0] is layer


def test_packed_weights_have_the_bytes_of_their_bits():
    net = linear(64, 32, bias=False)
    quantize(net, 4)
    assert (net[0]._weight.nbytes, net[0]._affine.nbytes) == (64 * 32 // 2, 64 * 32 // GROUP * 4)


@torch.no_grad()
def test_more_tokens_than_four_bits_are_made_for_take_eight_where_memory_is_plentiful(integers, monkeypatch):
    net, x = linear(96, 80), torch.randn(5, 96)
    packed = {}
    for free in (0, 96 * 80 * 10 + 1):
        monkeypatch.setattr(module, "free_memory", lambda free=free: free)
        packed[free] = copy.deepcopy(net)
        quantize(packed[free], 4)
    few, twice = packed.values()
    assert torch.equal(few(x[:4]), twice(x[:4])) and torch.equal(copy.deepcopy(twice)(x), twice(x))
    assert (off(net[0], few, x) > 0.03) and (off(net[0], twice, x) < 0.02) == integers


def test_a_gpu_without_torchao_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(CheckpointError, match="needs torchao: pip install torchao"):
        module._by_torchao(linear(64, 32), [], 4)


def test_torchao_is_given_the_chosen_layers(monkeypatch):
    given = {}
    fake = types.ModuleType("torchao.quantization")
    fake.Int4WeightOnlyConfig = lambda **options: options
    fake.Int8WeightOnlyConfig = lambda: "8 bits"
    fake.quantize_ = lambda net, config, filter_fn: given.update(
        config=config, layers=[m for m in net.modules() if filter_fn(m, "")]
    )
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)
    net = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32))
    module._by_torchao(net, [net[1]], 4)
    assert given["layers"] == [net[1]] and given["config"]["group_size"] == GROUP
    module._by_torchao(net, [net[0]], 8)
    assert given == {"config": "8 bits", "layers": [net[0]]}


def test_products_are_measured_once_and_draw_no_random_numbers():
    state = torch.get_rng_state()
    shapes = [(64, 64), (48, 33), (64, 64)]
    first = product_seconds(shapes)
    assert set(first) == {4, 8, 16} and all(seconds > 0 for seconds in first.values())
    assert product_seconds(shapes) == first and torch.equal(torch.get_rng_state(), state)
    assert fastest_bits(shapes) in first


@pytest.mark.parametrize(
    ("seconds", "bits"),
    [((1.0, 1.5, 2.0), 4), ((1.0, 1.05, 2.0), 8), ((0.95, 0.98, 1.0), 16), ((3.0, 2.0, 1.0), 16)],
)
def test_fewer_bits_must_be_worth_it(monkeypatch, seconds, bits):
    monkeypatch.setattr(module, "product_seconds", lambda *_: dict(zip((4, 8, 16), seconds, strict=True)))
    assert fastest_bits([(64, 64)]) == bits
