"""The stop rule."""

from hypothesis import given
from hypothesis import strategies as st

from hippo.decode.stop import StopRule


def letters(ids):
    return "".join(chr(97 + i) for i in ids)


def test_eos_inside_a_window_ends_it_there():
    rule = StopRule([9], 100)
    assert rule.cut([1], [2, 9, 3]) == [2, 9] and rule.reason == "eos"


def test_length_inside_a_window():
    rule = StopRule([], 3)
    assert rule.cut([1, 1], [2, 3, 4]) == [2] and rule.reason == "length"


def test_a_string_that_spans_windows_ends_at_its_last_token():
    rule = StopRule([], 100, ["cde"], letters)
    assert rule.cut([], [0, 2]) == [0, 2] and rule.reason is None
    assert rule.cut([0, 2], [3, 4, 5]) == [3, 4] and rule.reason == "stop"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 40))
def test_windows_end_where_single_steps_end(tokens, width, length):
    """However the tokens arrive, the answer is the same."""

    def run(width):
        rule, answer = StopRule([3], length, ["aba"], letters), []
        for start in range(0, len(tokens), width):
            answer += rule.cut(answer, tokens[start : start + width])
            if rule.reason:
                break
        return answer, rule.reason

    assert run(width) == run(1)


def test_a_callers_own_end_is_asked_once_for_each_token():
    asked = []
    rule = StopRule([9], 100, ends=lambda tokens: asked.append(tokens) or len(tokens) == 4)
    assert rule.cut([], [1]) == [1] and rule.cut([1], [2, 3]) == [2, 3] and rule.reason is None
    assert rule.cut([1, 2, 3], [4, 5, 6]) == [4] and rule.reason == "stop"
    assert asked == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    rule = StopRule([9], 2, ends=lambda tokens: True)
    assert rule.cut([1], [2, 3]) == [2] and rule.reason == "length"
