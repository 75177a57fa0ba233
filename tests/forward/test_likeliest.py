"""The token that a draft proposes, against transformers' own penalty."""

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from hippo.forward import Repetition, likeliest


def test_a_penalty_is_that_of_transformers():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    text = torch.tensor([4, 7, 7, 31, *logits.argmax(-1).tolist()])
    repetition = Repetition(torch.zeros(50, dtype=torch.bool), torch.tensor(1.6)).followed_by(text)
    ids, probs = likeliest(logits, 50, repetition)
    expected = RepetitionPenaltyLogitsProcessor(1.6)(text.expand(3, -1), logits.clone()).softmax(-1).max(-1)
    assert torch.equal(ids, expected.indices) and torch.equal(probs, expected.values)
    assert not torch.equal(ids, logits.argmax(-1))


def test_only_ids_below_the_limit_are_taken_and_a_row_is_not_changed():
    logits = torch.tensor([[1.0, 2.0, 9.0]])
    ids, probs = likeliest(logits, 2)
    assert ids.tolist() == [1] and torch.allclose(probs, logits[0, :2].softmax(-1)[1:])
    seen = torch.tensor([False, True])
    assert likeliest(logits, 2, Repetition(seen, torch.tensor(4.0)))[0].tolist() == [0]
    assert logits.tolist() == [[1.0, 2.0, 9.0]] and seen.tolist() == [False, True]
