"""A batch job on Ray writes the file that it writes without, also where an actor is killed."""

import json
import os
import re
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hippo.batch import Answers, Defaults, Row, answer_all, answered, by_subject
from hippo.cli.app import app
from hippo.cli.demo import CLIP
from hippo.errors import HippoError
from hippo.params import SamplingParams

pytest.importorskip("ray", reason="Ray is not installed: pip install 'hippo-video[ray]'")

from hippo.ray.batch import _Decoding, _lines, _packed, _Reading
from hippo.ray.batch import answered as answered_on_ray

PAGE = Path(__file__).parents[2] / "docs" / "ray.md"
DEFAULTS = Defaults(params=SamplingParams(max_new_tokens=12, method="ar"))
WHERE = {
    **{"device": "cpu", "dtype": "float32", "trust_remote_code": False},
    **{"max_running": 8, "cache_memory": None, "start_draft": False},
}


def without_times(line):
    usage = line["response"]["body"]["usage"] if line["response"] else {}
    usage.pop("prompt_tokens_details", None)  # what the cache knew
    return line


def decoders():
    """The processes of this cluster that decode."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, status = (folder / "cmdline").read_bytes(), (folder / "status").read_text()
            raylet = re.search(r"PPid:\s*(\d+)", status)[1]
            if b"ray::MapWorker(MapBatches(_Decoding" in name:
                ours = re.search(r"PPid:\s*(\d+)", Path(f"/proc/{raylet}/status").read_text())[1]
                if int(ours) == os.getpid():
                    yield int(folder.name)
        except OSError:  # it has ended
            continue


def test_a_killed_actor_loses_nothing_and_doubles_nothing(cluster, tiny, tmp_path):
    rows = [Row(str(number), str(CLIP), f"What is number {number}?", columns={"n": number}) for number in range(11)]
    rows.append(Row("gone", str(tmp_path / "gone.mp4")))
    out, killed = tmp_path / "out.jsonl", []

    def on_done(line):
        if not killed:
            killed.extend(decoders())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    with Answers(out, {row.custom_id: DEFAULTS.digest(row) for row in rows}) as answers:
        lines = answered_on_ray("local", by_subject(rows), DEFAULTS, "tiny", None, WHERE)
        summary = answer_all(lines, answers, on_done=on_done)
    assert len(killed) == 1 and summary.answered == 11 and summary.failures == {"MediaError": 1}
    lines = {line["custom_id"]: without_times(line) for line in map(json.loads, out.read_text().splitlines())}
    assert len(lines) == len(out.read_text().splitlines()) == 12
    expected = {line["custom_id"]: without_times(line) for line in answered(tiny, rows, DEFAULTS)}
    assert lines == expected


def test_a_pair_that_cannot_be_loaded_ends_the_job_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # back at the end: actors change into the folder
    monkeypatch.setenv("OMP_THREAD_LIMIT", "2")
    given = (str(tmp_path), DEFAULTS, "./gone", None, WHERE)
    rows = _packed("row", [Row("words", None, "Say hello.")])
    (work,) = _Reading(*given)(rows)
    done = _Decoding(*given, 1)(work)
    with pytest.raises(HippoError, match=r"no checkpoint folder \./gone") as caught:
        list(_lines(SimpleNamespace(iter_batches=lambda **_: [done])))
    assert "\n" not in str(caught.value)


def test_the_quick_start_of_the_documentation(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for name in "ab":
        (tmp_path / "clips" / f"{name}.mp4").write_bytes(CLIP.read_bytes())
    commands, script = re.findall(r"```(?:python)?\n(.*?)```", PAGE.read_text(), re.DOTALL)[:2]
    for command in commands.splitlines():
        words = shlex.split(command)
        assert words[:2] == ["hippo", "batch"]
        done = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2
    exec(compile(script, str(PAGE), "exec"), {})
    captions = [json.loads(line) for file in (tmp_path / "captions").iterdir() for line in file.open()]
    assert len(captions) == 2 and all(row["generated_text"] and not row["__inference_error__"] for row in captions)
