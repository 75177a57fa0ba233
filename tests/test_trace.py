"""What is known of an answer's tokens, of the kept video tokens, and of who worked when."""

from itertools import pairwise

import pytest
import torch

import hippo
from hippo.bench.world import make_scene, write_clip
from hippo.cli.demo import CLIP
from hippo.inputs import parts_of
from hippo.trace import Trace

METHODS = ("ar", "sd", "pearl", "hippo")


def raw_logprobs(llm, clip, token_ids):
    """(n, vocabulary): by transformers' own forward over the prompt and the answer."""
    inputs = dict(llm.inputs(clip))
    answer = torch.tensor([token_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer)], 1)
    with torch.no_grad():
        logits = llm.pair.target(**inputs).logits[0]
    return logits[-len(token_ids) - 1 : -1].log_softmax(-1)


def assert_right(output, expected, count):
    assert [token.id for token in output.tokens] == output.token_ids
    assert sum(token.drafted for token in output.tokens) == output.stats.accepted
    seconds = [token.seconds for token in output.tokens]
    assert seconds == sorted(seconds) and 0 < seconds[0] < seconds[-1]
    rows = expected.gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([token.logprob for token in output.tokens]), rows, atol=1e-4, rtol=0)
    best = expected.topk(count)
    for token, values, ids in zip(output.tokens, best.values, best.indices.tolist(), strict=True):
        torch.testing.assert_close(torch.tensor([prob for _, prob in token.top]), values, atol=1e-4, rtol=0)
        assert [id for id, _ in token.top] == ids


@pytest.mark.usefixtures("patient_targets")
@pytest.mark.parametrize("method", METHODS)
def test_logprobs_are_those_of_a_plain_forward(tiny, method):
    output = tiny.generate(CLIP, method=method, logprobs=5)
    assert output.token_ids == tiny.generate(CLIP, method="ar").token_ids
    assert_right(output, raw_logprobs(tiny, CLIP, output.token_ids), 5)
    assert bool(output.stats.accepted) == (method != "ar")


@pytest.mark.usefixtures("patient_targets")
def test_of_several_requests_together(tiny, tmp_path):
    clips = [tmp_path / f"{seed}.mp4" for seed in (90001, 90002, 90003)]
    requests = []
    for seed, (clip, method) in enumerate(zip(clips, ("hippo", "ar", "sd"), strict=True), 90001):
        write_clip(make_scene(seed), clip)
        content = [{"type": "video", "video": str(clip)}, {"type": "text", "text": "Describe the video in detail."}]
        requests.append(hippo.Request([{"role": "user", "content": content}], hippo.SamplingParams(method, logprobs=2)))
    for clip, output in zip(clips, tiny.generate_many(requests), strict=True):
        assert_right(output, raw_logprobs(tiny, clip, output.token_ids), 2)


@pytest.mark.usefixtures("patient_targets")
def test_sampling_and_penalties_leave_logprobs_raw(tiny):
    options = {"temperature": 1.5, "seed": 3, "repetition_penalty": 1.3, "logprobs": 0, "max_new_tokens": 24}
    output = tiny.generate(CLIP, **options)
    assert_right(output, raw_logprobs(tiny, CLIP, output.token_ids), 0)
    assert all(token.top == () for token in output.tokens)


def test_nothing_is_computed_unless_asked(tiny, monkeypatch):
    monkeypatch.setattr("hippo.decode.answer.logprobs_of", lambda *_: pytest.fail("computed"))
    output = tiny.generate(CLIP, max_new_tokens=8)
    assert [token.logprob for token in output.tokens] == [None] * 8


def test_a_stream_knows_its_tokens_so_far(tiny):
    with tiny.stream(CLIP, max_new_tokens=12) as stream:
        seen = [len(stream.tokens) for _ in stream]
    assert seen == sorted(seen) and 0 < seen[0] < seen[-1] <= len(stream.tokens) == 12


@pytest.mark.usefixtures("patient_targets")
def test_kept_tokens(tiny):
    output = tiny.generate(CLIP, keep_ratio=0.2, max_new_tokens=4)
    (grid,) = output.kept.grids
    assert len(output.kept.indices) == output.stats.kept_tokens == round(0.2 * grid.tokens)
    assert output.kept.indices.tolist() == sorted(set(output.kept.indices.tolist()))
    assert int(output.kept.indices.max()) < grid.tokens == output.stats.video_tokens
    assert tiny.generate(CLIP, method="ar", max_new_tokens=4).kept is None


@pytest.mark.usefixtures("patient_targets")
@pytest.mark.parametrize("method", ["ar", "hippo"])
def test_the_timeline_says_who_worked_when(tiny, method):
    output = tiny.generate(CLIP, prompt="What moves?", method=method)
    spans, last = output.timeline, output.tokens[-1].seconds
    assert all(0 <= span.began <= span.ended <= last + 0.05 for span in spans if span.who == "target")
    verified = [span for span in spans if span.what == "verify"]
    assert len(verified) == output.stats.target_forwards
    assert all(one.ended <= two.began + 0.002 for one, two in pairwise(verified))
    assert sum(span.tokens for span in spans if span.who == "target" and span.what == "prefill") == (
        output.stats.prompt_tokens - output.stats.cached_tokens
    )
    drafted = [span for span in spans if span.what == "propose"]
    assert len(drafted) == output.stats.draft_forwards and bool(drafted) == (method == "hippo")
    assert all(0 < span.began < span.ended < last + 0.5 for span in drafted)
    assert {"trace", "warnings"}.isdisjoint(output.stats.as_dict())


def test_a_timeline_is_bounded(monkeypatch):
    monkeypatch.setattr("hippo.trace._LONGEST", 3)
    trace = Trace()
    for _ in range(5):
        trace.did("target", "verify", 1.0, 0.5, 1)
    assert len(trace.timeline) == 3


def test_a_request_says_which_frames_it_was_given(tiny):
    seen = []
    content = [{"type": "video", "video": str(CLIP)}, {"type": "text", "text": "What moves?"}]
    turns, params = [{"role": "user", "content": content}], hippo.SamplingParams(max_new_tokens=2)
    tiny.generate(hippo.Request(turns, params, frames=6, on_read=lambda read: seen.extend(parts_of(read, "video"))))
    (video,) = seen
    assert len(video.frames) == len(video.timestamps) == 6
