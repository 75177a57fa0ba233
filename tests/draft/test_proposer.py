"""Drafters without a model: the records that they answer, what they may propose, and that they change no word."""

import gc
import threading
import weakref
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList

import hippo
from hippo import plugins
from hippo.cli.demo import CLIP
from hippo.draft import Drafter, Plugin, plugin_of
from hippo.draft.messages import Begin, Commit, End, Failed, NoMore, Propose, Ready, Token
from hippo.draft.ngram import NGram
from hippo.draft.proposer import ProposerWorker
from hippo.errors import BadRequest
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.sequence import Sequence
from hippo.stats import Stats
from tests.models import FAMILIES, generated, inputs, model, text_only, with_image
from tests.test_pair import exact_pairs

PROMPT = {"input_ids": torch.tensor([[3, 1, 4]])}


class Script:
    """Proposes what it is given, one call after another; remembers what it was called with."""

    def __init__(self, *proposals):
        self.proposals, self.calls = list(proposals), []

    def commit(self, tokens):
        self.calls.append(tokens)

    def propose(self, count):
        self.calls.append(count)
        proposed = self.proposals.pop(0) if self.proposals else []
        if isinstance(proposed, Exception):
            raise proposed
        return proposed


_made = weakref.WeakSet()


@pytest.fixture(autouse=True)
def _no_threads_are_left():
    yield
    for worker in _made:
        worker.close()


def worker_of(make, limit=100, timeout=20.0):
    """A worker with a request 1, and what it says."""
    said = []
    worker = ProposerWorker(said.append, Plugin("mine", make), timeout)
    _made.add(worker)
    worker.take_in(Begin(1, PROMPT, limit))
    return worker, said


def test_the_records_of_a_request():
    script = Script([7, 8], [9])
    worker, said = worker_of(lambda: script)
    assert isinstance(said[0], Ready) and said[0].tokens == 3
    worker.take_in(Commit(1, 0, [5]))
    worker.take_in(Propose(1, 2))
    assert [(one.id, one.prob, one.epoch) for one in said[1:]] == [(7, 1.0, 1), (8, 1.0, 1)]
    worker.take_in(Commit(1, 2, [6]))  # 7 was accepted, 8 was not
    worker.take_in(Commit(1, 3, [2]))  # a round without it
    worker.take_in(Propose(1, 4))
    assert [type(one) for one in said[3:]] == [Token, NoMore] and said[4].seconds == 0 and said[3].epoch == 3
    worker.take_in(Propose(1, 4))
    assert type(said[5]) is NoMore and said[5].seconds > 0
    worker.take_in(End(1))
    assert script.calls == [[3, 1, 4], [5], 2, [7, 6, 2], 4, 4] and not worker._requests and not worker.step()


def test_every_request_has_its_own():
    made = []

    def make():
        made.append(Script([len(made)]))
        return made[-1]

    worker, said = worker_of(make)
    worker.take_in(Begin(2, PROMPT, 100))
    worker.take_in(Commit(2, 0, [5]))
    worker.take_in(Propose(2, 1))
    assert said[-1][:3] == (2, 1, 1) and made[0].calls == [[3, 1, 4]]


@pytest.mark.parametrize("proposed", [(7, 8), np.array([7, 8]), torch.tensor([7, 8]), [np.int32(7), np.int64(8)]])
def test_integers_of_any_kind(proposed):
    worker, said = worker_of(lambda: Script(proposed))
    worker.take_in(Propose(1, 2))
    assert [one.id for one in said[1:]] == [7, 8] and all(type(one.id) is int for one in said[1:])


