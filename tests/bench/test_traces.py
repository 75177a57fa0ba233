"""What a draft would propose, and what forwards cost."""

import pytest
import torch

from hippo.bench.simulate import Guess
from hippo.bench.traces import by_width, draft_rows, guesses, prefilled, step_seconds
from hippo.families import family_of
from tests.models import generated, inputs, model


def test_a_draft_that_is_the_target_guesses_everything():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    family, answer = family_of(target), generated(target, request)
    prompt, embeds = family.prepare_prompt(target.config, request), family.embed(target, request)
    rows = draft_rows(family, target, prompt, embeds, torch.arange(len(prompt.video_at)), answer[:-1])
    assert all(guess.right for guess in guesses(rows, answer[1:]))
    blind = draft_rows(family, target, prompt, embeds, torch.arange(0), answer[:-1])
    assert not all(guess.right for guess in guesses(blind, answer[1:]))


def test_a_guess_is_the_likeliest_token_and_its_probability():
    rows = torch.tensor([[0.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
    first, second = guesses(rows, [1, 2])
    assert first == Guess(True, pytest.approx(float(rows[0].softmax(-1)[1]))) and not second.right


def test_costs_lie_on_lines_between_those_measured():
    cost = by_width({1: 10.0, 3: 14.0, 7: 16.0})
    assert [cost(width) for width in (1, 2, 3, 5, 7, 9)] == [10, 12, 14, 15, 16, 17]


def test_timing_leaves_the_cache_and_the_threads_as_they_were():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    family = family_of(target)
    prompt = family.prepare_prompt(target.config, request)
    everything = torch.arange(len(prompt.video_at))
    reader = prefilled(family, target, prompt, family.embed(target, request), everything)
    before, threads = reader.length, torch.get_num_threads()
    assert step_seconds(reader, 4, 5, 1) > 0
    assert reader.length == before == len(prompt.input_ids) and torch.get_num_threads() == threads
