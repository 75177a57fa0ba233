"""hippo bench: studies anyone can repeat, one module a command."""

import typer

from hippo.cli.bench.identical import identical
from hippo.cli.bench.long import long
from hippo.cli.bench.pruning import pruning
from hippo.cli.bench.scoring import scoring
from hippo.cli.bench.speed import speed

app = typer.Typer(help="Studies anyone can repeat.", no_args_is_help=True)
for command in (speed, pruning, identical, scoring, long):
    app.command()(command)
