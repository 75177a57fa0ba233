"""How many tokens "auto" keeps, from costs that are given, and in requests."""

import pytest

import hippo
from hippo.decode import Costs
from hippo.keeping import KeepCosts
from hippo.pruning import RATIOS

CLIP = "hippo/bundled/demo.mp4"
STEEP = {0.02: 0.9, 0.05: 0.97, 0.1: 1.0, 0.2: 1.0, 0.5: 1.0, 1.0: 1.0}  # a few tokens hold nearly all
FLAT = {ratio: ratio for ratio in RATIOS}


def known(prompt=1e-4, target=0.05, draft=0.005):
    """Costs of a pair whose draft reads a token of its prompt in so many seconds."""
    costs = Costs()
    for _ in range(3):
        for width in (1, 4, 8):
            for both in (False, True):
                costs.saw_target(width, target * (1 + 0.01 * width), both)
        for both in (False, True):
            costs.saw_draft(draft, both)
    costs.prompts.extend((tokens, tokens * prompt) for tokens in (50, 100))
    return costs


def best(holds, video_tokens, costs=None, beside=False, most=1.0, growth=1e-5, tokens=100.0):
    return KeepCosts(costs or known(), 0.8, 1.0, growth, 20, beside, tokens).best(holds, video_tokens, most)


def test_a_flat_score_keeps_more_than_one_with_a_peak():
    assert best(STEEP, 2000) < best(FLAT, 2000)


def test_the_more_video_the_smaller_the_share():
    ratios = [best(FLAT, tokens) for tokens in (100, 1000, 10_000, 100_000)]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > ratios[-1]


def test_a_prompt_that_costs_more_is_kept_shorter():
    assert best(FLAT, 5000, known(prompt=1e-3)) < best(FLAT, 5000, known(prompt=1e-6))


def test_a_longer_answer_is_worth_more_tokens():
    assert best(FLAT, 5000, tokens=10.0) <= best(FLAT, 5000, tokens=1000.0)


def test_never_more_than_allowed():
    assert best(FLAT, 100, most=0.1) <= 0.1 and best(FLAT, 100, most=0.01) == 0.01


def test_a_tenth_until_costs_are_known():
    assert best(FLAT, 100, Costs()) == 0.1 and best(FLAT, 100, Costs(), most=0.05) == 0.05


def test_the_choice_is_the_best_of_all_predicted():
    costs = KeepCosts(known(), 0.7, 0.5, 1e-4, 20, True, 64.0)
    seconds = {ratio: costs.seconds(round(ratio * 3000), FLAT[ratio]) for ratio in RATIOS}
    assert seconds[costs.best(FLAT, 3000, 1.0)] == min(seconds.values())


@pytest.mark.parametrize("beside", [False, True])
def test_a_draft_that_never_pays_off_keeps_little(beside):
    assert best(FLAT, 20_000, known(draft=0.5, prompt=1e-2), beside=beside) == min(RATIOS)


def test_requests_measure_what_auto_needs_and_stats_say_what_was_kept():
    with hippo.load("tiny", draft_worker="inline") as llm:
        first = llm.generate(CLIP, max_new_tokens=40)
        second = llm.generate(CLIP, max_new_tokens=40)
        fixed = llm.generate(CLIP, max_new_tokens=40, keep_ratio=0.1)
        bound = llm.generate(CLIP, max_new_tokens=40, keep_at_most=0.02)
        draft = llm.pair.require_draft()
        assert draft.growth > 0 and draft.costs.prompts and draft.answer_tokens < 100
    assert first.token_ids == second.token_ids == fixed.token_ids == bound.token_ids
    video = second.stats.video_tokens
    assert second.stats.kept_tokens in {max(1, round(ratio * video)) for ratio in RATIOS}
    assert fixed.stats.kept_tokens == round(0.1 * video) and bound.stats.kept_tokens == round(0.02 * video)
    assert 0 < bound.stats.captured < fixed.stats.captured < 1


def test_other_pruners_keep_a_tenth_under_auto():
    with hippo.load("tiny", draft_worker="inline") as llm:
        for _ in range(2):
            stats = llm.generate(CLIP, max_new_tokens=20, pruner="uniform").stats
            assert stats.kept_tokens == round(0.1 * stats.video_tokens)


def test_what_was_learned_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HIPPO_STATE", raising=False)
    with hippo.load("tiny", draft_worker="inline") as llm:
        llm.generate(CLIP, max_new_tokens=40)
        draft = llm.pair.require_draft()
        learned = draft.captured, draft.answer_tokens, draft.costs.prompts
    with hippo.load("tiny", draft_worker="inline") as llm:
        draft = llm.pair.require_draft()
        assert (draft.captured, draft.answer_tokens, draft.costs.prompts) == learned
