"""The attention score against eager attention and a slow obvious reference; recording changes nothing."""

from threading import Barrier, Thread

import pytest
import torch

from hippo.families import family_of
from hippo.forward import CachedModel
from hippo.pruning import attention
from hippo.pruning.attention import Attention, AttentionRecorder, attention_score, recording
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
def test_recorded_scores_match_eager_attention_and_the_prefill_is_unchanged(family):
    target, request = model(family), inputs(family)
    own = family_of(target)
    prompt, embeds = own.prepare_prompt(target.config, request), own.embed(target, request)

    def prefill():
        return CachedModel.of(own, target).prefill(embeds, prompt.positions, prompt.next_position)

    ready = []

    def recorder_of(layers):
        at = prompt.question_at, prompt.video_at
        return AttentionRecorder(*at, Attention(layers), 3, lambda: ready.append(layers.__name__))

    every, early, outer = map(recorder_of, (attention.all_layers, attention.early_layers, attention.outer_layers))
    with recording(every, early, outer):
        logits = prefill()
    assert ready == ["early_layers", "all_layers", "outer_layers"]
    assert torch.equal(logits, prefill())
    assert len(ready) == 3, "nothing is recorded afterwards"
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
    torch.testing.assert_close(every.scores, expected, rtol=1e-4, atol=1e-6)
    rows = rows / rows.sum(-1, keepdim=True)
    torch.testing.assert_close(early.scores, rows[0].mean(dim=(0, 1)), rtol=1e-4, atol=1e-6)
    twice_the_first = rows[[0, 0, 2]].mean(dim=(0, 1, 2))
    torch.testing.assert_close(outer.scores, twice_the_first, rtol=1e-4, atol=1e-6)


def test_which_layers_count():
    assert list(attention.early_layers(24)) == [0, 1, 2, 3, 4, 5] and list(attention.early_layers(2)) == [0]
    assert attention.outer_layers(24) == dict.fromkeys(range(6), 2.0) | dict.fromkeys(range(12, 24), 1.0)
    assert [sorted(attention.outer_layers(count)) for count in (1, 2, 3, 4)] == [[0], [0, 1], [0, 2], [0, 2, 3]]


def recorder_and_prefill(family, seed):
    """A recorder of one request of the family's model, and what reads that request."""
    target, request, own = model(family), inputs(family, seed=seed), family_of(model(family))
    prompt, embeds = own.prepare_prompt(target.config, request), own.embed(target, request)
    recorder = AttentionRecorder(prompt.question_at, prompt.video_at, Attention(), 3)
    return recorder, lambda: CachedModel.of(own, target).read(embeds, prompt)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_two_threads_record_two_requests_of_one_model_at_the_same_time(implementation):
    target = model("qwen2_5_vl")
    target.set_attn_implementation(implementation)
    try:
        alone = []
        for seed in (1, 2):
            recorder, prefill = recorder_and_prefill("qwen2_5_vl", seed)
            with recording(recorder):
                prefill()
            alone.append(recorder.scores)
        both, barrier = [recorder_and_prefill("qwen2_5_vl", seed) for seed in (1, 2)], Barrier(2)

        def work(recorder, prefill):
            with recording(recorder):
                barrier.wait()
                prefill()
                barrier.wait()  # neither stops recording before the other is done

        threads = [Thread(target=work, args=one) for one in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for (recorder, _), scores in zip(both, alone, strict=True):
            torch.testing.assert_close(recorder.scores, scores)
    finally:
        target.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_is_never_recorded(family, monkeypatch):
    target, request = model(family), inputs(family)
    recorder, _ = recorder_and_prefill(family, 0)
    monkeypatch.setattr(recorder, "record", lambda *_: pytest.fail("recorded"))
    with recording(recorder):
        family_of(target).embed(target, request)


def test_recording_ends_with_an_error_and_nothing_is_changed_meanwhile():
    target = model("qwen2_5_vl")
    text = family_of(target).language_model(target)
    before = dict(text.config.__dict__), [dict(layer.__dict__) for layer in text.modules()]
    recorder, prefill = recorder_and_prefill("qwen2_5_vl", 0)
    with pytest.raises(ZeroDivisionError), recording(recorder), recording():
        prefill()
        assert before == (dict(text.config.__dict__), [dict(layer.__dict__) for layer in text.modules()])
        raise ZeroDivisionError
    scores = recorder.scores
    prefill()
    assert torch.equal(recorder.scores, scores)
