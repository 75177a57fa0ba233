"""Choices that need more than a pruner sees: counts, order, and what each changes."""

from types import SimpleNamespace

import pytest
import torch

from hippo.bench.choices import CHOICES
from hippo.bench.evidence import Evidence
from hippo.bench.pruning import DESCRIBE
from hippo.draft.worker import load_draft
from hippo.families import VideoGrid
from hippo.pruning import PRUNERS, Signals
from hippo.video import read_video

GRID = VideoGrid(4, 3, 5)


@pytest.fixture
def evidence():
    torch.manual_seed(0)
    features, attention = torch.randn(60, 8), torch.rand(60)
    return SimpleNamespace(
        grid=GRID,
        features=features,
        draft_tokens=torch.randn(60, 6),
        signals={PRUNERS["hippo"].attention: Signals(GRID, features, attention)},
        spoken=torch.rand(39, 60),
        drafts=torch.rand(7, 60),
        answer=list(range(40)),
    )


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("count", [1, 6, 60])
def test_counts_and_order(name, count, evidence):
    choice = CHOICES[name](evidence, count)
    begins = [begin for begin, _ in choice.parts]
    assert begins[0] == 0 and begins == sorted(set(begins)) and begins[-1] < 39
    for number, (_, kept) in enumerate(choice.parts):
        tokens = kept.tolist()
        assert tokens == sorted(set(tokens)) and set(tokens) <= set(range(60))
        assert len(tokens) == (max(1, count // 2) if name == "added" and number == 0 else count)
    assert choice.tokens is None or choice.tokens.shape == (60, 6)


def test_what_is_added_comes_on_top(evidence):
    (_, first), (begin, both) = CHOICES["added"](evidence, 10).parts
    assert begin == 16 and set(first.tolist()) < set(both.tolist())


def test_rescoring_follows_the_answer(evidence):
    evidence.spoken[:16] = 0.0
    evidence.spoken[:16, 7] = 1.0  # the first tokens are about one place
    parts = dict(CHOICES["rescored"](evidence, 3).parts)
    assert list(parts) == [0, 16, 32] and 7 in parts[16].tolist()
    short = SimpleNamespace(**vars(evidence) | {"answer": [1, 2, 3]})
    assert len(CHOICES["rescored"](short, 3).parts) == len(CHOICES["added"](short, 3).parts) == 1


def test_merging_changes_only_kept_tokens_that_have_similar_ones(evidence):
    ((_, kept),) = CHOICES["merged"](evidence, 6).parts
    dropped = next(token for token in range(60) if token not in kept.tolist())
    evidence.draft_tokens[dropped] = 2 * evidence.draft_tokens[kept[0]]  # in the same direction
    tokens = CHOICES["merged"](evidence, 6).tokens
    changed = (tokens != evidence.draft_tokens).any(dim=1).nonzero()[:, 0].tolist()
    assert int(kept[0]) in changed and set(changed) <= set(kept.tolist())


def test_pooling_takes_the_mean_of_what_is_around(evidence):
    evidence.draft_tokens = torch.arange(60.0)[:, None].repeat(1, 6)
    choice = CHOICES["pooled"](evidence, 3)
    ((_, kept),) = choice.parts
    assert choice.tokens[kept].mean() == pytest.approx(29.5, abs=1)


@torch.no_grad()
def test_evidence_of_a_request(tiny):
    """The draft proposes what it would in the real decoder, and its answer is the target's own."""
    draft = load_draft(tiny.pair.require_draft().checkpoint, "float32", "cpu")
    attention = PRUNERS["hippo"].attention
    video = read_video("hippo/bundled/demo.mp4", frames=4)
    found = Evidence(tiny, draft, video, DESCRIBE, {attention}, cross=True)
    assert found.answer == tiny.generate(video, DESCRIBE, method="ar").token_ids
    tokens, places = found.grid.tokens, len(found.answer) - 1
    assert found.spoken.shape == (places, tokens) and found.spoken.sum(-1).allclose(torch.ones(places), atol=1e-3)
    assert found.drafts.shape[1] == tokens and found.drafts.sum(-1).allclose(torch.ones(len(found.drafts)), atol=1e-3)
    every = found.outcome(CHOICES["both"](found, tokens))
    assert len(every.right) == places and 0 < every.overlap <= 1
    changed = found.outcome(CHOICES["pooled"](found, 4))
    assert changed.overlap < every.overlap
