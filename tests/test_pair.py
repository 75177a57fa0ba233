"""Losslessness: every decoder, pruner and gamma against transformers' generate(), at every edge."""

import copy
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from hippo.bench.pruners import ABLATIONS
from hippo.decode import Choice
from hippo.draft import process
from hippo.errors import HippoError
from hippo.forward import cached_model, cuda_graphs, why_not_recorded
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.sequence import Sequence
from hippo.stats import Stats
from tests.drafts import draft
from tests.forward.test_cuda_graphs import Recorder
from tests.models import FAMILIES, generated, inputs, model, text_only, with_image, with_second_video

pytestmark = pytest.mark.usefixtures("patient_targets")

_pairs = {}


def pair(family, kind, **options):
    """A pair with a given kind of draft, started once."""
    key = family, kind, *options.items()
    if key not in _pairs:
        _pairs[key] = Pair(model(family), Draft(draft(kind, family), **options))
    return _pairs[key]


@pytest.fixture(scope="module", autouse=True)
def _end_all_drafts():
    yield
    for each in _pairs.values():
        each.close()
    _pairs.clear()


def answer(of, request, decode=None, **options):
    """(token ids, stats)."""
    stats, tokens = Stats(), []
    for chunk in Sequence(
        of, request, SamplingParams.of(**({"max_new_tokens": 24} | options)), stats, decode_text=decode
    ):
        tokens += chunk
    return tokens, stats


DECODERS, PRUNERS, GAMMAS = ("serial", "parallel"), ("none", "uniform", "hippo", ABLATIONS["blind"]), (1, 2, 5, "auto")


def ways(family):
    """All where positions have three axes, one axis, and where features enter at several layers. Decoders, pruners and
    gammas know no family: with the others each decoder is run with each pruner and each gamma."""
    if family in ("qwen2_5_vl", "llava_onevision", "qwen3_vl"):
        return list(product(DECODERS, PRUNERS, GAMMAS))
    return [(decoder, *both) for decoder in DECODERS for both in zip(PRUNERS, GAMMAS, strict=True)]


@pytest.mark.parametrize("kind", ["other", "same", "wrong"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_decoder_pruner_and_gamma_equals_generate(family, kind):
    request = inputs(family)
    expected = generated(model(family), request)
    for decoder, pruner, gamma in ways(family):
        options = {"decoder": decoder, "pruner": pruner, "gamma": gamma, "keep_ratio": 0.2}
        tokens, stats = answer(pair(family, kind), request, **options)
        assert tokens == expected, options
        assert stats.new_tokens == 24 and not stats.draft_lost
        assert stats.checked > 0 or gamma == "auto"  # which drafts only where that is measured to be faster
    assert answer(pair(family, kind), request, method="ar")[0] == expected


def test_a_draft_that_was_wrong_is_left_alone_and_gets_a_chance_again(monkeypatch):
    monkeypatch.setattr(Choice, "_has_rested", False)
    monkeypatch.setattr(Choice, "_TRIALS", 0.015)
    with closing(Pair(model("qwen2_5_vl"), Draft(draft("wrong", "qwen2_5_vl"), place="inline"))) as of:
        request = inputs("qwen2_5_vl")
        first, stats = answer(of, request)
        assert stats.checked > 0
        bad = of.draft.acceptance
        assert bad < 0.5
        again, stats = answer(of, request)
        assert again == first and stats.checked == 0 and stats.seconds.draft_prefill == 0
        assert bad < of.draft.acceptance < bad + 0.05


@pytest.mark.parametrize("decoder", ["serial", "parallel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_that_is_the_target_is_never_rejected(family, decoder):
    request = with_image(family, inputs(family, seed=1))
    tokens, stats = answer(pair(family, "same"), request, decoder=decoder, pruner="none", gamma=4)
    assert stats.accepted == stats.checked > 10 and stats.rejections == 0
    assert stats.target_forwards < 23 and tokens == generated(model(family), request)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_drafts_for_itself_with_fewer_tokens(family):
    request = inputs(family, seed=1)
    tokens, stats = answer(pair(family, "same"), request, method="hippo", keep_ratio=0.3, gamma=4)
    assert tokens == generated(model(family), request) and stats.checked > 0 and not stats.draft_lost
    assert 0 < stats.kept_tokens < stats.video_tokens


@pytest.mark.parametrize("decoder", ["serial", "parallel"])
def test_a_draft_that_is_always_wrong_is_always_rejected(decoder):
    request = inputs("qwen2_5_vl", seed=1)
    tokens, stats = answer(pair("qwen2_5_vl", "wrong"), request, decoder=decoder, pruner="none", gamma=3)
    assert stats.accepted == 0 < stats.rejections and stats.target_forwards == 23
    assert tokens == generated(model("qwen2_5_vl"), request)


@pytest.mark.parametrize("decoder", ["ar", "serial", "parallel"])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 7, 8])
def test_eos_ends_the_answer_wherever_it_falls(decoder, at):
    family = "qwen2_5_vl"
    target, request = model(family), inputs(family, seed=2)
    plain = generated(target, request)
    target.generation_config.eos_token_id = [plain[at], 158]
    try:
        expected = generated(target, request)
        tokens, stats = answer(pair(family, "same"), request, decoder=decoder, gamma=5, pruner="none")
    finally:
        target.generation_config.eos_token_id = None
    assert tokens == expected == plain[: plain.index(plain[at]) + 1]
    assert stats.finish == "eos" and stats.new_tokens == len(tokens)


@pytest.mark.parametrize("decoder", ["ar", "serial", "parallel"])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 7])
def test_max_new_tokens_is_exact(decoder, length):
    request = inputs("llava_onevision")
    tokens, stats = answer(pair("llava_onevision", "same"), request, decoder=decoder, gamma=5, max_new_tokens=length)
    assert tokens == generated(model("llava_onevision"), request)[:length] and stats.finish == "length"


