"""Prompt lookup against a search of the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hippo.draft.ngram import NGram


def searched(text, count):
    """What followed the latest earlier occurrence of the last 4, 3 or 2 tokens, repeated as often as needed."""
    for size in (4, 3, 2):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                following = text[end:]
                return [following[place % len(following)] for place in range(count)]
    return []


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6), st.integers(1, 9))
def test_it_finds_the_latest_of_the_longest(parts, count):
    drafter, text = NGram(), []
    for part in parts:
        drafter.commit(part)
        text += part
        assert drafter.propose(count) == searched(text, count)


def test_it_proposes_what_the_prompt_says():
    drafter = NGram()
    drafter.commit([1, 2, 3, 4, 5, 6, 7])
    assert drafter.propose(3) == []
    drafter.commit([3, 4])
    assert drafter.propose(3) == [5, 6, 7]


def test_longer_matches_win_over_later_ones():
    drafter = NGram()
    drafter.commit([1, 2, 3, 4, 8, 3, 4, 9, 1, 2, 3, 4])
    assert drafter.propose(1) == [8]


def test_a_loop_goes_on():
    drafter = NGram()
    drafter.commit([5, 1, 2, 1, 2])
    assert drafter.propose(5) == [1, 2, 1, 2, 1]
