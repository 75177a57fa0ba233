"""The documents agree with the package and with each other, as far as a program can tell."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import typer
from prometheus_client import generate_latest
from typer.testing import CliRunner

import hippo
from hippo.cli.app import app
from hippo.cli.demo import CLIP
from hippo.serve.metrics import Metrics

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_command_has_its_line():
    text = (ROOT / "docs" / "cli.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    for name in [*names, *(group.name for group in app.registered_groups)]:
        assert f"| `hippo {name}` |" in text, name


def test_the_version_is_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert f"## [{hippo.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(("page", "says"), [("pruner-plugins", "tokens kept"), ("drafter-plugins", "tokens accepted")])
def test_examples_of_plug_ins_run_as_written(page, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIPPO_STATE", "off")
    shutil.copy(CLIP, "clip.mp4")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)
    scope = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, page, "exec"), scope)
    assert blocks and says in capsys.readouterr().out


def test_commands_of_plug_ins_run_as_written(tmp_path, monkeypatch):
    """Of both pages, those about a clip: with plug-ins of the user's in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HIPPO_STATE", "off")
    shutil.copy(CLIP, "clip.mp4")
    commands = []
    for page, module in (("pruner-plugins", "my_pruners"), ("drafter-plugins", "my_drafters")):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        block = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0]
        Path(f"{module}.py").write_text(block.split("\nwith hippo.load")[0])
        commands += re.findall(r"^hippo (?:caption|explain) .*", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        short = ["--max-new-tokens", "8"] if "caption" in command else []
        done = CliRunner().invoke(app, [*shlex.split(command)[1:], *short], catch_exceptions=False)
        assert done.exit_code == 0, (command, done.stderr)


def test_the_servers_options_and_their_defaults_are_on_its_page():
    text = (ROOT / "docs" / "serving.md").read_text().partition("## Options")[2].partition("\n## ")[0]
    rows = {name: line for line in text.splitlines() for name in re.findall(r"`(--[\w-]+)`", line)}
    command = typer.main.get_command(app).commands["serve"]
    options = {name: option for option in command.params for name in option.opts if name != "--help"}
    assert set(rows) == set(options)
    for name, option in options.items():
        if type(option.default) in (int, float) and not name.startswith("--ray"):  # which ray.md explains
            shown = f"{option.default >> 20} MiB" if name == "--max-media-bytes" else f"{option.default:g}"
            assert re.search(rf"\b{shown}\b", rows[name]), name


def test_the_servers_metrics_are_on_its_page():
    text = (ROOT / "docs" / "serving.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    lines = generate_latest(Metrics("tiny", lambda: 0, lambda: 0).registry).decode().splitlines()
    kinds = dict(line.removeprefix("# TYPE ").split() for line in lines if line.startswith("# TYPE "))
    served = {name for name in kinds if not name.endswith("_created")}
    written = set(re.findall(r"`((?:hippo:|process_)\w+)`", text))
    assert {name for name in written if name.startswith("hippo:")} == {name for name in served if name[0] == "h"}
    assert served <= written, "those of the process are Linux's"
