"""The figures, as method.md defines them."""

import json

from hippo.stats import Stats


def test_definitions():
    stats = Stats(new_tokens=21, target_forwards=5, checked=20, accepted=16, rejections=4)
    assert stats.tokens_per_target_forward == 4.0, "the first token came from the prefill"
    assert stats.acceptance_rate == 0.8 and stats.run_between_rejections == 4.0


def test_gamma_is_what_was_drafted_for_a_forward():
    assert Stats(draft_forwards=30, draft_rounds=4, target_forwards=9).gamma == 7.5


def test_nothing_happened():
    stats = Stats(new_tokens=1)
    assert (
        stats.gamma == stats.tokens_per_target_forward == stats.acceptance_rate == stats.run_between_rejections == 0.0
    )


def test_json():
    counts = json.loads(json.dumps(Stats(draft_lost="it died").as_dict()))
    assert counts["draft_lost"] is True and counts["draft_lost_reason"] == "it died"


def test_accepted_tokens_are_counted_by_place():
    stats = Stats()
    for count in (2, 0, 3, 1):
        stats.accept(count)
    assert stats.accepted == 6 and stats.accepted_at == [3, 2, 1]
