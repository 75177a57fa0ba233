"""The `hippo` command and its sub-commands."""

import typer

from hippo.cli import bench
from hippo.cli.caption import caption
from hippo.cli.demo import demo
from hippo.cli.doctor import doctor
from hippo.cli.explain import explain
from hippo.cli.models import models
from hippo.cli.verify import verify
from hippo.cli.world import world

app = typer.Typer(
    help="HIPPO: the same words as your video-LLM, several times sooner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (caption, demo, doctor, explain, models, verify, world):
    app.command()(command)
app.add_typer(bench.app, name="bench")