@pytest.mark.parametrize("decoder", ["ar", "serial", "parallel"])
def test_a_stop_string_ends_at_its_last_token(decoder):
    request = inputs("qwen2_5_vl", seed=3)
    plain = generated(model("qwen2_5_vl"), request)

    def decode(ids):
        return "".join(chr(200 + i) for i in ids)

    tokens, stats = answer(
        pair("qwen2_5_vl", "same"), request, decode, decoder=decoder, gamma=5, stop=decode(plain[6:8])
    )
    end = next(i for i in range(2, 9) if plain[i - 2 : i] == plain[6:8])
    assert tokens == plain[:end] and stats.finish == "stop"


@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_after_the_video(family):
    request = inputs(family, seed=4, question=1)
    tokens, _ = answer(pair(family, "other"), request, method="hippo", keep_ratio=0.2)
    assert tokens == generated(model(family), request)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_without_a_video_and_with_an_image(family):
    video = inputs(family)
    for request, tokens_of_videos in (
        (text_only(family), 0),
        (with_image(family, text_only(family)), 0),
        (with_image(family, video), tokens_of(family, video)),
        (with_second_video(family, video), tokens_of(family, video) + tokens_of(family, inputs(family, seed=1))),
    ):
        expected = generated(model(family), request)
        for method in ("ar", "sd", "pearl", "hippo"):
            tokens, stats = answer(pair(family, "other"), request, method=method, keep_ratio=0.2)
            assert tokens == expected, method
            assert stats.kept_tokens <= stats.video_tokens == tokens_of_videos


def test_only_a_video_can_be_looked_at():
    with pytest.raises(HippoError, match="no video that is known"):
        pair("internvl", "other").look(with_image("internvl", text_only("internvl")))


def tokens_of(family, request):
    return len(pair(family, "other").family.prepare_prompt(model(family).config, request).video_at)


@pytest.mark.parametrize("ratio", [1e-6, 1.0])
def test_keeping_almost_nothing_and_everything(ratio):
    request = inputs("qwen2_5_vl", seed=5)
    tokens, stats = answer(pair("qwen2_5_vl", "other"), request, method="hippo", keep_ratio=ratio)
    assert tokens == generated(model("qwen2_5_vl"), request)
    assert stats.kept_tokens == max(1, round(ratio * stats.video_tokens))


def test_kept_tokens_keep_their_places():
    """With everything kept by pruning, the draft is still the target, so nothing may be rejected."""
    request = inputs("qwen2_5_vl", seed=5)
    _, stats = answer(pair("qwen2_5_vl", "same"), request, method="hippo", keep_ratio=1.0, gamma=4)
    assert stats.rejections == 0 < stats.accepted


def test_a_draft_with_a_padded_vocabulary_works():
    request = inputs("qwen2_5_vl", seed=6)
    for options in ({"method": "hippo"}, {"method": "sd"}, {"method": "pearl", "temperature": 1.0, "seed": 1}):
        tokens, stats = answer(pair("qwen2_5_vl", "padded"), request, **options)
        assert not stats.draft_lost and len(tokens) == 24
    assert answer(pair("qwen2_5_vl", "padded"), request)[0] == generated(model("qwen2_5_vl"), request)


