"""The attention score against eager attention and a slow obvious reference; listening changes nothing."""

import pytest
import torch

from hippo.families import family_of
from hippo.forward import CachedModel
from hippo.keep import attention
from hippo.keep.attention import Listener, attention_score, listening
from tests.models import FAMILIES, inputs, model


def test_against_a_slow_reference(monkeypatch):
    monkeypatch.setattr(attention, "_QUERIES_AT_ONCE", 4)
    torch.manual_seed(0)
    queries, keys = torch.randn(6, 5, 8), torch.randn(2, 11, 8)
    expected = torch.zeros(11)
    for head in range(6):
        for query in range(5):
            logits = torch.stack([queries[head, query] @ keys[head // 3, v] * 0.3 for v in range(11)])
            expected += logits.exp() / logits.exp().sum() / 30
    torch.testing.assert_close(attention_score(queries, keys, 0.3), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_listening_matches_eager_attention_and_leaves_the_prefill_alone(family):
    target, request = model(family), inputs(family)
    own = family_of(target)
    prompt, embeds = own.place(target, request), own.embed(target, request)

    def prefill():
        return CachedModel.of(own, target).prefill(embeds, prompt.positions, prompt.next_position)

    ready = []
    listener = Listener(prompt.question_at, prompt.video_at, "all", 3, lambda: ready.append("all"))
    early = Listener(prompt.question_at, prompt.video_at, "early", 3, lambda: ready.append("early"))
    others = [Listener(prompt.question_at, prompt.video_at, kind, 3) for kind in ("debiased", "outer")]
    with listening(own.language_model(target), listener, early, *others):
        heard = prefill()
    assert ready == ["early", "all"]
    assert torch.equal(heard, prefill())
    assert own.language_model(target).config._attn_implementation == "sdpa"

    target.set_attn_implementation("eager")
    try:
        positions = prompt.positions if len(prompt.positions) == 1 else prompt.positions[:, None]
        with torch.no_grad():
            maps = (
                own.language_model(target)(
                    inputs_embeds=embeds.tokens[None],
                    position_ids=positions,
                    attention_mask=torch.ones(1, len(embeds), dtype=torch.bool),
                    output_attentions=True,
                    use_cache=False,
                    **embeds.arguments,
                )
            ).attentions
    finally:
        target.set_attn_implementation("sdpa")
    # Full attention restricted to the video keys and renormalised is the softmax over the video keys only.
    rows = torch.stack(maps)[:, 0][:, :, prompt.question_at][..., prompt.video_at]
    expected = (rows / rows.sum(-1, keepdim=True)).mean(dim=(0, 1, 2))
    torch.testing.assert_close(listener.scores, expected, rtol=1e-4, atol=1e-6)
    rows = rows / rows.sum(-1, keepdim=True)
    torch.testing.assert_close(early.scores, rows[0].mean(dim=(0, 1)), rtol=1e-4, atol=1e-6)
    later, first = rows[:, :, 1:].mean(dim=(0, 1, 2)), rows[:, :, 0].mean(dim=(0, 1))
    debiased, outer = others
    torch.testing.assert_close(debiased.scores, later - first, rtol=1e-4, atol=1e-6)
    twice_the_first = rows[[0, 0, 2]].mean(dim=(0, 1, 2))
    torch.testing.assert_close(outer.scores, twice_the_first, rtol=1e-4, atol=1e-6)


def test_which_layers_count():
    assert list(attention.early(24)) == [0, 1, 2, 3, 4, 5] and list(attention.early(2)) == [0]
    assert attention.outer(24) == dict.fromkeys(range(6), 2.0) | dict.fromkeys(range(12, 24), 1.0)
    assert [sorted(attention.outer(count)) for count in (1, 2, 3, 4)] == [[0], [0, 1], [0, 2], [0, 2, 3]]


def test_an_error_while_listening_leaves_nothing_behind():
    target = model("qwen2_5_vl")
    text = family_of(target).language_model(target)
    with pytest.raises(ZeroDivisionError), listening(text, Listener(torch.tensor([0]), torch.tensor([0]), "all", 3)):
        raise ZeroDivisionError
    assert text.config._attn_implementation == "sdpa"
    assert not any("_hippo_listeners" in layer.__dict__ for layer in text.modules())
