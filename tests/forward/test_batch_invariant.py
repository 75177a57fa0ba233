"""In half precision on a CPU a token's logits have the same bits whatever else its forward holds."""

import random
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model

from hippo import state
from hippo.device import on_threads
from hippo.families import Embeds
from hippo.forward import CachedModel, batch_invariant, extend_together
from hippo.forward.batch_invariant import MOST_ROWS, _least, least_rows
from tests.models import model

TEXT = 48  # tokens


@pytest.fixture(scope="module")
def large():
    """A text model and its head, of widths at which a single row has a kernel of its own."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2000,
        hidden_size=1536,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    return Qwen2Model(config).bfloat16().eval(), nn.Linear(1536, 2000, bias=False).bfloat16()


def started(large, seed=0):
    text, head = large
    one = CachedModel(text, head, text.embed_tokens)
    embeds = torch.randn(20 + 5 * seed, 1536, generator=torch.Generator().manual_seed(seed)).bfloat16()
    one.prefill(Embeds(embeds), torch.arange(len(embeds))[None], torch.tensor([len(embeds)]))
    return one


def windows(dice):
    """Windows over a text, and how many tokens of each stay."""
    begin = 0
    while begin < TEXT:
        end = min(TEXT, begin + dice.choice((1, 1, 2, 3, 5, 8, 9, 17, 25)))
        stay = dice.randint(1, end - begin)
        yield slice(begin, end), stay
        begin += stay


def test_windows_of_all_widths_on_any_number_of_threads(large):
    alone = started(large)
    if not alone.batch_invariant:
        pytest.skip("the products of this CPU are not batch-invariant")
    ids = [(7 * place) % 1999 for place in range(TEXT)]
    expected = [alone.extend([id])[0] for id in ids]
    for seed in range(4):
        one = started(large)
        with on_threads(1 + seed % 2):
            for window, stay in windows(random.Random(seed)):
                for place, logits in zip(range(TEXT)[window], one.extend(ids[window]), strict=True):
                    assert torch.equal(logits, expected[place]), (seed, window, place)
                one.rollback(window.stop - window.start - stay)


def test_requests_together(large):
    if not started(large).batch_invariant:
        pytest.skip("the products of this CPU are not batch-invariant")
    for parts in (([1], [2]), ([1], [3, 4, 5], [6]), ([2] * 25,) * 5, ([3] * 25,) * 6):  # the last are too many
        alone = [started(large, seed).extend(ids) for seed, ids in enumerate(parts)]
        got = extend_together([(started(large, seed), ids) for seed, ids in enumerate(parts)])
        assert all(torch.equal(*pair) for pair in zip(got, alone, strict=True))
    assert 5 * 25 <= MOST_ROWS < 6 * 25


def test_it_computes_what_the_model_does(large):
    text, head = large
    exact = text.float(), head.float()
    wanted = started(exact).extend([5, 6, 7])
    got = started((text.bfloat16(), head.bfloat16())).extend([5, 6, 7]).float()
    assert (got - wanted).norm() < 0.02 * wanted.norm()


class Uneven(nn.Linear):
    """Whose bits change with so many rows."""

    rows: tuple[int, ...] = ()

    def forward(self, x):
        return x.sum(-1, keepdim=True) + (1e-3 if len(x) in self.rows else 0)


@pytest.mark.parametrize(("rows", "least"), [((), 1), ((1,), 2), ((2,), 0), ((64,), 0), ((1, MOST_ROWS), 0)])
def test_the_rows_from_which_on_bits_do_not_change(rows, least, monkeypatch):
    monkeypatch.setattr(batch_invariant, "_all_ones", lambda layer, _: layer)
    layer = Uneven(8, 8)
    layer.rows = rows
    with torch.no_grad():
        assert _least(layer) == least


def test_what_is_not_known_to_treat_each_row_alone():
    experts = model("qwen3_vl_moe")
    assert least_rows(experts.model.language_model, experts.get_output_embeddings()) == 0


def test_layers_are_tried_once_on_a_machine(large, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HIPPO_STATE", raising=False)
    monkeypatch.setattr(batch_invariant, "_known", WeakKeyDictionary())
    found = least_rows(*large)
    assert list(state.folder().iterdir())
    monkeypatch.setattr(batch_invariant, "_least", lambda layer: pytest.fail("tried again"))
    monkeypatch.setattr(batch_invariant, "_known", WeakKeyDictionary())
    assert least_rows(*large) == found
    monkeypatch.setattr(batch_invariant, "_tried", lambda *_: pytest.fail("asked again"))
    assert least_rows(*large) == found
