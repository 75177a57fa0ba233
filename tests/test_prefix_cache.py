"""What is read once: a later request on the same video gets the answer it gets without a cache, from fewer tokens."""

import pytest
import torch

from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.prefix_cache import PrefixCache
from hippo.sequence import Sequence
from hippo.stats import Stats
from tests.models import FAMILIES, inputs, model

LONGEST = 10


def asked_again(request, words=9, seed=5):
    """The same video, another question."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.randint(1, 140, (1, words), generator=generator)
    ids = torch.cat([request["input_ids"][:, :-6], others], dim=1)
    again = dict(request) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in request:
        kinds = request["mm_token_type_ids"][:, :-6]
        again["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, words)], dim=1)
    return again


def answer(pair, request, cache=None, **options):
    stats = Stats()
    params = SamplingParams.of(max_new_tokens=LONGEST, **options)
    sequence = Sequence(pair, request, params, stats, cache=cache)
    return [token for tokens in sequence for token in tokens], stats


@pytest.fixture
def pair_of():
    made = []

    def make(family, draft=1):
        made.append(Pair(model(family), Draft(model(family, draft), place="inline")))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.mark.parametrize("method", ["ar", "hippo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_question_has_the_same_answer_from_fewer_tokens(pair_of, family, method):
    options = {"method": method, "keep_ratio": 0.2}
    pair, cache, request = pair_of(family), PrefixCache(), inputs(family)
    first, stats = answer(pair, request, cache, **options)
    assert stats.cached_tokens == 0 and first == answer(pair, request, **options)[0]
    for again in (asked_again(request), asked_again(request, seed=6), request):
        tokens, stats = answer(pair, again, cache, **options)
        without, plain = answer(pair, again, **options)
        assert tokens == without
        assert stats.cached_tokens >= plain.prompt_tokens - 10 and stats.seconds.vision == 0
        assert stats.kept_tokens == plain.kept_tokens


def test_a_conversation_goes_on_from_its_last_answer(pair_of):
    pair, cache, request = pair_of("qwen2_5_vl"), PrefixCache(), inputs("qwen2_5_vl")
    first, stats = answer(pair, request, cache)
    said = torch.tensor([[*first, 3, 4, 5, 6, 7]])
    ids = torch.cat([request["input_ids"], said], dim=1)
    longer = dict(request) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in request:
        kinds = request["mm_token_type_ids"]
        longer["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, said.shape[1])], dim=1)
    tokens, stats = answer(pair, longer, cache)
    assert stats.cached_tokens == request["input_ids"].shape[1] + LONGEST - 1  # the last token was never read
    assert tokens == answer(pair, longer)[0]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_another_video_is_never_taken_for_this_one(pair_of, family):
    pair, cache = pair_of(family), PrefixCache()
    request = inputs(family)
    answer(pair, request, cache)
    pixels = next(name for name in request if name.startswith("pixel"))
    for changed in ({pixels: request[pixels].flip(0)}, {pixels: request[pixels] + 1e-3}):
        other = dict(request) | changed
        tokens, stats = answer(pair, other, cache)
        assert stats.cached_tokens == 0 and tokens == answer(pair, other)[0]


def test_a_fixed_width_keeps_its_bits(pair_of):
    pair, cache, request = pair_of("qwen2_5_vl"), PrefixCache(), inputs("qwen2_5_vl")
    answer(pair, request, cache, verify_width=8)
    again = asked_again(request)
    tokens, stats = answer(pair, again, cache, verify_width=8)
    assert stats.cached_tokens and tokens == answer(pair, again, verify_width=8)[0]


def test_the_least_recently_used_goes_first(pair_of):
    pair, requests = pair_of("qwen2_5_vl"), [inputs("qwen2_5_vl", seed=seed) for seed in range(3)]
    probe = PrefixCache()
    answer(pair, requests[0], probe)
    cache = PrefixCache(int(2.5 * probe.size))
    for request in (requests[0], requests[1], requests[0], requests[2]):
        answer(pair, request, cache)
    cached = [answer(pair, request, cache)[1].cached_tokens > 0 for request in (requests[0], requests[2], requests[1])]
    assert cached == [True, True, False] and cache.size <= 2.5 * probe.size
    small = PrefixCache(16)  # less than one video
    answer(pair, requests[0], small)
    assert small.size == 0
    cache.clear()
    assert cache.size == 0


def test_requests_side_by_side_read_one_video_once(pair_of):
    pair, cache, request = pair_of("qwen2_5_vl"), PrefixCache(), inputs("qwen2_5_vl")
    again = asked_again(request)
    params = SamplingParams.of(max_new_tokens=LONGEST)
    running = [Sequence(pair, one, params, Stats(), cache=cache) for one in (request, again)]
    tokens = [[], []]
    while any(parts := [sequence.step() for sequence in running]):
        for so_far, part in zip(tokens, parts, strict=True):
            so_far += part or []
    assert running[0].stats.cached_tokens == 0 and running[1].stats.cached_tokens > 10
    assert tokens == [answer(pair, request)[0], answer(pair, again)[0]]
