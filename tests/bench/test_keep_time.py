"""Predicted seconds: by hand where nothing is drafted in vain, and what they depend on."""

import pytest

from hippo.bench.keep_time import Pace, of_shape
from hippo.bench.simulate import Guess

RIGHT = [Guess(True, 0.95)] * 40
WRONG = [Guess(False, 0.95)] * 40


def pace(beside, prompt=lambda length: 0.001 * length):
    return Pace("one", lambda width: 1.0, 10.0, lambda length: 0.1 + 0.001 * length, prompt, beside, 0.01)


@pytest.mark.parametrize("beside", [False, True])
def test_a_draft_that_is_right_saves_time(beside):
    plain = 10.0 + len(RIGHT)
    assert pace(beside).seconds(RIGHT, 100, 0.9) < 0.6 * plain
    assert pace(beside).seconds(WRONG, 100, 0.1) >= plain


def test_inline_the_prompt_is_waited_for_and_beside_it_is_not():
    slow = {beside: pace(beside, lambda length: 5.0).seconds(RIGHT, 100, 0.9) for beside in (False, True)}
    fast = {beside: pace(beside, lambda length: 0.0).seconds(RIGHT, 100, 0.9) for beside in (False, True)}
    assert slow[False] - fast[False] == pytest.approx(5.0)
    assert 0 < slow[True] - fast[True] < 5.0


def test_a_longer_prompt_makes_each_draft_step_slower():
    one = pace(False, lambda length: 0.0)
    assert one.seconds(RIGHT, 10, 0.9) < one.seconds(RIGHT, 1000, 0.9)


def test_costs_are_as_answers_would_have_measured_them():
    costs = pace(True).costs(200)
    assert costs.draft(False) == pytest.approx(0.3) and sum(costs.target(True)) == pytest.approx(1.0)
    assert costs.prompts[-1] == (200, pytest.approx(0.2)) and costs.prompt(400) == pytest.approx(0.4)


def test_a_shape_reads_its_weights_and_cache():
    short, long = of_shape("qwen2.5-vl-7b+3b", 512, 20), of_shape("qwen2.5-vl-7b+3b", 16384, 20)
    assert 0.002 < short.target(1) < long.target(1) < 0.02  # 15 GB at 2.7 TB/s
    assert short.draft(100) < short.target(1) and long.prefill > 20 * short.prefill
    assert 0 < short.growth < 1e-4 and not short.beside