@pytest.mark.parametrize("method", ["sd", "hippo"])
def test_two_vision_towers_in_one_process_work_one_after_the_other(method, monkeypatch):
    of, request, spans = pair("qwen2_5_vl", "other", place="thread"), inputs("qwen2_5_vl", seed=3), []
    embed = of.family.embed

    def slow(model, inputs):
        began = time.perf_counter()
        time.sleep(0.1)
        embeds = embed(model, inputs)
        spans.append((began, time.perf_counter(), threading.current_thread().name))
        return embeds

    monkeypatch.setattr(of.family, "embed", slow)
    tokens, stats = answer(of, request, method=method, decoder="parallel")
    (_, ended, here), (began, _, there) = sorted(spans)
    assert ended <= began and here != there == "hippo-draft"
    assert tokens == generated(model("qwen2_5_vl"), request) and not stats.draft_lost


def test_penalties_of_the_checkpoint_are_those_of_generate():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl", seed=7)
    plain = generated(target, request)
    target.generation_config.repetition_penalty = 1.8
    try:
        expected = generated(target, request)
        for method in ("ar", "sd", "pearl", "hippo"):
            assert answer(pair("qwen2_5_vl", "same"), request, method=method, gamma=3)[0] == expected
    finally:
        target.generation_config.repetition_penalty = None
    assert plain != expected


@pytest.mark.parametrize("place", ["process", "inline"])
def test_a_draft_proposes_with_the_penalty_that_the_target_chooses_with(place):
    request, options = inputs("qwen2_5_vl", seed=7), {"repetition_penalty": 1.8, "gamma": 4}
    expected = generated(model("qwen2_5_vl"), request, repetition_penalty=1.8)
    for method in ("sd", "hippo"):
        of = pair("qwen2_5_vl", "same", place=place)
        tokens, stats = answer(of, request, method=method, decoder="serial", keep_ratio=1.0, **options)
        assert tokens == expected and stats.accepted == stats.checked > 10
    tokens, stats = answer(of, request, decoder="serial", pruner="none", gamma=4)
    assert tokens == generated(model("qwen2_5_vl"), request) and stats.rejections == 0, "the next request has none"


@pytest.mark.parametrize("decoder", ["serial", "parallel"])
def test_sampled_answers_follow_the_target(decoder):
    """The first two tokens of many answers against their exact joint distribution: chi-square, fixed seeds."""
    request, target = inputs("qwen2_5_vl", seed=8), model("qwen2_5_vl")
    options = {"temperature": 2.0, "top_k": 3, "max_new_tokens": 2, "decoder": decoder, "pruner": "none", "gamma": 2}
    exact = exact_pairs(target, request, 2.0, 3)
    runs = 300
    counts = Counter(tuple(answer(pair("qwen2_5_vl", "same"), request, seed=s, **options)[0]) for s in range(runs))
    assert set(counts) <= set(exact)
    expected = [exact[key] * runs / sum(exact.values()) for key in exact]
    assert chisquare([counts[key] for key in exact], expected).pvalue > 0.01


def exact_pairs(target, request, temperature, top_k):
    """Probabilities of the first two tokens, from the model's own forward."""

    def top(ids):
        longer = request | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        longer["mm_token_type_ids"] = (ids == 150).int() * 2
        with torch.no_grad():
            best = target(**longer).logits[0, -1].topk(top_k)
        return list(zip(best.indices.tolist(), (best.values / temperature).softmax(-1).tolist(), strict=True))

    start = request["input_ids"]
    exact = {}
    for first, p in top(start):
        for second, q in top(torch.cat([start, torch.tensor([[first]])], dim=1)):
            exact[first, second] = p * q
    return exact


@pytest.mark.parametrize("kind", ["other", "same"])
def test_a_seed_gives_the_same_sampled_answer_by_every_method(kind):
    request = inputs("qwen2_5_vl", seed=8)
    texts = {
        method: answer(pair("qwen2_5_vl", kind), request, method=method, temperature=1.5, seed=4)[0]
        for method in ("ar", "sd", "pearl", "hippo")
    }
    assert len(set(map(tuple, texts.values()))) == 1
    assert answer(pair("qwen2_5_vl", kind), request, temperature=1.5, seed=5)[0] != texts["hippo"]


