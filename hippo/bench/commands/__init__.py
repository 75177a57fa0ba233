"""hippo bench: studies anyone can repeat, one module a command."""

import typer

from hippo.bench.commands.gpu import gpu
from hippo.bench.commands.identical import identical
from hippo.bench.commands.long import long
from hippo.bench.commands.pruning import pruning
from hippo.bench.commands.scoring import scoring
from hippo.bench.commands.serve import serve
from hippo.bench.commands.serving import batch, chat, throughput
from hippo.bench.commands.speed import speed
from hippo.bench.commands.table import table

app = typer.Typer(help="Studies anyone can repeat.", no_args_is_help=True)
for command in (speed, pruning, identical, scoring, long, chat, throughput, batch, serve, gpu, table):
    app.command()(command)
