"""The command line starts at once, and says what it has."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import hippo
from hippo.cli import common
from hippo.cli.app import app
from hippo.llm import DEFAULT_PROMPT
from hippo.pruning import PRUNERS

COMMANDS = ["caption", "demo", "doctor", "explain", "models", "verify", "world", "bench"]
STUDIES = [["bench", name] for name in ("speed", "pruning", "identical", "scoring", "long", "gpu")]


def words(*arguments):
    """What --help says, without its frames and line breaks."""
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, [*arguments, "--help"], catch_exceptions=False)
    assert done.exit_code == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", done.stdout).split())


def test_help_and_version_import_nothing_that_takes_seconds():
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from hippo.cli.app import app\n"
        "import hippo.cli.main\n"
        f"for arguments in {[['--version'], *([name, '--help'] for name in COMMANDS), *STUDIES]}:\n"
        "    assert CliRunner().invoke(app, [*arguments, '--help']).exit_code == 0\n"
        "print(*sorted({'torch', 'transformers', 'numpy', 'av', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout == "\n"


def test_version():
    done = subprocess.run(
        [sys.executable, "-m", "hippo", "--version"], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hippo {hippo.__version__}\n", "")


@pytest.mark.parametrize("command", [["caption"], ["verify"], ["explain"]])
def test_a_default_in_brackets_is_shown(command):
    assert "[default: 16]" in words(*command)
    assert command == ["explain"] or "[default: what the free memory holds]" in words(*command)


def test_only_public_pruners_are_in_the_help():
    named = set(re.split(", | or ", common.PRUNERS))
    assert named == {"none", "uniform", "attention", "specvlm", "hippo"} <= set(PRUNERS)
    for command in ("caption", "explain"):
        told = words(command)
        assert common.PRUNERS in told and not [name for name in set(PRUNERS) - named if f" {name}," in told]


def test_the_default_prompt_is_the_library_s():
    assert common.DEFAULT_PROMPT == DEFAULT_PROMPT