@pytest.mark.parametrize(
    ("proposed", "problem"),
    [
        (None, "proposed 'None', which is no list of token ids"),
        ([1.0], r"proposed '\[1.0\]', which is no list"),
        ([True], "no list of token ids"),
        ("a", "proposed 'a', which is no list"),
        (3, "no list of token ids"),
        ([1, 2, 3], "proposed 3 tokens and 2 were asked for"),
        ([100], "proposed token 100, which is not in the vocabulary of 100"),
        ([-1], "proposed token -1, which is not in"),
        (ValueError("one\ntwo"), r"failed \(ValueError: one two\)"),
    ],
)
def test_what_may_not_be_proposed_ends_the_drafts_of_this_request(proposed, problem):
    made = iter([Script(proposed), Script([7])])
    worker, said = worker_of(lambda: next(made))
    worker.take_in(Begin(2, PROMPT, 100))
    worker.take_in(Propose(1, 2))
    assert isinstance(said[-1], Failed) and said[-1].request == 1 and "\n" not in said[-1].reason
    with pytest.raises(AssertionError, match=f"^drafter 'mine' .*{problem}"):
        raise AssertionError(said[-1].reason)
    for record in (Propose(1, 2), Commit(1, 0, [1]), End(1)):
        worker.take_in(record)
    worker.take_in(Propose(2, 1))
    assert said[-1].request == 2 and said[-1].id == 7


def test_one_that_hangs_is_left_behind():
    """The next request has a thread of its own, in which nothing waits for the one that hangs."""
    hang, threads = threading.Event(), []

    class Hangs(Script):
        def propose(self, count):
            threads.append(threading.current_thread())
            if len(threads) == 1:
                hang.wait()
            assert not torch.is_grad_enabled()
            return super().propose(count)

    worker, said = worker_of(lambda: Hangs([7]), timeout=60)
    worker._limited._seconds = 0.1
    worker.take_in(Propose(1, 1))
    assert said[-1] == Failed(1, "drafter 'mine' failed (TimeoutError: no answer in 0.1 s)")
    worker._limited._seconds = 60
    worker.take_in(Begin(2, PROMPT, 100))
    worker.take_in(Propose(2, 1))
    assert (said[-1].request, said[-1].id) == (2, 7)
    hang.set()
    worker.close()
    for thread in threads:
        thread.join(60)
    assert len(set(threads)) == 2 and not any(thread.is_alive() for thread in threads)


def test_draft_timeout_is_that_of_a_plug_in():
    hang = threading.Event()

    class Hangs(Script):
        def propose(self, count):
            hang.wait()

    with hippo.load("tiny", drafter=Hangs, draft_timeout=0.2) as llm:
        answers = [llm.generate(CLIP, method=method, max_new_tokens=4) for method in ("sd", "ar")]
        hang.set()
    assert answers[0].stats.draft_lost.endswith("(TimeoutError: no answer in 0.2 s)")
    assert answers[0].token_ids == answers[1].token_ids


def test_our_own_drafters_need_no_thread():
    worker, _ = worker_of(NGram)
    worker.take_in(Propose(1, 2))
    assert worker._limited is None


def test_names_of_drafters():
    assert plugin_of("ngram") == Plugin("ngram", NGram)
    assert plugin_of(NGram).name == "hippo.draft.ngram:NGram" == plugin_of("hippo.draft.ngram:NGram").name
    assert plugin_of(lambda: NGram()).name.endswith("<lambda>")


@pytest.mark.parametrize(
    ("drafter", "problem"),
    [
        ("nothing", "unknown drafter 'nothing': use one of: ngram, or MODULE:NAME"),
        ("nowhere:Any", "drafter 'nowhere:Any' does not load"),
        (Script(), "Script' is an object, and every request needs its own: pass its class"),
        (object, "drafter 'builtins:object' has no method commit"),
        (Drafter, "Drafter' cannot be made .TypeError"),
    ],
)
def test_what_is_no_drafter(drafter, problem):
    with pytest.raises(BadRequest, match=problem) as error:
        plugin_of(drafter)
    assert "\n" not in str(error.value)


# End to end.


def pair_of(family, make):
    return Pair(model(family), Draft(Plugin("mine", make)))


