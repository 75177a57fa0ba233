"""lmms-eval's own task code on miniature data, with the bundled pair."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hippo.bench.table import rows

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms")
from tests.lmms.miniature import MVBENCH, TASKS, build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with miniature data, and the environment for it."""
    folder = tmp_path_factory.mktemp("miniature") / "data"
    environment = os.environ | build(folder, clips=1, questions=2, side=112) | {"PYTHONPATH": str(ROOT)}
    return folder, environment


def test_all_six_benchmarks_get_the_targets_own_answers(data, tmp_path):
    folder, environment = data
    common = "frames=4,max_new_tokens=24,max_running=1,draft_worker=thread,method="  # a process takes seconds to start
    jobs = [{"model_args": common + method, "tasks": TASKS, "limit": 1} for method in ("ar", "hippo")]
    jobs.append({"model_args": common + "sd", "tasks": ["lvbench"], "limit": 2})
    command = [sys.executable, ROOT / "tests/lmms/evaluate.py", tmp_path, json.dumps(jobs)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, ours, serial = (json.loads((tmp_path / f"{number}_results.json").read_text()) for number in range(3))
    parts = [task for task in TASKS if task != "mvbench"] + [f"mvbench_{name}" for name in MVBENCH]
    assert set(ours["samples"]) == set(parts)
    for task in parts:
        expected, answers = plain["samples"][task], ours["samples"][task]
        assert [one["filtered_resps"] for one in answers] == [one["filtered_resps"] for one in expected]
        assert answers[0]["token_counts"] == expected[0]["token_counts"]
        assert ours["throughput"][f"avg_{task}/answered"] == 1 and ours["throughput"][f"avg_{task}/failed"] == 0
    assert ours["samples"]["video_dc499"][0]["filtered_resps"][0].startswith("The video shows")
    assert ours["results"]["video_dc499"]["gpt_eval_score,none"] == 3
    assert serial["throughput"]["avg_lvbench/checked"] > 0
    assert serial["throughput"]["avg_lvbench/cached"] > 0, "the second question on the video reads only its own words"

    table = {(row["benchmark"], row["method"]): row for row in rows(tmp_path)}
    assert set(table) == {(task, method) for task in TASKS for method in ("ar", "hippo")} | {("lvbench", "sd")}
    for task in TASKS:
        row = table[task, "hippo"]
        assert row["tokens"] == table[task, "ar"]["tokens"] and row["speedup"] > 0 and row["decode_speedup"] > 0
    assert table["lvbench", "sd"]["speedup"] is None, "ar has answered other documents"
    assert table["lvbench", "sd"]["acceptance_rate"] > 0


def test_the_quick_start_of_the_page(data, tmp_path):
    folder, environment = data
    page = (ROOT / "docs/benchmarks.md").read_text()
    block = re.search(r"## Quick start.*?```\n(.*?)```", page, re.DOTALL)[1]
    lines = [line for line in block.splitlines() if not re.match(r"pip|git|cd|export|python tests", line)]
    assert len(lines) == 3
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = re.sub(r" results\b", f" {tmp_path}", "\n".join(lines))
    done = subprocess.run(["bash", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| mlvu_dev \| hippo \| 2 \| 0 \|", done.stdout, re.MULTILINE), done.stdout
