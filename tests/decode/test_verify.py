"""The verify rule: properties, and statistics against the exact distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
)

from hippo.decode import Verifier, logits_processors
from hippo.params import SamplingParams
from tests.models import inputs, model

PROMPT = torch.tensor([1, 2, 3])
SEEDS = 8_000


def verifier(seed=0, temperature=1.0, processors=()):
    return Verifier(SamplingParams(temperature=temperature, seed=seed), LogitsProcessorList(processors), PROMPT)


def rows_of(tokens, vocabulary=6):
    """Logits whose argmax in row i is tokens[i]."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocabulary).float()


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_greedy_accepts_the_longest_right_prefix(best, data):
    drafted = data.draw(st.lists(st.integers(0, 5), min_size=len(best) - 1, max_size=len(best)))
    accepted, token, rejected = verifier(temperature=0).verify(rows_of(best), drafted)
    wrong = [i for i, (a, b) in enumerate(zip(best, drafted, strict=False)) if a != b]
    if wrong:
        assert (accepted, token, rejected) == (best[: wrong[0]], best[wrong[0]], True)
    else:
        assert (accepted, token, rejected) == (drafted, best[-1] if len(drafted) < len(best) else None, False)


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
    verdict = verifier(temperature=0, processors=penalty).verify(rows.clone(), expected[:-1])
    assert verdict == (expected[:-1], expected[-1], False)


class Counting(RepetitionPenaltyLogitsProcessor):
    """Counts its calls."""

    calls = 0

    def __call__(self, input_ids, scores):
        Counting.calls += 1
        return super().__call__(input_ids, scores)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_all_rows_go_through_penalties_at_once(temperature, monkeypatch):
    """One call for a window, and the text of single steps, for a vocabulary wide enough to be divided among threads."""
    monkeypatch.setattr("hippo.decode.verify._OF_A_SET", (Counting, TopKLogitsWarper))
    rows = torch.randn(6, 20_000, generator=torch.Generator().manual_seed(2))
    processors = [Counting(1.9), TopKLogitsWarper(50)]
    judge, text = verifier(seed=5, temperature=temperature, processors=processors), []
    for row in rows:
        text.append(judge.verify(row[None], []).bonus_token)
        judge.commit(text[-1:])
    before = rows.clone()
    Counting.calls = 0
    verdict = verifier(seed=5, temperature=temperature, processors=processors).verify(rows, text[:5])
    assert verdict == (text[:5], text[5], False) and Counting.calls == 1 and torch.equal(rows, before)
    verdict = verifier(seed=5, temperature=temperature, processors=processors).verify(rows[:3], [*text[:2], -1])
    assert verdict == (text[:2], text[2], True)


def test_one_with_state_is_called_once_for_each_place_that_is_judged():
    seen = []

    def processor(ids, scores):
        seen.append(ids[0].tolist())
        return scores

    judge = Verifier(SamplingParams(temperature=0), processor, PROMPT)
    assert judge.verify(rows_of([4, 5, 1, 2]), [4, 0, 1]) == ([4], 5, True)
    assert seen == [[1, 2, 3], [1, 2, 3, 4]]


def test_what_depends_on_the_order_of_tokens_goes_row_by_row():
    rows = rows_of([1, 2, 1, 2]) + rows_of([5, 5, 5, 5]) / 2
    processors = [NoRepeatNGramLogitsProcessor(2)]
    judge, text = verifier(temperature=0, processors=processors), []
    for row in rows:
        text.append(judge.verify(row[None].clone(), []).bonus_token)
        judge.commit(text[-1:])
    assert text != [1, 2, 1, 2]
    verdict = verifier(temperature=0, processors=processors).verify(rows.clone(), text[:3])
    assert verdict == (text[:3], text[3], False)


def test_committed_tokens_count_for_penalties():
    judge = verifier(temperature=0, processors=[RepetitionPenaltyLogitsProcessor(10.0)])
    row = torch.tensor([[0.0, 0, 0, 0, 1.0, 0.9]])
    assert judge.verify(row.clone(), []) == ([], 4, False)
    judge.commit([4])
    assert judge.verify(row.clone(), []) == ([], 5, False)


@pytest.mark.parametrize("drafted", [0, 3, 5])
def test_sampling_with_a_draft_follows_the_target_exactly(drafted):
    """Whatever is drafted, the token that ends up in the text is drawn from p: chi-square, fixed seeds."""
    torch.manual_seed(1)
    logits = torch.randn(1, 6) * 1.5
    counts = torch.zeros(6)
    for seed in range(SEEDS):
        accepted, token, _ = verifier(seed=seed).verify(logits, [drafted])
        counts[drafted if accepted else token] += 1
    assert (
        chisquare(counts, logits[0].softmax(-1).double() * SEEDS / logits[0].softmax(-1).double().sum()).pvalue > 0.01
    )


def test_a_rejected_token_is_replaced_from_the_masked_residual():
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(4))
    p, counts = logits[0].double().softmax(-1), torch.zeros(6)
    for seed in range(SEEDS):
        accepted, token, _ = verifier(seed=seed).verify(torch.cat([logits, logits]), [2])
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
    judge, text = verifier(seed=3), []
    for row in rows:
        text.append(judge.verify(row[None], []).bonus_token)
        judge.commit(text[-1:])
    assert len(set(text)) > 1
    accepted, token, _ = verifier(seed=3).verify(rows[: len(drafted) + 1], drafted)
    assert [*accepted, token] == text[: len(accepted) + 1]


def test_top_k_top_p_and_temperature_are_those_of_transformers():
    target = model("qwen2_5_vl")
    ids = inputs("qwen2_5_vl")["input_ids"][0]
    processors = logits_processors(target, SamplingParams(temperature=0.7, top_k=5, top_p=0.8, seed=1), ids)
    row = torch.randn(1, 160, generator=torch.Generator().manual_seed(3))
    left = processors(ids[None], row.clone())[0]
    sorted_p, order = (row[0] / 0.7).topk(5).values.softmax(-1), (row[0] / 0.7).topk(5).indices
    expected = order[: int((sorted_p.cumsum(0) < 0.8).sum()) + 1]
    assert set(left.isfinite().nonzero()[:, 0].tolist()) == set(expected.tolist())


def test_the_checkpoints_own_penalties_are_kept():
    target = model("qwen2_5_vl", 3)
    target.generation_config.repetition_penalty = 1.3
    try:
        processors = logits_processors(target, SamplingParams(), PROMPT)
        assert [type(p).__name__ for p in processors] == ["RepetitionPenaltyLogitsProcessor"]
    finally:
        target.generation_config.repetition_penalty = None


def test_min_p_and_a_penalty_of_ones_own_are_those_of_transformers():
    target = model("qwen2_5_vl")
    processors = logits_processors(target, SamplingParams(temperature=1.0, min_p=0.5, repetition_penalty=1.5), PROMPT)
    row = torch.tensor([[2.0, 3.0, 0.0, 1.0, 1.9, -5.0]])
    left = processors(PROMPT[None], row.clone())[0]
    assert left.isfinite().nonzero()[:, 0].tolist() == [0, 1, 4], "1 falls to 2, 3 to 0.7"
