"""The first minutes on a GPU: ten steps, each in a process of its own with a time limit, and one report, which is
written anew after every step. See `hippo.bench.gpu_steps`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

from hippo import state
from hippo.bench.gpu_steps import STEPS

REPORT = "report.md"
_ON_CPU = "On a CPU this shows the form of the report, and whether texts are equal. Its times say nothing of a GPU."


def study(
    out: Path, minutes: float, names: Sequence[str], size: str, device: str, progress: Callable[[str, float], None]
) -> bool:
    """Run steps. Each has in the folder a file of JSON lines and a log. Time that one leaves goes to those after it.

    size: "tiny", "full", or "auto": tiny on a CPU. device: "auto" or torch's. Returns whether all attempts succeeded.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    size = ("tiny" if device == "cpu" else "full") if size == "auto" else size
    where = str(state.machine()["cpu"]) if device == "cpu" else torch.cuda.get_device_name(device)
    ends = time.monotonic() + 60 * minutes
    for number, name in enumerate(names):
        progress(name, number / len(names))
        share = STEPS[name][1] / sum(STEPS[later][1] for later in names[number:])
        file = out / f"{name}.jsonl"
        file.write_text(json.dumps({"on": where, "gpu": device != "cpu", "size": size}) + "\n")
        run_step(_command(name, size, device, out), share * max(0.0, ends - time.monotonic()), file)
        (out / REPORT).write_text(report(out))
    return not any(_errors(records(out / f"{name}.jsonl")) for name in names)


def _command(name: str, size: str, device: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "hippo.bench.gpu_steps", name, size, device, str(out)]


def run_step(command: Sequence[str], limit: float, file: Path) -> None:
    """Run a command that adds records to `file`, and add how it ended. After `limit` seconds it is killed, with all
    processes that it started; so it is if this process is ended by a signal meanwhile."""
    began, log, error = time.monotonic(), file.with_suffix(".log"), ""
    with log.open("wb") as said, ended_by_exception():
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if code := process.wait(limit):
                cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
                error = f"ended with {cause}: {next(filter(None, reversed(lines)), 'no output')[:300]}"
        except subprocess.TimeoutExpired:
            error = f"timed out after {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with file.open("a") as results:  # a killed process may have left half a line
        results.write("\n" + json.dumps({"ended": time.monotonic() - began, "error": error}) + "\n")


@contextmanager
def ended_by_exception() -> Iterator[None]:
    """Inside, the signals that end a process raise SystemExit, so that what it started can be ended first."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    signals = (signal.SIGTERM, signal.SIGHUP)
    ours = threading.current_thread() is threading.main_thread()  # no other thread may set one
    before = {number: signal.signal(number, end) for number in signals} if ours else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def records(file: Path) -> list[dict[str, Any]]:
    """What a step has written so far: {"on", "gpu", "size"}, {"trying"}, {"what", ...}, {"ended", "error"}."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def _errors(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each failure, with what was tried."""
    errors, trying = [], "to start"
    for row in rows:
        trying = row.get("trying", trying)
        if row.get("error"):
            errors.append(f"{row.get('what', trying)}: {row['error']}")
    return errors


def report(out: Path) -> str:
    """The results in a folder so far, as Markdown."""
    steps = {name: rows for name in STEPS if (rows := records(out / f"{name}.jsonl"))}
    ran = {(first["gpu"], f"{first['on']}, {first['size']} sizes") for first, *_ in steps.values()}
    titles = [where if gpu else f"a CPU ({where})" for gpu, where in sorted(ran)]
    lines = [f"# hippo bench gpu on {' and '.join(titles)}", ""]
    lines += [] if all(gpu for gpu, _ in ran) else [_ON_CPU, ""]
    summary = [("step", "outcome", "seconds"), ("---",) * 3]
    for name in STEPS:
        summary.append((name, *_outcome(steps.get(name, []))))
    lines += [f"| {' | '.join(cells)} |" for cells in summary]
    for name, rows in steps.items():
        lines += ["", f"## {name}", "", STEPS[name][0].__doc__ or "", *_tables([row for row in rows if "what" in row])]
        lines += [f"\n![{row['what']}]({row['picture']})" for row in rows if "picture" in row]
        lines += [f"\nFailed: {_cell(error)}" for error in _errors(rows)]
    return "\n".join(lines) + "\n"


def _outcome(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """What came of a step, and its seconds."""
    if not rows or "ended" not in rows[-1]:
        return "under way" if rows else "not run", ""
    errors = _errors(rows)
    more = f" ({len(errors)} failed)" if len(errors) > 1 else ""
    return _cell(errors[-1]) + more if errors else "done", f"{rows[-1]['ended']:.0f}"


def _tables(rows: list[dict[str, Any]]) -> list[str]:
    """One for each set of columns."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        keys = tuple(key for key in row if key not in ("what", "error", "picture"))
        if keys:
            tables.setdefault(keys, []).append([_cell(row[key]) for key in ("what", *keys)])
    lines = []
    for keys, cells in tables.items():
        lines += ["", *(f"| {' | '.join(line)} |" for line in [["", *keys], ["---"] * (len(keys) + 1), *cells])]
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else " ".join(str(value).replace("|", "/").split())
