"""The ten steps at tiny sizes on a CPU, what becomes of those that fail, and the report. Never seconds."""

import io
import json
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from hippo.bench import gpu, gpu_steps
from hippo.bench.gpu_steps import SIZES, STEPS, Bench, attempt_all
from hippo.bench.memory import held
from hippo.bench.speed import Run
from hippo.cli import common
from hippo.cli.app import app
from hippo.errors import HippoError
from hippo.report.rates import Rates

TINY = SIZES["tiny"]._replace(tokens=4, repeats=1, models=1, lengths=(64,), copied=1 << 20)
SCHEDULES = ("serial+hippo", "parallel+hippo", "hippo")


def rows_of(name, out):
    """What a step writes, less what it tries; nothing fails."""
    file = io.StringIO()
    attempt_all(STEPS[name][0](Bench(TINY, torch.device("cpu"), out)), file)
    rows = [row for row in map(json.loads, file.getvalue().splitlines()) if "trying" not in row]
    assert rows and not [row for row in rows if "error" in row]
    return {row.pop("what"): row for row in rows}


def test_the_machine_is_described(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "rates", lambda device, dtype: Rates({1: 1e-12, 2: 2e-12}, 1e-6))
    rows = rows_of("machine", tmp_path)
    assert rows["torch"]["value"] == torch.__version__.split("+")[0] and rows["processor"]["value"].endswith(" cores")
    assert rows["copy of 1 MiB"]["GB/s"] > 0
    assert rows["weights of products, float32, 1 tokens"]["GB/s"] == pytest.approx(4000)
    assert rows["weights of products, bfloat16, 2 tokens"]["GB/s"] == pytest.approx(1000)
    assert rows["start of an operation, bfloat16"]["us"] == 1


def test_captures_and_forwards_compare_with_transformers_forwards(tmp_path):
    rows = rows_of("captures", tmp_path)
    assert [(row["forwards"], row["wrong"], row["graphs"]) for row in rows.values()] == [(5, 0, 0), (10, 0, 0)]
    assert {row["why not"] for row in rows.values()} == {"a cpu has no CUDA graphs"}
    rows = rows_of("forwards", tmp_path)
    assert rows["weights and cache read once"]["times reading once"] == 1
    for width in gpu_steps.WIDTHS:
        assert rows[f"{width} tokens"]["difference of logits"] < 1e-4
        assert rows[f"{width} tokens, ours"]["ms"] > 0 < rows[f"{width} tokens, transformers' own"]["ms"]


def test_a_forward_that_computes_something_else_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps.Bench, "readers", lambda self, model, prompt, embeds: [Reader(1), Reader(2)])
    assert [row["wrong"] for row in rows_of("captures", tmp_path).values()] == [5, 10]


class Reader:
    def __init__(self, value):
        self.value = value

    def extend(self, ids):
        return torch.full((len(ids), 3), float(self.value))

    def rollback(self, count):
        pass


