"""Products by oneDNN: the same numbers but for rounding, the same words, and nothing else taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hippo
from hippo import products
from hippo.products import fast_products, onednn_gain, product, product_added
from tests.drafts import draft
from tests.models import FAMILIES, generated, inputs, model

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def taken(monkeypatch):
    """Every product goes to oneDNN, as on a CPU where it is faster; returns the shapes of those that went."""
    went, onednn = [], products._onednn
    monkeypatch.setattr(products, "onednn_gain", lambda: 2.0)
    monkeypatch.setattr(products, "_LEAST", 0)
    monkeypatch.setattr(products, "_FEW_ROWS", 1)
    monkeypatch.setattr(products, "_onednn", lambda x, *rest: went.append(x.shape) or onednn(x, *rest))
    return went


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_torchs_but_for_rounding(taken, rows, biased):
    x, to, weight = torch.randn(rows, 24), torch.randn(rows, 40), torch.randn(40, 24).t()
    bias = torch.randn(40) if biased else None
    torch.testing.assert_close(product(x, weight, bias), F.linear(x, weight.t(), bias))
    torch.testing.assert_close(product_added(to, x, weight), to + x @ weight)
    assert taken == [(rows, 24)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(24, 40), torch.randn(2, 5, 24)),
        (nn.Linear(24, 40, bias=False), torch.randn(5, 24)),
        (nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), bias=False), torch.randn(5, 3, 2, 4, 4)),
        (nn.Conv2d(3, 8, 4, stride=4), torch.randn(5, 3, 4, 4)),
    ],
)
def test_layers_are_taken_and_compute_the_same(taken, layer, x):
    expected = layer(x)
    with fast_products(x):
        y = layer(x)
    assert len(taken) == 1 and y.shape == expected.shape
    torch.testing.assert_close(y, expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(24, 40).to(torch.bfloat16), torch.randn(5, 24, dtype=torch.bfloat16)),
        (nn.Conv2d(3, 8, 4, stride=4), torch.randn(5, 3, 8, 8)),
        (nn.Conv2d(3, 8, 4, padding=1), torch.randn(5, 3, 4, 4)),
        (nn.Conv2d(4, 8, 4, groups=2), torch.randn(5, 4, 4, 4)),
    ],
)
def test_other_layers_are_left_alone(taken, layer, x):
    expected = layer(x)
    with fast_products(torch.randn(1, 24)):
        assert torch.equal(layer(x), expected)
    assert not taken


def test_training_and_autocast_are_left_alone(taken):
    layer, x = nn.Linear(24, 40), torch.randn(5, 24)
    with fast_products(x):
        layer(x).sum().backward()
    with torch.no_grad(), torch.autocast("cpu"), fast_products(x):
        layer(x)
    with torch.no_grad(), fast_products(x):
        pass
    with torch.no_grad():
        layer(x)
    assert not taken and layer.weight.grad is not None


@torch.no_grad()
def test_nothing_is_taken_where_onednn_is_no_faster(taken, monkeypatch):
    monkeypatch.setattr(products, "onednn_gain", lambda: 0.0)
    x = torch.randn(600, 64)
    with fast_products(x):
        nn.Linear(64, 640)(x)
    product(x, torch.randn(64, 640))
    assert not taken


@torch.no_grad()
def test_small_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "onednn_gain", lambda: 2.0)
    weight = torch.empty(192, 1024)
    assert not products._worth_it(8, weight) and products._worth_it(16, weight)
    assert not products._worth_it(3, torch.empty(1024, 2048)) and products._worth_it(1, torch.empty(2048, 2048))


@pytest.fixture
def attended(monkeypatch):
    """Attention goes where it goes on a CPU on which oneDNN is faster; returns the lengths of that made of products."""
    went, ours = [], products._causal_attention

    def counted(*args, **kwargs):
        result = ours(*args, **kwargs)
        return result if result is None else went.append(result.shape[2]) or result

    monkeypatch.setattr(products, "onednn_gain", lambda: 2.0)
    monkeypatch.setitem(products._TAKEN, F.scaled_dot_product_attention, counted)
    return went


def heads(length, size, count, key_heads):
    """Queries, keys and values as a model makes them: the queries' heads lie side by side."""
    torch.manual_seed(length)
    query = torch.randn(1, length, count, size).transpose(1, 2)
    return query, *torch.randn(2, 1, key_heads, length, size)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5, 64, 65, 128, 130, 300])
@pytest.mark.parametrize(("size", "count", "key_heads"), [(16, 6, 2), (16, 4, 4), (64, 4, 1), (80, 2, 2)])
def test_causal_attention_is_torchs_but_for_rounding(attended, length, size, count, key_heads):
    given, options = heads(length, size, count, key_heads), {"is_causal": True, "enable_gqa": True, "scale": 0.1}
    expected = F.scaled_dot_product_attention(*given, **options)
    with fast_products(torch.ones(1)):
        ours = F.scaled_dot_product_attention(*given, **options)
    assert attended == [length] and ours.shape == expected.shape
    torch.testing.assert_close(ours, expected)


@torch.no_grad()
def test_other_attention_is_left_alone(attended):
    query, key, value = given = heads(20, 16, 4, 4)
    mask = torch.ones(20, 20, dtype=torch.bool).tril()
    with fast_products(torch.ones(1)):
        F.scaled_dot_product_attention(*given)
        F.scaled_dot_product_attention(*given, attn_mask=mask)
        F.scaled_dot_product_attention(query[:, :, :3], key, value, is_causal=True)
        F.scaled_dot_product_attention(*(x.expand(2, -1, -1, -1) for x in given), is_causal=True)
        F.scaled_dot_product_attention(*(x.bfloat16() for x in given), is_causal=True)
        F.scaled_dot_product_attention(*heads(700, 16, 2, 2), is_causal=True)
    assert not attended


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_attended_to_by_products(attended, family):
    hippo.generate(model(family), None, inputs(family), method="ar", max_new_tokens=2)
    assert len(attended) == model(family).config.get_text_config().num_hidden_layers


def test_the_gain_is_measured_and_none_or_worth_having():
    assert onednn_gain() == 0 or onednn_gain() >= 1.2


@pytest.mark.usefixtures("patient_targets")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_words_are_generates(taken, family):
    target, request = model(family), inputs(family)
    expected = generated(target, request)
    assert not taken
    for method in ("ar", "hippo"):
        out = hippo.generate(target, draft("other", family), request, method=method, max_new_tokens=24, keep_ratio=0.3)
        assert out.token_ids == expected and taken
