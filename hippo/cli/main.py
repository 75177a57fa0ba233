"""One place where errors become a line on stderr and an exit code."""

from __future__ import annotations

import os
import signal
import sys

from hippo import ranks
from hippo.errors import HippoError

INTERRUPTED = 130


def main() -> None:
    """Run the command line. Exit code 2 and one line on stderr for whatever the user can mend."""
    if not ranks.leads():
        _be_silent()
    try:
        # An interrupt inside a library's start-up code can end Python with a crash: it waits until all are imported.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            from hippo.cli.app import app
            from hippo.llm import out_of_memory_explained
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with out_of_memory_explained():
            app()
    except HippoError as error:
        _leave(f"hippo: {error}", 2)
    except KeyboardInterrupt:
        _leave("\nhippo: interrupted", INTERRUPTED)
    except SystemExit as leaving:  # typer's way with an interrupt, without a word
        if leaving.code == INTERRUPTED:
            _leave("\nhippo: interrupted", INTERRUPTED)
        raise


def _be_silent() -> None:
    """Leave the terminal to the process that leads."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nothing, stream.fileno())


def _leave(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)