def test_identity_is_that_of_verify(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "loaded", lambda *_, **__: nullcontext(tiny))

    def run(command, **_):
        assert command[:4] == [sys.executable, "-m", "hippo", "verify"]
        done = CliRunner().invoke(app, command[3:])
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)

    monkeypatch.setattr(subprocess, "run", run)
    row = gpu_steps._verify(Bench(TINY, torch.device("cpu"), tmp_path), "float32", 1)
    assert row == {"answers": 4, "as generate()": 4, "near ties": 0, "different": 0, "drafts lost": 0}
    rows = [{"identical": False, "near_tie": near, "draft_lost": "killed"} for near in (True, False, False)]
    done = subprocess.CompletedProcess([], 1, json.dumps({"methods": rows}), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    row = gpu_steps._verify(Bench(TINY, torch.device("cpu"), tmp_path), "bfloat16", 2)
    assert row == {"answers": 6, "as generate()": 0, "near ties": 2, "different": 4, "drafts lost": 6}
    done.returncode, done.stderr = 2, "loading\nhippo: no such device"
    with pytest.raises(RuntimeError, match=r"^hippo: no such device$"):
        gpu_steps._verify(Bench(TINY, torch.device("cpu"), tmp_path), "float32", 1)


def test_schedules_are_compared_and_drawn(tmp_path, monkeypatch):
    steps = gpu_steps.steps
    monkeypatch.setattr(gpu_steps, "steps", lambda pair, draft, inputs, count: steps(pair, draft, inputs, 2))
    rows = rows_of("schedules", tmp_path)
    assert rows["ar"]["speedup over ar"] == 1 and rows["ar"]["tokens a forward"] == 1
    assert rows["generate"]["tokens a forward"] is None and "generate, static cache" in rows
    for bits in (16, 4):
        for rate in ("0.8", "0.9"):
            for method in SCHEDULES:
                assert rows[f"{method}, draft in {bits} bits, acceptance {rate}"]["speedup over ar"] > 0
    assert rows["target read once"]["times reading once"] == 1 and "draft beside, draft in 4 bits" in rows
    picture = (tmp_path / rows["timeline"]["picture"]).read_text()
    assert picture.startswith("<?xml") and "<svg" in picture


def test_a_draft_that_cannot_be_packed_is_not_measured_as_if_it_were(tmp_path, monkeypatch):
    def quantize(model, bits):
        if bits < 16:
            raise HippoError("there is no torchao")

    monkeypatch.setattr(gpu_steps, "quantize", quantize)
    monkeypatch.setattr(gpu_steps, "answer_by", lambda *_: Run([1], 1.0, 1.0))
    monkeypatch.setattr(gpu_steps, "steps", lambda *_: {"target_read_once": 1.0})
    file = io.StringIO()
    attempt_all(STEPS["schedules"][0](Bench(TINY, torch.device("cpu"), tmp_path)), file)
    rows = [json.loads(line) for line in file.getvalue().splitlines()]
    assert {"what": "the draft in 4 bits", "error": "HippoError: there is no torchao"} in rows
    assert not [row for row in rows if "draft in 4 bits, acceptance" in row.get("what", "")]
    assert rows[-1]["what"] == "generate, static cache" and rows[-1]["seconds"] == 1


def test_a_step_is_profiled_and_prompts_are_read_in_parts(tmp_path):
    rows = rows_of("profile", tmp_path)
    assert rows["all operations"]["ms"] > rows["aten::mm"]["ms"] > 0 < rows["aten::mm"]["calls a step"]
    shares = [rows[what]["share"] for what in ("all operations", "gaps between them")]
    assert sum(shares) == pytest.approx(1)
    rows = rows_of("prefill", tmp_path)
    assert [row["forwards"] for row in rows.values()] == [1, 1, 3, 5, 8]


def test_the_same_request_gives_the_same_text(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "bundled", lambda self, dtype: nullcontext(tiny))
    monkeypatch.setattr(gpu_steps, "METHODS", ["sd", "hippo"])
    rows = rows_of("repeats", tmp_path)
    assert list(rows) == [f"{method}, verify width {width}" for width in (8, 0) for method in ("sd", "hippo")]
    assert all(set(row.values()) == {1} for row in rows.values())


def test_a_text_that_changes_is_counted(tmp_path, monkeypatch):
    texts = iter([[1], [1], [2], [1], *[[3]] * 100])
    fake = SimpleNamespace(generate=lambda *_, **__: SimpleNamespace(token_ids=next(texts)))
    monkeypatch.setattr(Bench, "bundled", lambda self, dtype: nullcontext(fake))
    monkeypatch.setattr(gpu_steps, "transformers_generate", lambda *_, **__: SimpleNamespace(token_ids=[2]))
    steps = STEPS["repeats"][0](Bench(TINY._replace(repeats=3), torch.device("cpu"), tmp_path))
    assert next(steps)[1]() == {"answers": 3, "texts": 2, "as ar": 2, "as generate()": 1}


def test_lengths_and_the_first_token_are_split(tmp_path):
    rows = rows_of("lengths", tmp_path)
    assert list(rows) == ["at load", "64 video tokens", "64 video tokens, again"]
    load = rows.pop("at load")
    assert load["graphs"] == 0 < load["seconds"]
    assert all(row["graphs"] == 0 < row["ms a token"] for row in rows.values())
    for what, row in rows_of("first-token", tmp_path).items():
        parts = [row[name] for name in ("reading", "vision", "prefill", "scoring", "rest")]
        assert sum(parts) == pytest.approx(row["first token"]) and min(parts[1:3]) > 0
        assert (row["reading"] > 0) == what.startswith("bundled") and row["video tokens"] == 128


def test_recorded_graphs_are_counted(monkeypatch):
    def leave(self, *error):
        if self.broken:
            raise RuntimeError("another thread synchronised")

    monkeypatch.setattr(torch.cuda.graph, "__enter__", lambda self: None)
    monkeypatch.setattr(torch.cuda.graph, "__exit__", leave)
    graph = object.__new__(torch.cuda.graph)
    graph.broken = False
    with gpu_steps.recording() as seen:
        for _ in range(2):
            with graph:
                time.sleep(0.01)
        with suppress(ValueError), graph:
            raise ValueError("not allowed in a recording")
        graph.broken = True
        with suppress(RuntimeError), graph:
            pass
    graph.broken = False
    with graph:
        pass
    assert seen.pop("seconds of recording") >= 0.02 and seen == {"recordings": 4, "graphs": 2}


def test_an_attempt_that_fails_leaves_the_others():
    def fails():
        raise ValueError("no\nluck")

    def step():
        yield "one", lambda: {"ms": 1.0}
        yield "two", fails
        yield "three", lambda: [{"what": "a"}, {"what": "b", "ms": 2.0}]
        yield "four", lambda: None
        fails()

    file = io.StringIO()
    attempt_all(step(), file)
    rows = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [row["trying"] for row in rows if "trying" in row] == ["preparing", "one", "two", "three", "four"]
    assert [row for row in rows if "what" in row] == [
        {"what": "one", "ms": 1.0},
        {"what": "two", "error": "ValueError: no luck"},
        {"what": "a"},
        {"what": "b", "ms": 2.0},
        {"what": "four"},
        {"what": "preparing what follows four", "error": "ValueError: no luck"},
    ]


FAKE = """
import json, pathlib, subprocess, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[2])
with (out / f"{name}.jsonl").open("a") as file:
    for row in ({"trying": "first"}, {"what": "first", "ms": 1.5}, {"trying": "second"}):
        print(json.dumps(row), file=file, flush=True)
    if name == "captures":
        file.write('{"what": "half')
        file.flush()
        sys.exit("CUDA error: an illegal | memory access")
    if name == "forwards":
        child = subprocess.Popen(["sleep", "60"])
        (out / "child").write_text(str(child.pid))
        time.sleep(60)
"""


def test_a_step_that_ends_or_hangs_is_in_the_report_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_command", lambda name, size, device, out: [sys.executable, "-c", FAKE, name, str(out)])
    monkeypatch.setattr(gpu, "STEPS", {name: (step, 1) for name, (step, _) in STEPS.items()})
    names, seen = ["machine", "captures", "forwards", "identity"], []

    def progress(name, share):
        text = (tmp_path / "report.md").read_text() if (tmp_path / "report.md").exists() else ""
        seen.append((name, text.count("| not run |")))

    assert not gpu.study(tmp_path, 0.1, names, "auto", "cpu", progress)
    assert seen == [("machine", 0), ("captures", 9), ("forwards", 8), ("identity", 7)]
    text = (tmp_path / "report.md").read_text()
    assert "| machine | done |" in text and "| identity | done |" in text
    assert "| captures | second: ended with exit code 1: CUDA error: an illegal / memory access |" in text
    assert "| forwards | second: timed out after " in text and "Failed: second: timed out after " in text
    assert text.count("| first | 1.5 |") == 4
    require_gone(int((tmp_path / "child").read_text()))


def require_gone(*processes):
    for _ in range(300):
        if not any(map(held, processes)):
            return
        time.sleep(0.1)
    pytest.fail("a process that a step started is left")


STOPPED = """
import sys
from pathlib import Path
from hippo.bench import gpu
step = "import os, subprocess, sys, time; child = subprocess.Popen(['sleep', '600']); "
step += "print(os.getpid(), child.pid, flush=True); time.sleep(600)"
gpu.run_step([sys.executable, "-c", step], 600, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_ends_the_command_ends_its_step(tmp_path, sent):
    file = tmp_path / "x.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(file)],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # a shell's background and nohup ignore some
    )
    try:
        log = file.with_suffix(".log")
        while not log.exists() or not log.read_text().endswith("\n"):
            assert process.poll() is None
            time.sleep(0.05)
        processes = [int(number) for number in log.read_text().split()]
        assert all(map(held, processes))
        process.send_signal(sent)
        assert process.wait(60) != 0
        require_gone(*processes)
    finally:
        process.kill()
        process.wait()


def test_without_time_a_step_is_stopped_at_once(tmp_path):
    file = tmp_path / "x.jsonl"
    gpu.run_step([sys.executable, "-c", "import time; time.sleep(60)"], 0.2, file)
    assert gpu.records(file)[-1]["error"] == "timed out after 0 s"
    gpu.run_step([sys.executable, "-c", "import os; os.abort()"], 60, file)
    assert gpu.records(file)[-1]["error"] == "ended with SIGABRT: no output"


def test_the_command_runs_a_step_in_a_process_and_says_that_it_was_on_a_cpu(tmp_path):
    out = tmp_path / "out"
    arguments = ["bench", "gpu", "--out", str(out), "--steps", "prefill", "--size", "tiny", "--device", "cpu"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = (out / "report.md").read_text()
    assert done.stdout == text and text.startswith("# hippo bench gpu on a CPU (") and ", tiny sizes)\n" in text
    assert "| prefill | done |" in text and "| machine | not run |" in text
    rows = {row.get("what"): row for row in gpu.records(out / "prefill.jsonl")}
    assert (
        rows["parts of 19"]["forwards"] == 8 and f"| parts of 19 | 8 | {rows['parts of 19']['seconds']:.3g} |" in text
    )


def test_a_report_of_a_gpu_says_so_and_has_one_table_for_each_set_of_columns(tmp_path):
    lines = [
        {"on": "NVIDIA H100", "gpu": True, "size": "full"},
        {"trying": "a"},
        {"what": "a", "ms": 12345.6, "share": None},
        {"what": "b", "value": "x|y"},
        {"what": "c", "ms": 0.01234, "share": 1.0},
        {"ended": 61.4, "error": ""},
    ]
    (tmp_path / "profile.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "prefill.jsonl").write_text(json.dumps(lines[0]))
    text = gpu.report(tmp_path)
    assert text.startswith("# hippo bench gpu on NVIDIA H100, full sizes\n") and "CPU" not in text
    assert "| profile | done | 61 |" in text and "| prefill | under way |  |" in text
    assert "|  | ms | share |\n| --- | --- | --- |\n| a | 12,346 |  |\n| c | 0.0123 | 1 |\n\n|  | value |" in text
    assert "| b | x/y |" in text


@pytest.mark.parametrize(("option", "name"), [("--steps", "machine,magic"), ("--size", "huge")])
def test_what_there_is_not_is_refused(tmp_path, option, name):
    done = CliRunner().invoke(app, ["bench", "gpu", "--out", str(tmp_path), option, name])
    assert isinstance(done.exception, HippoError) and name.split(",")[-1] in str(done.exception)
