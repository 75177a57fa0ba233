"""The paper's table from lmms-eval's files: speedup, tokens per forward, acceptance, by benchmark and method."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hippo.errors import BadRequest

_DRAFTING = (  # model arguments that a target alone does not use
    *("draft", "drafter", "draft_device", "draft_timeout", "draft_worker", "draft_bits"),
    *("keep_ratio", "gamma", "decoder", "pruner"),
)


@dataclass(frozen=True)
class Run:
    """One task in one result file. arguments: of the model. numbers: see `hippo.lmms.model.Costs`, averaged over calls
    of the model. part: the share of the task's documents, by --limit and --offset."""

    arguments: Mapping[str, str]
    benchmark: str
    task: str
    part: str
    numbers: Mapping[str, float]

    @property
    def method(self) -> str:
        return self.arguments.get("method", "hippo")

    @property
    def used(self) -> dict[str, str]:
        """The arguments without the method, and without what it does not use."""
        unused = ("method", *(_DRAFTING if self.method == "ar" else ()))
        return {name: value for name, value in self.arguments.items() if name not in unused}


def rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each benchmark and method, from all result files of `--model hippo` in a folder and below it.

    Of the same documents by the same arguments the newest file counts; parts of a task, and the sub-tasks of a group,
    are added. A speedup is over method ar with the same other arguments and the same documents, None without such a
    file; `decode_speedup` is None too unless requests ran one at a time. Raises BadRequest.
    """
    newest = {_key(run): run for run in _runs(folder)}
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in newest.values():
        groups.setdefault((run.benchmark, run.method, repr(sorted(run.used.items()))), []).append(run)
    differing = _differing(newest.values())
    found = []
    for (benchmark, method, _), runs in sorted(
        groups.items(), key=lambda item: (item[0][0], item[0][1] != "ar", item[0])
    ):
        used, total = runs[0].used, _sum(runs)
        plain = sorted((name, value) for name, value in used.items() if name not in _DRAFTING)
        base = groups.get((benchmark, "ar", repr(plain)))
        same = base is not None and sorted(map(_documents, base)) == sorted(map(_documents, runs))
        alone = used.get("max_running") == "1"
        found.append(
            {
                "benchmark": benchmark,
                "method": " ".join([method, *(f"{name}={used[name]}" for name in sorted(differing & used.keys()))]),
                "answered": int(total["answered"]),
                "failed": int(total["failed"]),
                "tokens": int(total["tokens"]),
                "tokens_per_second": _ratio(total, "tokens", "seconds"),
                "speedup": _speedup(total, _sum(base), "seconds") if base and same else None,
                "decode_speedup": _speedup(total, _sum(base), "decoding") if base and same and alone else None,
                "tokens_per_forward": (total["tokens"] - total["answered"]) / max(1, total["forwards"]),
                "acceptance_rate": _ratio(total, "accepted", "checked") if total["checked"] else None,
                "cached": _ratio(total, "cached", "prompt"),
            }
        )
    return found


def _runs(folder: Path) -> Iterable[Run]:
    """The oldest first."""
    files = sorted(folder.rglob("*_results.json"), key=lambda path: path.name)
    found = [run for path in files for run in _runs_in(path)]
    if not found:
        cause = f"{folder} has no results of --model hippo"
        raise BadRequest(cause, "name the --output_path of lmms-eval; it writes *_results.json there")
    return found


def _runs_in(path: Path) -> list[Run]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        config, groups = result["config"], result.get("group_subtasks", {})
        arguments = _arguments(config["model_args"])
        tasks: dict[str, dict[str, float]] = {}
        for name, value in result.get("throughput", {}).items():
            if match := re.fullmatch(r"avg_(.+)/(\w+)", name):
                tasks.setdefault(match[1], {})[match[2]] = value
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"{path} is no result file of lmms-eval ({error!r})", "take it out of the folder") from None
    group_of = {task: group for group, members in groups.items() for task in members}
    part = f"{config.get('limit')} from {config.get('offset')}"
    return [Run(arguments, group_of.get(task, task), task, part, numbers) for task, numbers in tasks.items()]


def _arguments(given: Any) -> dict[str, str]:
    """Of the model, from its command line or from Python."""
    if isinstance(given, dict):
        return {name: str(value) for name, value in given.items()}
    return dict(re.findall(r"(\w+)=((?:\{.*?\}|[^,])*)", given or ""))


def _documents(run: Run) -> tuple[str, str, float]:
    return run.task, run.part, run.numbers["answered"]


def _key(run: Run) -> tuple[Any, ...]:
    return run.method, tuple(sorted(run.used.items())), run.task, run.part


def _differing(runs: Iterable[Run]) -> set[str]:
    """The arguments of which runs have different values, where they use them."""
    names = {name for run in runs for name in run.used}
    return {
        name
        for name in names
        if len({run.used.get(name) for run in runs if run.method != "ar" or name not in _DRAFTING}) > 1
    }


def _sum(runs: Iterable[Run]) -> Counter[str]:
    total: Counter[str] = Counter()
    for run in runs:
        total.update(run.numbers)  # type: ignore[arg-type]  # seconds are floats
    return total


def _ratio(total: Mapping[str, float], above: str, below: str) -> float:
    return total[above] / max(total[below], 1e-9)


def _speedup(ours: Mapping[str, float], base: Mapping[str, float], seconds: str) -> float:
    return _ratio(ours, "tokens", seconds) / _ratio(base, "tokens", seconds)
