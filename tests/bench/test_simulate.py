"""The machine without overhead: by hand, and against the replay without a clock."""

import random

import pytest

from hippo.bench.replay import replay
from hippo.bench.simulate import Guess, Simulated, ideal


def flat(width):
    return 10.0


def guesses(rate, count=200, seed=0):
    dice = random.Random(seed)
    return [Guess(dice.random() < rate, rate) for _ in range(count)]


def test_one_token_a_forward():
    assert ideal(guesses(0.5, 7), flat, 1.0, "ar") == Simulated(70.0, 7)


def test_in_turns_by_hand():
    answer = [Guess(True, 0.9)] * 6
    assert ideal(answer, flat, 1.0, "serial", gamma=2) == Simulated(2 * (2 + 10), 2)
    wrong = [Guess(False, 0.9)] * 3
    # The draft is never asked for more than the answer may still hold.
    assert ideal(wrong, flat, 1.0, "serial", gamma=2) == Simulated((2 + 10) + (2 + 10) + (1 + 10), 3)


def test_lock_step_by_hand():
    # A pre-verify checks the first token of a chunk; each post-verify then a chunk of four, drafted meanwhile.
    assert ideal([Guess(True, 0.9)] * 9, flat, 1.0, "parallel", gamma=4) == Simulated(30.0, 3)
    # A slow draft: the eighth token is there at 40, and the forward that checks it and the ninth takes 10.
    assert ideal([Guess(True, 0.9)] * 9, flat, 5.0, "parallel", gamma=4) == Simulated(50.0, 3)


@pytest.mark.parametrize("decoder", ["serial", "parallel"])
def test_until_the_draft_has_read_its_prompt_the_target_works_alone(decoder):
    answer = [Guess(True, 0.9)] * 9
    # Two tokens by the target alone, then as if the answer began there.
    later, rest = (ideal(each, flat, 1.0, decoder, 4, begins) for each, begins in ((answer, 15.0), (answer[2:], 0.0)))
    assert later == Simulated(20.0 + rest.seconds, 2 + rest.forwards)
    assert ideal(answer, flat, 1.0, decoder, 4, begins=1000.0) == ideal(answer, flat, 1.0, "ar")


@pytest.mark.parametrize("gamma", [1, 3, 8])
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
def test_in_turns_it_counts_what_the_replay_counts(gamma, rate):
    answer = guesses(rate)
    counts = replay([guess.right for guess in answer], gamma, len(answer))
    assert ideal(answer, flat, 1.0, "serial", gamma).forwards == counts.forwards


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("draft", [0.5, 1.0, 3.0])
def test_working_at_the_same_time_is_never_slower_than_in_turns_or_alone(rate, draft):
    answer = guesses(rate, 400)

    def target(width):
        return 9.0 + 0.5 * width

    alone = ideal(answer, target, draft, "ar").seconds
    turns, together = (ideal(answer, target, draft, decoder).seconds for decoder in ("serial", "parallel"))
    assert together <= 1.03 * turns and together <= 1.05 * alone


def test_knowing_how_sure_it_is_helps():
    dice = random.Random(1)
    honest = [
        Guess(dice.random() < sure, sure) for sure in (dice.choice((0.5, 0.999, 0.999, 0.999)) for _ in range(600))
    ]
    mean = sum(guess.prob for guess in honest) / len(honest)
    blunt = [Guess(guess.right, mean) for guess in honest]

    def target(width):
        return 5.0 + 0.4 * width

    assert ideal(honest, target, 0.4, "parallel").seconds < 0.97 * ideal(blunt, target, 0.4, "parallel").seconds
