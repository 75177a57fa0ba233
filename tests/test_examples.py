"""Every example runs, says something, and causes no warning from hippo."""

import os
import runpy
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    said, errors = capsys.readouterr()
    for words in SAYS[script.stem]:
        assert words in said
    if script.stem == "compare":
        lines = said.splitlines()
        assert len(lines) == 5 and all(line.endswith("yes") for line in lines[1:])
    assert "Warning" not in errors and not list(tmp_path.iterdir())


def test_an_example_runs_in_an_interpreter_of_its_own(tmp_path):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, ROOT / "examples" / "caption.py"]
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0 and "green ring" in run.stdout, run.stderr
    assert "Warning" not in run.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example_is_short(script):
    assert len(script.read_text().splitlines()) < 40
