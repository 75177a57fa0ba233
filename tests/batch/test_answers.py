"""The file of answers: whatever a kill leaves is completed, and what is not the job's own is refused."""

import json
import resource

import pytest

from hippo.batch import Answers
from hippo.errors import BadRequest, Busy, HippoError

DIGESTS = {name: f"digest of {name}" for name in "abc"}


def line(name, error=None):
    answer = {"response": None if error else {"text": "words ü"}, "error": {"code": error} if error else None}
    return {"custom_id": name, **answer, "digest": DIGESTS[name]}


def complete(path):
    """Answer what has no answer yet."""
    with Answers(path, DIGESTS) as answers:
        for name in sorted(DIGESTS.keys() - answers.done):
            answers.append(line(name))


def test_a_file_cut_off_anywhere_is_completed_to_the_same_lines(tmp_path):
    path = tmp_path / "out.jsonl"
    complete(path)
    whole = path.read_bytes()
    assert whole.count(b"\n") == 3
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        complete(path)
        assert path.read_bytes() == whole


def test_failed_requests_are_kept_unless_they_shall_be_asked_again(tmp_path):
    path = tmp_path / "out.jsonl"
    with Answers(path, DIGESTS) as answers:
        answers.append(line("a", "MediaError"))
        answers.append(line("b"))
    with Answers(path, DIGESTS) as answers:
        assert answers.done == {"a", "b"} and answers.failures == {"MediaError": 1}
    with Answers(path, DIGESTS, retry_failed=True) as answers:
        assert answers.done == {"b"} and not answers.failures
        answers.append(line("a"))
        with pytest.raises(Busy, match="another process"):
            Answers(path, DIGESTS)
    with Answers(path, DIGESTS) as answers:
        assert answers.done == {"a", "b"} and not answers.failures
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("some notes", "line 1 of .* is no answer"),
        ('{"custom_id": "a"}\n', "line 1 of .* is no answer"),
        (
            '{"custom_id": "a", "response": {}, "error": null, "digest": "other"}\n',
            "another job: it has 'a'",
        ),
        ('{"custom_id": "z", "response": {}, "error": null, "digest": "other"}\n', "another job: it has none"),
        (2 * '{"custom_id": "a", "response": {}, "error": null, "digest": "digest of a"}\n', "twice"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, content, message):
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(BadRequest, match=message):
        Answers(path, DIGESTS)
    assert path.read_text() == content


def test_lines_of_requests_that_have_left_the_job_are_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    complete(path)
    with Answers(path, {"b": DIGESTS["b"]}) as answers:
        assert answers.done == {"b"}
    assert len(path.read_text().splitlines()) == 3


def test_places_that_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "no" / "where.jsonl", "/dev/null"):
        with pytest.raises(BadRequest, match=r"cannot be written|no ordinary file"):
            Answers(tmp_path / path, DIGESTS)


def test_file_names_need_not_be_utf_8(tmp_path):
    name = b"caf\xe9.mp4".decode(errors="surrogateescape")
    with Answers(tmp_path / "out.jsonl", {name: "d"}) as answers:
        answers.append({"custom_id": name, "response": {}, "error": None, "digest": "d"})
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["custom_id"] == name
    with Answers(tmp_path / "out.jsonl", {name: "d"}) as answers:
        assert answers.done == {name}


def test_a_job_without_an_answer_leaves_no_file(tmp_path):
    Answers(tmp_path / "out.jsonl", DIGESTS).close()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path):
    path, before = tmp_path / "out.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with Answers(path, DIGESTS) as answers:
        answers.append(line("a"))
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, before[1]))
        try:
            with pytest.raises(HippoError, match="cannot be written"):
                answers.append(line("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole
    complete(path)
    assert len(path.read_bytes().splitlines()) == 3