@pytest.mark.parametrize("place", ["thread", "inline"])
@pytest.mark.parametrize("kind", ["other", "same", "wrong"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "qwen3_vl"])
def test_a_draft_elsewhere_changes_no_word(family, kind, place):
    request = inputs(family, seed=10)
    # Ended at once: no draft is forked while another thread runs.
    with closing(Pair(model(family), Draft(draft(kind, family), place=place))) as of:
        for method in ("sd", "pearl", "hippo"):
            gamma = "auto" if method == "hippo" else 4
            tokens, stats = answer(of, request, method=method, gamma=gamma)
            assert tokens == generated(model(family), request) and not stats.draft_lost
            assert stats.checked > 0 or method == "hippo", "which may find on a busy machine that drafting does not pay"


@pytest.fixture
def recorder(monkeypatch):
    """Forwards are recorded, as far as a CPU can."""
    for module in (cached_model, cuda_graphs):
        monkeypatch.setattr(module, "records", lambda device: True)
    one = Recorder()
    monkeypatch.setattr(cuda_graphs, "record", one)
    return one


def test_recorded_forwards_change_no_word(recorder):
    for kind in ("other", "same", "wrong"):
        target, drafting = copy.deepcopy(model("qwen2_5_vl")), copy.deepcopy(draft(kind))
        request = inputs("qwen2_5_vl", seed=11)
        with closing(Pair(target, Draft(drafting, place="thread"))) as of:
            of.draft.worker().wait_loaded()
            count = recorder.count
            for method in ("ar", "sd", "pearl", "hippo"):
                tokens, stats = answer(of, request, method=method, max_new_tokens=60, gamma=4)
                assert tokens == generated(model("qwen2_5_vl"), request, max_new_tokens=60)
                if kind == "same" and method in ("sd", "pearl"):
                    assert stats.accepted == stats.checked > 10, "a draft that is the target is right"
            assert recorder.count == count > 0, "all was recorded at load"


def test_a_repetition_penalty_is_recorded_at_load_too(recorder):
    target, request = copy.deepcopy(model("qwen2_5_vl")), inputs("qwen2_5_vl", seed=11)
    with closing(Pair(target, Draft(copy.deepcopy(target), place="thread"))) as of:
        of.draft.worker().wait_loaded()
        count = recorder.count
        for penalty in (1.0, 1.4):
            how = {"repetition_penalty": penalty, "max_new_tokens": 40}
            tokens, stats = answer(of, request, method="pearl", gamma=4, **how)
            assert tokens == generated(model("qwen2_5_vl"), request, **how)
            assert stats.accepted == stats.checked > 10
        assert recorder.count == count


@pytest.mark.parametrize("fails", [1, 2])
def test_a_recording_that_fails_at_load_changes_no_word(recorder, fails):
    recorder.fails = {fails}
    target, request = copy.deepcopy(model("qwen2_5_vl")), inputs("qwen2_5_vl", seed=11)
    with closing(Pair(target, Draft(copy.deepcopy(draft("other")), place="thread"))) as of:
        for method in ("ar", "sd", "pearl"):
            tokens, stats = answer(of, request, method=method, max_new_tokens=40, gamma=4)
            assert tokens == generated(model("qwen2_5_vl"), request, max_new_tokens=40) and not stats.draft_lost
    assert why_not_recorded(target.model.language_model) or fails == 2


def test_a_gpu_has_a_fixed_width_in_half_precision_where_forwards_are_fused(monkeypatch):
    net = copy.deepcopy(model("qwen2_5_vl")).bfloat16()
    monkeypatch.setattr(type(net), "device", property(lambda _: torch.device("cuda", 0)))
    widths = [SamplingParams(verify_width=width).verify_width for width in ("auto", 0, 3)]
    asked = [SamplingParams(verify_width=width, max_new_tokens=most) for width in widths for most in (4096, 4097)]
    with closing(Pair(net, None)) as own:
        assert own.fixed_width(asked[0]) == 0, "transformers' own forwards"
    monkeypatch.setattr(sys.modules["hippo.forward.fused"], "_served", lambda device, dtype: True)
    with closing(Pair(copy.deepcopy(net), None)) as fused:
        assert [fused.fixed_width(params) for params in asked] == [8, 0, 0, 0, 3, 3]
    with closing(Pair(copy.deepcopy(net).float(), None)) as exact:
        assert exact.fixed_width(asked[0]) == 0


