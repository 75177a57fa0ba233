"""One place where errors become a line on stderr and an exit code, and where stdout's own failures are reported."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys

from hippo import tensor_parallel
from hippo.errors import HippoError

STDOUT, STDERR = 1, 2
INTERRUPTED = 128 + signal.SIGINT


class StdoutLost(Exception):
    """Standard output takes no more: its reader is gone, the disk is full, or it was closed. args: errno, its text."""


class _Stream(io.FileIO):
    """Standard output or error. Its failures cannot be taken for those of another file."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if self.fileno() == STDERR:  # there is no place left to say so
                return len(data)  # type: ignore[arg-type]
            raise StdoutLost(error.errno, error.strerror) from None


def main() -> None:
    """Run the command line. Exit code 2 and one line on stderr for whatever the user can act on."""
    _open_streams()
    sys.path.append(os.getcwd())  # where --pruner and --drafter may name a module
    if not tensor_parallel.is_leader():  # the terminal belongs to the first process
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, STDOUT)
        os.dup2(nothing, STDERR)
    try:
        _run()
    except HippoError as error:
        _leave(f"hippo: {error}", 2)
    except KeyboardInterrupt:
        _leave("\nhippo: interrupted", INTERRUPTED)
    except StdoutLost as lost:
        number, reason = lost.args
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python flushes stdout once more on the way out
        if number == errno.EPIPE:  # what a shell reports of `cat` and `git`, which SIGPIPE ends without a word
            sys.exit(128 + signal.SIGPIPE)
        _leave(f"hippo: stdout cannot be written ({reason})", 2)


def _run() -> None:
    try:
        from hippo.cli.app import app

        app()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # typer's way with an interrupt, without a word
            raise KeyboardInterrupt from None
        raise
    except (HippoError, StdoutLost):
        raise
    except Exception:
        from hippo.errors import out_of_memory_explained

        with out_of_memory_explained():
            raise
    finally:
        sys.stdout.flush()


def _open_streams() -> None:
    """Open stdin, stdout and stderr where they are closed, or the next file opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if (stream := getattr(sys, name)) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY if number == STDERR else os.O_RDONLY), number)  # stdout still fails
        if number:
            raw = io.BufferedWriter(_Stream(number, "w", closefd=False))
            how = {"encoding": stream.encoding, "errors": stream.errors} if stream else {"encoding": "utf-8"}
            setattr(sys, name, io.TextIOWrapper(raw, **how, line_buffering=True))


def _leave(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)
