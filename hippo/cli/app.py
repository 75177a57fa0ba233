"""The `hippo` command and its sub-commands. Their modules import torch and the like only in the commands' bodies."""

from typing import Annotated

import typer

from hippo import __version__
from hippo.bench import commands as bench
from hippo.bench.commands.world import world
from hippo.cli.batch import batch
from hippo.cli.caption import caption
from hippo.cli.chat import chat
from hippo.cli.common import say
from hippo.cli.demo import demo
from hippo.cli.doctor import doctor
from hippo.cli.explain import explain
from hippo.cli.models import models
from hippo.cli.plan import plan
from hippo.cli.serve import serve
from hippo.cli.verify import verify

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _version(asked: bool) -> None:
    if asked:
        say(f"hippo {__version__}\n")
        raise typer.Exit


@app.callback()
def hippo(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """HIPPO: the same words as your video-LLM, several times faster."""


for command in (batch, caption, chat, demo, doctor, explain, models, plan, serve, verify, world):
    app.command()(command)
app.add_typer(bench.app, name="bench")
