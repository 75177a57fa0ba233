"""What decoding costs: lines through what was measured."""

import pytest

from hippo.decode import Costs


def test_a_prompt_costs_what_starting_and_its_tokens_cost():
    costs = Costs()
    assert costs.prompt(50) == 0
    costs.prompts.append((100, 0.2))
    assert costs.prompt(100) == pytest.approx(0.2) and costs.prompt(300) == pytest.approx(0.4)  # half is the start
    costs.prompts.extend([(200, 0.25), (200, 9.0), (200, 0.25)])  # one hiccup does not count
    assert costs.prompt(400) == pytest.approx(0.35)
    assert Costs.of_dict(costs.as_dict()).prompts == costs.prompts


def test_draft_steps_that_take_longer():
    costs = Costs()
    costs.saw_draft(0.1, both=False)
    costs.saw_target(1, 1.0, both=False)
    slower = costs.with_draft(3.0)
    assert slower.draft(False) == pytest.approx(0.3) and costs.draft(False) == pytest.approx(0.1)
    assert slower.target(False) == costs.target(False)


def test_a_forward_takes_no_longer_than_a_wider_one():
    """One that was measured on a busy machine would else make every draft seem worth its time."""
    costs = Costs()
    for _ in range(5):
        costs.saw_target(1, 0.8, both=False)
        costs.saw_target(5, 0.1, both=False)
        costs.saw_target(9, 0.12, both=False)
    fixed, slope = costs.target(False)
    assert fixed + slope < 0.1 and fixed + 9 * slope == pytest.approx(0.12, rel=0.1)
