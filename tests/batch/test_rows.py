"""Folders, patterns and files of requests become rows, or one line that says what is wrong."""

import json

import pytest

from hippo.batch import rows_of, shard
from hippo.errors import BadRequest


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("clips/b.mp4", "clips/a.MKV", "clips/more/c.webm", "clips/notes.txt", "clips/.hidden/d.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("x")
    return tmp_path / "clips"


def test_a_folder_is_all_its_videos_in_order(folder):
    names = [row.video for row in rows_of([str(folder)])]
    assert names == [str(folder / name) for name in ("a.MKV", "b.mp4", "more/c.webm")]


def test_patterns_clips_and_urls(folder):
    url = "https://example.org/a.mp4"
    rows = rows_of([f"{folder}/**/*.webm", str(folder / "b.mp4"), url])
    assert [row.custom_id for row in rows] == [str(folder / "more/c.webm"), str(folder / "b.mp4"), url]


def test_jsonl_has_requests_and_columns(folder, tmp_path):
    messages = [{"role": "user", "content": [{"type": "video", "video": "clips/b.mp4"}]}]
    lines = (
        {"custom_id": 7, "video": "clips/b.mp4", "prompt": "What?", "label": "cat"},
        "",
        {"video": ["clips/b.mp4", "elsewhere.mp4"]},
        {"messages": messages},
    )
    first, second, third = rows_of([write(tmp_path / "job.jsonl", *lines)])
    assert first.custom_id == "7" and first.prompt == "What?" and first.columns == {"label": "cat"}
    assert first.found(first.video) == str(folder / "b.mp4")
    assert second.custom_id == "job.jsonl:3" and second.found(second.video) == [str(folder / "b.mp4"), "elsewhere.mp4"]
    assert third.messages == messages and "b.mp4" in third.subject


def test_csv_and_parquet_are_the_same_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write(tmp_path / "job.csv", "custom_id,video,prompt,fold", 'x,a.mp4,"What, then?",3', "y,b.mp4,,4")
    table = {"custom_id": ["x", "y"], "video": ["a.mp4", "b.mp4"], "prompt": ["What, then?", None], "fold": ["3", "4"]}
    parquet.write_table(pyarrow.table(table), tmp_path / "job.parquet")
    assert rows_of([str(tmp_path / "job.csv")]) == rows_of([str(tmp_path / "job.parquet")])
    (tmp_path / "job.parquet").write_text("PAR1 is not enough")
    with pytest.raises(BadRequest, match="no Parquet file"):
        rows_of([str(tmp_path / "job.parquet")])


def test_a_missing_number_is_null(tmp_path):
    """pandas writes NaN, which JSON does not have."""
    job = write(tmp_path / "job.jsonl", '{"prompt": "a", "n": 1.5}', '{"prompt": "b", "n": NaN}')
    assert [row.columns for row in rows_of([job])] == [{"n": 1.5}, {"n": None}]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("j.jsonl", ['{"video": "a.mp4"}', '{"video": '], "line 2 of .*j.jsonl: not JSON"),
        ("j.jsonl", ["[1]"], "line 1 .* no object"),
        ("j.jsonl", [{"clip": "a.mp4"}], "no video, no prompt and no messages"),
        ("j.jsonl", [{"video": 3}], "video in line 1 .* is a int"),
        ("j.jsonl", [{"video": [3]}], "video in line 1 .* is a list"),
        ("j.jsonl", [{"video": "a.mp4", "messages": []}], "messages and more"),
        ("j.jsonl", [{"video": "a.mp4", "error": "x"}], "column 'error'"),
        ("j.jsonl", [{"video": "a", "custom_id": 1}, {"video": "b", "custom_id": "1"}], "custom_id '1'"),
        ("j.jsonl", [{"video": "a", "custom_id": ["b"]}], "custom_id in line 1 .* is a list"),
        ("j.jsonl", [], "no request in it"),
        ("j.csv", ["video,n,n", "a.mp4,1,2"], "has the column 'n' 2 times"),
        ("j.csv", ["video,prompt", "a.mp4,What, then?"], "line 2 .* more fields"),
        ("j.csv", ["video,prompt", "a.mp4"], "line 2 .* fewer fields"),
        ("j.csv", ["clip", "a.mp4"], "no video, no prompt and no messages"),
        ("j.csv", ["messages", "not json"], "messages in line 2 .*: not JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, name, lines, message):
    with pytest.raises(BadRequest, match=message) as caught:
        rows_of([write(tmp_path / name, *lines)])
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_source_is_one_line(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    for source, message in (
        (tmp_path / "empty", "has no video in it"),
        (f"{folder}/*.avi", "matches no file"),
        (tmp_path / "gone.jsonl", "No such file"),
        (tmp_path / "gone.mp4", "gone.mp4 does not exist"),
        (tmp_path / "bytes.jsonl", "cannot be read"),
    ):
        with pytest.raises(BadRequest, match=message):
            rows_of([str(source)])
    with pytest.raises(BadRequest, match="two requests"):
        rows_of([str(folder), f"{folder}/*.mp4"])


def test_shards_are_all_rows_once(folder):
    rows = rows_of([str(folder)])
    parts = [shard(rows, f"{place}/2") for place in (1, 2)]
    assert sorted(row.custom_id for part in parts for row in part) == sorted(row.custom_id for row in rows)
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(BadRequest, match="shard"):
            shard(rows, wrong)