def lost_in_mid_answer(of, hit, seed=9):
    """Answer while `hit` is done to the draft's process after the first tokens. Returns (tokens, stats, seconds)."""
    stats, tokens = Stats(), []
    stream = Sequence(
        of,
        inputs("qwen2_5_vl", seed=seed),
        SamplingParams.of(max_new_tokens=60, decoder="parallel", gamma=3, pruner="none"),
        stats,
    )
    while len(tokens) < 5 or not stats.draft_forwards:
        tokens += stream.step()
    assert len(tokens) < 40
    hit(of.draft.worker().pid)
    began = time.monotonic()
    for chunk in stream:
        tokens += chunk
    return tokens, stats, time.monotonic() - began


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_draft_costs_nothing_but_speed(what):
    of = pair("qwen2_5_vl", "same")
    tokens, stats, _ = lost_in_mid_answer(of, lambda pid: os.kill(pid, what))
    expected = generated(model("qwen2_5_vl"), inputs("qwen2_5_vl", seed=9), max_new_tokens=60)
    assert tokens == expected and "died" in stats.draft_lost
    tokens, stats = answer(of, inputs("qwen2_5_vl", seed=9), max_new_tokens=10)
    assert tokens == expected[:10] and not stats.draft_lost, "the next request has a draft again"


def test_a_hanging_draft_is_given_up_after_a_bounded_wait():
    of = pair("qwen2_5_vl", "same", timeout=0.5)
    of.draft.worker().wait_loaded()
    tokens, stats, seconds = lost_in_mid_answer(of, lambda pid: os.kill(pid, signal.SIGSTOP))
    assert tokens == generated(model("qwen2_5_vl"), inputs("qwen2_5_vl", seed=9), max_new_tokens=60)
    assert "silent for 0.5 s" in stats.draft_lost and seconds < 10


def hungry(*_):
    """Want a quarter of a gigabyte: too much at once to come from what a process has freed and kept."""
    torch.empty(2**28, dtype=torch.uint8)


def test_a_draft_out_of_memory_is_explained(monkeypatch):
    monkeypatch.setattr(process, "may_fork", lambda *_: True)  # a fresh interpreter would not know `hungry`
    monkeypatch.setattr(process, "shares", lambda: (1, 1))
    greedy = copy.deepcopy(draft("other"))
    greedy.model.visual.register_forward_pre_hook(hungry)
    request = inputs("qwen2_5_vl", seed=9)
    expected = generated(model("qwen2_5_vl"), request)
    with closing(Pair(model("qwen2_5_vl"), Draft(greedy))) as of:
        of.draft.worker().wait_loaded()
        pid = of.draft.worker().pid
        tokens, stats = answer(of, request, pruner="none", gamma=3)
        assert tokens == expected and not stats.draft_lost, "there is memory enough"
        limit = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        tokens, stats = answer(of, request, pruner="none", gamma=3)
        assert tokens == expected and "the draft's process failed" in stats.draft_lost


@pytest.mark.parametrize("place", ["process", "thread", "inline"])
def test_two_requests_under_way_do_not_disturb_each_other(place):
    seeds = (9, 12)
    with closing(Pair(model("qwen2_5_vl"), Draft(draft("other"), place=place))) as of:
        both = [Sequence(of, inputs("qwen2_5_vl", seed=seed), SamplingParams(gamma=4), Stats()) for seed in seeds]
        tokens = [[], []]
        for _ in range(300):
            for each, own in zip(both, tokens, strict=True):
                own += each.step() or []
    for seed, own, each in zip(seeds, tokens, both, strict=True):
        expected = generated(model("qwen2_5_vl"), inputs("qwen2_5_vl", seed=seed), max_new_tokens=256)
        assert own == expected and each.stats.checked > 0


def test_an_abandoned_answer_leaves_the_pair_usable():
    of, request = pair("qwen2_5_vl", "same"), inputs("qwen2_5_vl", seed=9)
    stream = Sequence(of, request, SamplingParams.of(max_new_tokens=50), Stats())
    stream.step()
    assert answer(of, request)[0] == generated(model("qwen2_5_vl"), request)
    stream.close()
    assert stream.step() is None and answer(of, request)[0] == generated(model("qwen2_5_vl"), request)


def test_no_process_is_left_after_close():
    of = Pair(model("qwen2_5_vl"), Draft(draft("other")))
    pid = of.draft.worker().pid
    of.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(HippoError, match=r"531 tokens and the model's context 512"):
        answer(pair("qwen2_5_vl", "same"), inputs("qwen2_5_vl", question=503), method="ar")


def test_without_a_draft_only_ar_works():
    of, request = Pair(model("qwen2_5_vl"), None), inputs("qwen2_5_vl")
    assert answer(of, request, method="ar")[0] == generated(model("qwen2_5_vl"), request)
    with pytest.raises(HippoError, match="no draft model"):
        answer(of, request, method="hippo")
