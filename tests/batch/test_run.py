"""A job's rows are answered as they are one by one, and what fails is a line of its own."""

import json

import pytest

import hippo
from hippo.batch import Answers, Defaults, Row, answer_all, answered, by_subject
from hippo.batch.run import Summary
from hippo.cli.demo import CLIP
from hippo.engine import State
from hippo.errors import HippoError
from hippo.params import SamplingParams

DEFAULTS = Defaults(params=SamplingParams(max_new_tokens=6))
ASKED = ("What is here?", "What happens at the end?", "Describe the video in detail.")


def run(llm, rows, path, defaults=DEFAULTS, **options):
    with Answers(path, {row.custom_id: defaults.digest(row) for row in rows}) as answers:
        todo = by_subject(row for row in rows if row.custom_id not in answers.done)
        summary = answer_all(answered(llm, todo, defaults), answers, **options)
    return summary, {line["custom_id"]: line for line in map(json.loads, path.read_text().splitlines())}


def text(line):
    return line["response"]["body"]["choices"][0]["message"]["content"]


def test_answers_are_those_of_generate_and_one_video_is_read_once(tiny, tmp_path):
    rows = [Row(str(number), str(CLIP), prompt) for number, prompt in enumerate(ASKED)]
    tiny.engine.cache.clear()
    summary, lines = run(tiny, [rows[0], Row("words", None, "Say hello."), *rows[1:]], tmp_path / "out.jsonl")
    for row in rows:
        alone = tiny.generate(row.video, row.prompt, max_new_tokens=6)
        assert text(lines[row.custom_id]) == alone.text
        assert lines[row.custom_id]["response"]["body"]["usage"]["completion_tokens"] == len(alone.token_ids)
    cached = [
        lines[str(number)]["response"]["body"]["usage"]["prompt_tokens_details"]["cached_tokens"] for number in (1, 2)
    ]
    assert min(cached) > 500
    assert summary.answered == 4 and not summary.failures and summary.tokens >= 4


def test_what_fails_has_its_error_and_the_others_go_on(tiny, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    turns = [{"role": "user", "content": [{"type": "video", "video": "good.mp4"}, {"type": "text", "text": "What?"}]}]
    (tmp_path / "good.mp4").write_bytes(CLIP.read_bytes())
    rows = [
        Row("bad", "bad.mp4", columns={"fold": 1}, folder=tmp_path),
        Row("gone", "gone.mp4", folder=tmp_path),
        Row("turns", messages=turns, folder=tmp_path),
        Row("odd", messages=[{"role": "nobody", "content": "x"}]),
    ]
    seen = []
    summary, lines = run(tiny, rows, tmp_path / "out.jsonl", on_done=lambda line: seen.append(line["custom_id"]))
    assert summary.failures == {"MediaError": 2, "BadRequest": 1} and summary.answered == 1
    assert lines["bad"]["error"]["code"] == "MediaError" and "not a video" in lines["bad"]["error"]["message"]
    assert lines["bad"]["fold"] == 1 and lines["bad"]["response"] is None
    assert text(lines["turns"]) == tiny.generate(str(CLIP), "What?", max_new_tokens=6).text
    assert sorted(seen) == sorted(lines)


def test_an_error_that_nobody_expected_is_a_line_too(tiny, tmp_path, monkeypatch):
    read = tiny.engine._read

    def failing(request, progress):
        if "fails" in str(request.messages):
            raise ZeroDivisionError("oops")
        return read(request, progress)

    monkeypatch.setattr(tiny.engine, "_read", failing)
    rows = [Row("one", None, "This fails."), Row("two", None, "Say hello.")]
    _, lines = run(tiny, rows, tmp_path / "out.jsonl")
    assert lines["one"]["error"] == {"code": "ZeroDivisionError", "message": "oops"} and text(lines["two"])


def test_too_many_failures_end_the_job_and_it_can_go_on(tiny, tmp_path):
    rows = [Row(f"gone {number}", str(tmp_path / "gone.mp4")) for number in range(5)]
    rows.append(Row("words", None, "Say hello."))
    summary, lines = run(tiny, rows, tmp_path / "out.jsonl", max_failures=2)
    assert summary.stopped and len(lines) == 3
    summary, lines = run(tiny, rows, tmp_path / "out.jsonl")
    assert not summary.stopped and len(lines) == 6 and summary.answered == 1
    again, _ = run(tiny, rows, tmp_path / "out.jsonl")
    assert not again.answered and not again.failures


def test_a_full_disk_ends_the_job_and_frees_the_engine(tiny, tmp_path, monkeypatch):
    def full(self, line):
        raise HippoError("no room")

    monkeypatch.setattr(Answers, "append", full)
    with pytest.raises(HippoError, match="no room"):
        run(tiny, [Row(str(number), None, f"Say {number}.") for number in range(3)], tmp_path / "out.jsonl")
    assert all(job.state is State.DONE for job in tiny.engine.scheduler.jobs)


def test_the_steady_rate_leaves_the_start_out():
    """20 requests come after 50 seconds of starting up, then two a second."""
    assert Summary(ended=[50.0 + place for place in range(59)]).steady_rate is None
    ended = [50.0] * 20 + [50.0 + 0.5 * place for place in range(1, 41)]
    assert Summary(ended=ended).steady_rate == pytest.approx(2)


def test_the_digest_follows_what_decides_the_words():
    row = Row("a", "a.mp4")
    same = Defaults(params=SamplingParams(max_new_tokens=6, method="ar", gamma=3))
    assert same.digest(row) == DEFAULTS.digest(row)
    others = (
        Defaults(params=SamplingParams(max_new_tokens=7)),
        Defaults(params=DEFAULTS.params, prompt="Why?"),
        Defaults(params=DEFAULTS.params, frames=8),
        Defaults(params=DEFAULTS.params, model="other"),
        Defaults(params=DEFAULTS.params, media=hippo.inputs.MediaOptions(max_pixels=100)),
    )
    assert DEFAULTS.digest(row) not in [other.digest(row) for other in others]
    assert DEFAULTS.digest(row) != DEFAULTS.digest(Row("a", "b.mp4"))
