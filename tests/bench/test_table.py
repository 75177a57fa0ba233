"""hippo bench table, from files as lmms-eval writes them."""

import json

import pytest
from typer.testing import CliRunner

from hippo.bench.table import rows
from hippo.cli.app import app
from hippo.errors import BadRequest

AR = {"answered": 2, "failed": 0, "tokens": 20, "forwards": 18, "checked": 0, "accepted": 0, "prompt": 100, "cached": 0}
OURS = AR | {"forwards": 9, "checked": 16, "accepted": 12}


def write(folder, name, arguments, groups=None, limit=2, offset=0, **tasks):
    """A result file. tasks: the counts of each, with its seconds and those of decoding."""
    throughput = {"total_gen_tokens": 1, "avg_speed": 1.0}
    for task, (counts, seconds, decoding) in tasks.items():
        counts = counts | {"seconds": seconds, "decoding": decoding}
        throughput |= {f"avg_{task}/{key}": float(value) for key, value in counts.items()}
    result = {
        "config": {"model_args": arguments, "limit": limit, "offset": offset},
        "group_subtasks": groups or {task: [] for task in tasks},
        "throughput": throughput,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"20260101_00000{name}_results.json").write_text(json.dumps(result))


def by_name(folder):
    return {(row["benchmark"], row["method"]): row for row in rows(folder)}


def test_it_compares_with_ar_on_the_same_documents(tmp_path):
    same = "pretrained=org/target,max_running=1"
    write(tmp_path / "a", 1, f"{same},method=ar", mlvu_dev=(AR, 8.0, 4.0), lvbench=(AR, 2.0, 2.0))
    write(tmp_path / "b", 2, f"{same},draft=org/draft", mlvu_dev=(OURS, 4.0, 1.0), lvbench=(OURS, 4.0, 2.0))
    found = by_name(tmp_path)
    assert list(found) == [("lvbench", "ar"), ("lvbench", "hippo"), ("mlvu_dev", "ar"), ("mlvu_dev", "hippo")]
    row = found["mlvu_dev", "hippo"]
    assert (row["answered"], row["failed"], row["tokens"], row["tokens_per_second"]) == (2, 0, 20, 5.0)
    assert (row["speedup"], row["decode_speedup"]) == (2.0, 4.0)
    assert (row["tokens_per_forward"], row["acceptance_rate"]) == (2.0, 0.75)
    assert found["mlvu_dev", "ar"]["speedup"] == 1 and found["mlvu_dev", "ar"]["acceptance_rate"] is None
    assert found["lvbench", "hippo"]["speedup"] == 0.5, "what is slower is shown as slower"


def test_there_is_no_speedup_without_a_baseline(tmp_path):
    write(tmp_path, 1, "method=ar,frames=8", mlvu_dev=(AR, 8.0, 4.0), lvbench=(AR, 8.0, 4.0))
    write(tmp_path, 2, "method=hippo,frames=16", mlvu_dev=(OURS, 4.0, 1.0))
    write(tmp_path, 3, "method=hippo,frames=8", limit=5, lvbench=(OURS, 4.0, 1.0))
    write(tmp_path, 4, "method=sd,frames=8", lvbench=(OURS, 4.0, 1.0))
    found = by_name(tmp_path)
    assert found["mlvu_dev", "hippo frames=16"]["speedup"] is None, "other frames"
    assert found["lvbench", "hippo frames=8"]["speedup"] is None, "other documents"
    assert found["lvbench", "sd frames=8"]["speedup"] == 2
    assert found["lvbench", "sd frames=8"]["decode_speedup"] is None, "several requests at a time"


def test_parts_and_sub_tasks_are_added_and_the_newest_file_counts(tmp_path):
    groups = {"mvbench": ["mvbench_count", "mvbench_order"], "mvbench_count": [], "mvbench_order": []}
    write(tmp_path, 1, "method=ar", groups, mvbench_count=(AR, 99.0, 9.0), mvbench_order=(AR, 99.0, 9.0))
    write(tmp_path, 2, "method=ar", groups, mvbench_count=(AR, 3.0, 2.0), mvbench_order=(AR, 5.0, 2.0))
    failed = AR | {"answered": 1, "failed": 1}
    write(tmp_path, 3, "method=ar", groups, offset=2, mvbench_count=(failed, 2.0, 1.0))
    (row,) = rows(tmp_path)
    assert (row["benchmark"], row["method"], row["answered"], row["failed"]) == ("mvbench", "ar", 5, 1)
    assert row["tokens_per_second"] == 6.0


def test_methods_are_named_by_the_arguments_that_differ(tmp_path):
    same = {"pretrained": "org/target", "draft": "org/draft", "processor_kwargs": {"a": 1, "b": 2}}
    write(tmp_path, 1, same | {"method": "ar", "keep_ratio": 0.5}, lvbench=(AR, 8.0, 4.0))
    write(tmp_path, 2, same | {"keep_ratio": 0.1}, lvbench=(OURS, 4.0, 1.0))
    write(tmp_path, 3, same | {"keep_ratio": 0.2}, lvbench=(OURS, 2.0, 1.0))
    text = 'pretrained=org/target,draft=org/draft,processor_kwargs={"a": 1, "b": 2},keep_ratio=0.3'
    write(tmp_path, 4, text.replace('"', "'"), lvbench=(OURS, 2.0, 1.0))
    found = {row["method"]: row["speedup"] for row in rows(tmp_path)}
    assert found == {"ar": 1, "hippo keep_ratio=0.1": 2, "hippo keep_ratio=0.2": 4, "hippo keep_ratio=0.3": 4}


@pytest.mark.parametrize("text", ["[]", "{", '{"config": 1}', None])
def test_a_folder_without_results_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "1_results.json").write_text(text)
    with pytest.raises(BadRequest, match="no results of --model hippo" if text is None else "no result file"):
        rows(tmp_path)


def test_results_of_other_models_are_left_out(tmp_path):
    write(tmp_path, 1, "pretrained=org/target")
    with pytest.raises(BadRequest, match="no results of --model hippo"):
        rows(tmp_path)


def test_the_command_prints_markdown_or_json(tmp_path):
    write(tmp_path, 1, "method=ar", lvbench=(AR, 8.0, 4.0))
    write(tmp_path, 2, "method=hippo", lvbench=(OURS, 4.0, 1.0))

    def run(*more):
        done = CliRunner().invoke(app, ["bench", "table", "--results", str(tmp_path), *more])
        assert done.exit_code == 0, done.output
        return done.stdout

    lines = run().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2:] == [
        "| lvbench | ar | 2 | 0 | 20 | 2.5 | 1.00x |  | 1.00 |  | 0% |",
        "| lvbench | hippo | 2 | 0 | 20 | 5.0 | 2.00x |  | 2.00 | 75.0% | 0% |",
    ]
    assert json.loads(run("--json"))["rows"] == rows(tmp_path)
