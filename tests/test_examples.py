"""Every example runs, says something, and causes no warning from hippo."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each example did, and the folder it ran in. Two run at a time: most of it is imports."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    folders = {script: tmp_path_factory.mktemp(script.stem) for script in SCRIPTS}

    def run(script):
        return subprocess.run(
            [sys.executable, script],
            cwd=folders[script],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
        )

    with ThreadPoolExecutor(2) as pool:
        return {script: (done, folders[script]) for script, done in zip(SCRIPTS, pool.map(run, SCRIPTS), strict=True)}


@pytest.mark.parametrize("script", [pytest.param(script, id=script.stem) for script in SCRIPTS])
def test_example_runs(runs, script):
    run, folder = runs[script]
    assert run.returncode == 0, run.stderr
    for said in SAYS[script.stem]:
        assert said in run.stdout
    if script.stem == "compare":
        lines = run.stdout.splitlines()
        assert len(lines) == 5 and all(line.endswith("yes") for line in lines[1:])
    assert "Warning" not in run.stderr and not list(folder.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example_is_short(script):
    assert len(script.read_text().splitlines()) < 40
