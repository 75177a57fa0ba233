"""The `hippo` command: its sub-commands, and one place where errors become a line and an exit code."""

from __future__ import annotations

import sys

import typer

from hippo.cli.caption import caption
from hippo.cli.demo import demo
from hippo.cli.doctor import doctor
from hippo.cli.verify import verify
from hippo.cli.world import world
from hippo.errors import HippoError

app = typer.Typer(
    help="HIPPO: the same words as your video-LLM, several times sooner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (caption, demo, doctor, verify, world):
    app.command()(command)


def main() -> None:
    """Run the command line. Exit code 2 and one line on stderr for whatever the user can mend."""
    try:
        app()
    except HippoError as error:
        _leave(f"hippo: {error}", 2)
    except KeyboardInterrupt:
        _leave("\nhippo: interrupted", 130)


def _leave(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)