def answer(of, request, **options):
    """(token ids, stats)."""
    stats, tokens = Stats(), []
    for chunk in Sequence(of, request, SamplingParams.of(**({"max_new_tokens": 24} | options)), stats):
        tokens += chunk
    return tokens, stats


class Knows:
    """Proposes the rest of a text; every `wrong`-th token of it is another."""

    def __init__(self, prompt, text, wrong=0):
        self._length, self._prompt = 0, prompt
        self._text = [(token + 1) % 150 if wrong and place % wrong == 0 else token for place, token in enumerate(text)]

    def commit(self, tokens):
        self._length += len(tokens)

    def propose(self, count):
        return self._text[self._length - self._prompt :][:count]


@pytest.mark.parametrize("method", ["sd", "hippo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_word_changes(family, method):
    request = inputs(family)
    expected, prompt = generated(model(family), request), request["input_ids"].shape[1]
    for wrong in (1, 3):
        with closing(pair_of(family, lambda wrong=wrong: Knows(prompt, expected, wrong))) as of:
            tokens, stats = answer(of, request, method=method, gamma=4)  # no clock decides
        assert tokens == expected and not stats.draft_lost
        assert stats.checked > 0 and (stats.accepted > 0) == (wrong != 1)
        assert stats.kept_tokens == 0 and stats.trace.kept is None
        assert stats.drafter == "mine" and stats.method == method


@pytest.mark.parametrize("method", ["ar", "sd", "pearl", "hippo"])
def test_no_word_changes_with_n_grams(method):
    with closing(pair_of("qwen2_5_vl", NGram)) as of:
        for request in (
            inputs("qwen2_5_vl", seed=1),
            text_only("qwen2_5_vl"),
            with_image("qwen2_5_vl", inputs("qwen2_5_vl")),
        ):
            tokens, stats = answer(of, request, method=method)
            assert tokens == generated(model("qwen2_5_vl"), request)
            assert stats.drafter == ("" if method == "ar" else "mine")
            assert stats.warnings == (["a draft that works inline works in turns"] if method == "pearl" else [])


def test_a_drafter_that_is_always_right_is_never_rejected():
    request = inputs("qwen2_5_vl")
    expected, prompt = generated(model("qwen2_5_vl"), request), request["input_ids"].shape[1]
    with closing(pair_of("qwen2_5_vl", lambda: Knows(prompt, expected))) as of:
        tokens, stats = answer(of, request, method="sd", gamma=4)
    assert tokens == expected and stats.accepted == stats.checked > 15 and stats.target_forwards < 8


def test_a_text_that_repeats_itself_takes_fewer_forwards(monkeypatch):
    """A model whose text is a loop, as small ones fall into: what follows is known after the first time round."""
    request = inputs("qwen2_5_vl")
    cycle = [11, 12, 13, 14, 15]
    loop = LogitsProcessorList([Loop(cycle, request["input_ids"].shape[1])])
    monkeypatch.setattr("hippo.sequence.logits_processors", lambda *_: loop)
    with closing(pair_of("qwen2_5_vl", NGram)) as of:
        tokens, stats = answer(of, request, max_new_tokens=60, method="sd", gamma=6)  # no clock decides
        alone, plain = answer(of, request, max_new_tokens=60, method="ar")
    assert tokens == alone == (cycle * 12) and plain.target_forwards == 59
    assert stats.target_forwards < 20 and stats.accepted > 40


class Loop:
    """A logits processor under which the text is a cycle."""

    def __init__(self, cycle, prompt):
        self._cycle, self._prompt = cycle, prompt

    def __call__(self, ids, scores):
        place = (ids.shape[1] - self._prompt) % len(self._cycle)
        scores[:, self._cycle[place]] = 1e9
        return scores


def test_a_drafter_that_fails_loses_no_request():
    request = inputs("qwen2_5_vl")
    expected = generated(model("qwen2_5_vl"), request)
    prompt = request["input_ids"].shape[1]

    class Fails(Knows):
        def propose(self, count):
            if self._length > prompt + 8:
                raise RuntimeError("out of ideas")
            return super().propose(min(count, 2))

    for method in ("sd", "hippo"):
        with closing(pair_of("qwen2_5_vl", lambda: Fails(prompt, expected))) as of:
            tokens, stats = answer(of, request, method=method, gamma=4)
            assert tokens == expected and stats.accepted > 0
            # A slow machine may have `hippo` do without it before it fails.
            lost = {"drafter 'mine' failed (RuntimeError: out of ideas)"} | ({""} if method == "hippo" else set())
            assert stats.draft_lost in lost
            again, stats = answer(of, request, method=method, max_new_tokens=6)
            assert again == expected[:6] and not stats.draft_lost, "the next request has a drafter again"


def test_a_drafter_that_cannot_be_made_loses_no_request():
    def fails():
        raise OSError("no such index")

    with closing(pair_of("qwen2_5_vl", fails)) as of:
        for method in ("sd", "hippo"):
            tokens, stats = answer(of, inputs("qwen2_5_vl"), method=method)
            assert tokens == generated(model("qwen2_5_vl"), inputs("qwen2_5_vl"))
            assert stats.draft_lost == "drafter 'mine' failed (OSError: no such index)"


def test_sampled_answers_follow_the_target():
    """A drafted token is certain to its drafter (q is one-hot), and is neither always right nor always wrong. The first
    two tokens of many answers against their exact joint distribution: chi-square, fixed seeds."""
    request, target = inputs("qwen2_5_vl", seed=8), model("qwen2_5_vl")
    exact = exact_pairs(target, request, 2.0, 3)
    second = Counter()
    for (_, token), chance in exact.items():
        second[token] += chance
    drafted = second.most_common(1)[0][0]

    class Says:
        def commit(self, tokens):
            """Nothing to learn."""

        def propose(self, count):
            return [drafted] * count

    runs, counts, accepted = 160, Counter(), 0
    options = {"temperature": 2.0, "top_k": 3, "max_new_tokens": 2, "method": "sd", "gamma": 2}
    with closing(pair_of("qwen2_5_vl", Says)) as of:
        for seed in range(runs):
            tokens, stats = answer(of, request, seed=seed, **options)
            counts[tuple(tokens)] += 1
            accepted += stats.accepted
            assert stats.checked == 1
    assert 0 < accepted < runs and set(counts) <= set(exact)
    expected = [exact[key] * runs / sum(exact.values()) for key in exact]
    assert chisquare([counts[key] for key in exact], expected).pvalue > 0.01


def test_a_seed_gives_the_same_sampled_answer():
    request = inputs("qwen2_5_vl", seed=8)
    with closing(pair_of("qwen2_5_vl", NGram)) as of:
        texts = [answer(of, request, method=way, temperature=1.5, seed=4)[0] for way in ("ar", "sd", "hippo")]
    assert texts[0] == texts[1] == texts[2]


def test_nothing_is_scored_for_a_drafter_that_sees_no_video(monkeypatch):
    """Nor is a pruner run."""

    def never(signals, keep_ratio):
        raise AssertionError

    with closing(pair_of("qwen2_5_vl", NGram)) as of:
        monkeypatch.setattr(of, "recorder", never)
        _, stats = answer(of, inputs("qwen2_5_vl"))
        assert stats.seconds.scoring == 0
        answer(of, inputs("qwen2_5_vl"), pruner=never)
    assert plugins.name_of(never).endswith("never")


def test_a_drafter_that_is_dropped_leaves_no_thread():
    threads = set()
    worker, _ = worker_of(lambda: threads.add(threading.current_thread()) or Script([7]))
    worker.take_in(Propose(1, 1))
    (thread,) = threads
    assert thread.is_alive()
    del worker, _
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
