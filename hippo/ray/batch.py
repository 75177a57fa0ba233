"""A batch job on Ray Data: CPUs read and process videos, actors with a loaded pair answer, the driver writes lines."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from math import ceil
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from hippo.batch import Defaults, Row, line_of
from hippo.errors import HippoError
from hippo.llm import load
from hippo.ray.cluster import Layout, connected, machines
from hippo.reader import Reader
from hippo.request import Output, Request

Line = dict[str, Any]
_TASKS = 10_000  # of a job, at most: Ray keeps something of each
_CALLS = 2  # tasks that an actor answers together, so that it is busy while the last of one are answered


def answered(
    address: str,
    rows: Sequence[Row],
    defaults: Defaults,
    target: str,
    draft: str | None,
    where: Mapping[str, Any],
    actors: int | None = None,
    gpus: float = 1.0,
) -> Generator[Line]:
    """The line of each row, as they end somewhere in a cluster.

    address: see `connected`. where: options of `hippo.load`. actors, gpus: see `Layout.of`. Raises HippoError.
    """
    with connected(address):
        layout = Layout.of(machines(), actors, gpus, where.get("device", "auto"))
        left = {row.custom_id for row in rows}
        try:
            with closing(_lines(_dataset(rows, defaults, target, draft, where, layout))) as lines:
                for line in lines:
                    if line["custom_id"] in left:  # else a task was retried after its lines had come
                        left.remove(line["custom_id"])
                        yield line
        except ray.exceptions.RayError as error:
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise HippoError(f"Ray gave the job up ({cause[:200]})", "run the same command again") from error
        if left:
            raise HippoError(f"{len(left)} requests have no answer", "run the same command again")


def _lines(dataset: Any) -> Generator[Line]:
    """Raises the HippoError that an actor could not be made for."""
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for line in _unpacked(table, "line"):
            if isinstance(line, HippoError):
                raise line
            yield line


def _dataset(
    rows: Sequence[Row],
    defaults: Defaults,
    target: str,
    draft: str | None,
    where: Mapping[str, Any],
    layout: Layout,
) -> Any:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # A task is small enough to keep all actors busy to the end, and no larger than what one answers together.
    size = max(1, min(where["max_running"], ceil(len(rows) / (2 * _CALLS * layout.actors))), len(rows) // _TASKS)
    tables = [_packed("row", rows[begin : begin + size]) for begin in range(0, len(rows), size)]
    given: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    folder = os.getcwd()
    read = ray.data.from_arrow(tables).map_batches(
        _Reading,
        fn_constructor_args=(folder, defaults, target, draft, where),
        compute=ActorPoolStrategy(min_size=1, max_size=layout.readers),
        num_cpus=layout.reader_cpus,
        **given,
    )
    return read.map_batches(
        _Decoding,
        fn_constructor_args=(folder, defaults, target, draft, where, layout.cpus),
        compute=ActorPoolStrategy(
            size=layout.actors, max_concurrent_calls_per_actor=_CALLS, enable_true_multi_threading=True
        ),
        num_cpus=layout.cpus,
        num_gpus=layout.gpus or None,
        **given,
    )


class _Reading:
    """Rows to requests that hold their inputs, or to lines where that fails."""

    def __init__(
        self, folder: str, defaults: Defaults, target: str, draft: str | None, where: Mapping[str, Any]
    ) -> None:
        _enter(folder)
        self._defaults = defaults
        self._failure: HippoError | None = None
        try:
            cache, trust = where["cache_memory"], where["trust_remote_code"]
            half = None if cache is None else cache // 2
            self._reader = Reader.load(target, draft, dtype=where["dtype"], cache_memory=half, trust_remote_code=trust)
        except HippoError as error:
            self._failure = error

    def __call__(self, table: pa.Table) -> Generator[pa.Table]:
        for row in _unpacked(table, "row"):
            yield _packed("work", [self._failure or (row, self._prepared(row))])

    def _prepared(self, row: Row) -> Request | Exception:
        try:
            request = self._defaults.request(row)
            return replace(request, prepared=self._reader.prepare(request))
        except Exception as error:  # as in the engine: it ends its own request alone
            return error


class _Decoding:
    """Requests to lines."""

    def __init__(
        self,
        folder: str,
        defaults: Defaults,
        target: str,
        draft: str | None,
        where: Mapping[str, Any],
        cpus: int,
    ) -> None:
        _enter(folder)
        os.environ["OMP_THREAD_LIMIT"] = str(cpus)  # Ray shares a machine's cores out; the draft's process has it too
        self._defaults = defaults
        self._failure: HippoError | None = None
        try:
            self._llm = load(target, draft, **where)
        except HippoError as error:
            self._failure = error

    def __call__(self, table: pa.Table) -> pa.Table:
        asked, lines = list[Row](), list[Any]()

        def requests() -> Generator[Request]:
            for work in _unpacked(table, "work"):
                if isinstance(work, HippoError):
                    lines.append(work)
                    continue
                row, request = work
                if isinstance(request, Exception):
                    lines.append(line_of(row, request, self._defaults))
                    continue
                asked.append(row)
                yield request

        if self._failure is not None:
            return _packed("line", [self._failure])
        answers = dict[int, Output | Exception](self._llm.as_completed(requests()))
        lines += [line_of(row, answers[index], self._defaults) for index, row in enumerate(asked)]
        return _packed("line", lines)

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit parts of it may be gone already
            self._llm.close()


def _enter(folder: str) -> None:
    """Relative paths are those of the command. A machine without its folder can still answer about URLs."""
    with suppress(OSError):
        os.chdir(folder)


def _packed(name: str, values: Sequence[Any]) -> pa.Table:
    """A column of values of any kind."""
    return pa.table({name: pa.array([pickle.dumps(value) for value in values], pa.large_binary())})


def _unpacked(table: pa.Table, name: str) -> Generator[Any]:
    for value in table[name]:
        yield pickle.loads(value.as_buffer())
