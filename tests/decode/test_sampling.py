"""The verify rule: properties, and statistics against the exact distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from hippo.decode.sampling import Chooser, Sampling, logits_processors
from hippo.errors import HippoError
from tests.models import inputs, model

PROMPT = torch.tensor([1, 2, 3])


def chooser(seed=0, temperature=1.0, processors=()):
    return Chooser(Sampling(temperature, seed=seed), LogitsProcessorList(processors), PROMPT)


def rows_of(tokens, vocabulary=6):
    """Logits whose argmax in row i is tokens[i]."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocabulary).float()


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_greedy_accepts_the_longest_right_prefix(best, data):
    drafted = data.draw(st.lists(st.integers(0, 5), min_size=len(best) - 1, max_size=len(best)))
    accepted, token = chooser(temperature=0).choose(rows_of(best), drafted)
    wrong = [i for i, (a, b) in enumerate(zip(best, drafted, strict=False)) if a != b]
    if wrong:
        assert (accepted, token) == (wrong[0], best[wrong[0]])
    else:
        assert (accepted, token) == (len(drafted), best[-1] if len(drafted) < len(best) else None)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_penalties_are_applied_row_by_row_as_in_single_steps(best, data):
    """A block must be judged as generate() would have judged it token by token."""
    torch.manual_seed(len(best))
    rows = torch.randn(len(best), 6)
    penalty = [RepetitionPenaltyLogitsProcessor(1.7)]
    ids, expected = PROMPT.tolist(), []
    for row in rows:
        expected.append(int(penalty[0](torch.tensor([ids]), row[None].clone())[0].argmax()))
        ids.append(expected[-1])
    accepted, token = chooser(temperature=0, processors=penalty).choose(rows.clone(), expected[:-1])
    assert (accepted, token) == (len(best) - 1, expected[-1])


def test_committed_tokens_count_for_penalties():
    judge = chooser(temperature=0, processors=[RepetitionPenaltyLogitsProcessor(10.0)])
    row = torch.tensor([[0.0, 0, 0, 0, 1.0, 0.9]])
    assert judge.choose(row.clone(), []) == (0, 4)
    judge.commit([4])
    assert judge.choose(row.clone(), []) == (0, 5)


@pytest.mark.parametrize("drafted", [0, 3, 5])
def test_sampling_with_a_draft_follows_the_target_exactly(drafted):
    """Whatever is drafted, the token that ends up in the text is drawn from p: chi-square, fixed seeds."""
    torch.manual_seed(1)
    logits = torch.randn(1, 6) * 1.5
    counts = torch.zeros(6)
    for seed in range(20_000):
        accepted, token = chooser(seed=seed).choose(logits, [drafted])
        counts[drafted if accepted else token] += 1
    assert (
        chisquare(counts, logits[0].softmax(-1).double() * 20_000 / logits[0].softmax(-1).double().sum()).pvalue > 0.01
    )


def test_a_rejected_token_is_replaced_from_the_masked_residual():
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(4))
    p, counts = logits[0].double().softmax(-1), torch.zeros(6)
    for seed in range(20_000):
        accepted, token = chooser(seed=seed).choose(torch.cat([logits, logits]), [2])
        if not accepted:
            counts[token] += 1
    assert counts[2] == 0
    left = [i for i in range(6) if i != 2]
    expected = p[left] / p[left].sum() * counts.sum()
    assert chisquare(counts[left], expected * counts[left].sum() / expected.sum()).pvalue > 0.01


@pytest.mark.parametrize("drafted", [[], [0], [3, 3], [5, 1, 2], [1, 1, 1, 1]])
def test_a_seed_gives_the_same_text_whatever_is_drafted(drafted):
    """Windows of any width and content against single steps."""
    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))
    judge, text = chooser(seed=3), []
    for row in rows:
        text.append(judge.choose(row[None], [])[1])
        judge.commit(text[-1:])
    assert len(set(text)) > 1
    accepted, token = chooser(seed=3).choose(rows[: len(drafted) + 1], drafted)
    assert [*drafted[:accepted], token] == text[: accepted + 1]


def test_top_k_top_p_and_temperature_are_those_of_transformers():
    target = model("qwen2_5_vl")
    ids = inputs("qwen2_5_vl")["input_ids"][0]
    processors = logits_processors(target, Sampling(0.7, top_k=5, top_p=0.8, seed=1), ids, 9)
    row = torch.randn(1, 160, generator=torch.Generator().manual_seed(3))
    left = processors(ids[None], row.clone())[0]
    sorted_p, order = (row[0] / 0.7).topk(5).values.softmax(-1), (row[0] / 0.7).topk(5).indices
    expected = order[: int((sorted_p.cumsum(0) < 0.8).sum()) + 1]
    assert set(left.isfinite().nonzero()[:, 0].tolist()) == set(expected.tolist())


def test_the_checkpoints_own_penalties_are_kept():
    target = model("qwen2_5_vl", 3)
    target.generation_config.repetition_penalty = 1.3
    try:
        processors = logits_processors(target, Sampling(), PROMPT, 9)
        assert [type(p).__name__ for p in processors] == ["RepetitionPenaltyLogitsProcessor"]
    finally:
        target.generation_config.repetition_penalty = None


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(HippoError, match=next(iter(wrong))):
        Sampling(**wrong)
