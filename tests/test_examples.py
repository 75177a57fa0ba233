"""Every example runs, says something, and causes no warning from hippo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "ask": ["> What does the green ring do?"],
    "caption": ["green ring", "tokens per target forward"],
    "compare": ["pearl", "hippo"],
    "own_models": ["identical to generate(): True"],
    "own_pruner": ["moving", "tokens kept"],
}


def test_there_are_five():
    assert [script.stem for script in SCRIPTS] == sorted(SAYS)


@pytest.mark.parametrize("script", [pytest.param(script, id=script.stem) for script in SCRIPTS])
def test_example_runs(script, tmp_path):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    for said in SAYS[script.stem]:
        assert said in run.stdout
    if script.stem == "compare":
        lines = run.stdout.splitlines()
        assert len(lines) == 5 and all(line.endswith("yes") for line in lines[1:])
    assert "Warning" not in run.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example_is_short(script):
    assert len(script.read_text().splitlines()) < 40
