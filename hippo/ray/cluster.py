"""Joining a Ray cluster, and what of it a job takes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import ray

from hippo.errors import BadRequest

_PATIENCE = 5.0  # seconds for an address to answer; ray.init itself waits for minutes


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Inside, this process is a driver of a cluster; it may be one already, and then stays one.

    address: "local" starts a cluster on this machine, for this process; "auto" finds the one that this machine is in;
    or its host:port. Raises BadRequest where nobody answers.
    """
    if ray.is_initialized():
        yield
        return
    found = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    if found not in ("auto", "local"):
        _require_answer(found)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody unless the user asks for it
    here: dict[str, Any] = {"include_dashboard": False} if found == "local" else {}
    try:
        ray.init(found, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (OSError, RuntimeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        hint = "start one with `ray start --head`, use --ray local, or set RAY_AUTH_MODE=token if it asks for a token"
        raise BadRequest(f"there is no Ray cluster at {address} ({cause})", hint) from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raises BadRequest."""
    if "://" in address:
        raise BadRequest(f"{address} is no host:port", "run this on a machine of the cluster, or with `ray job submit`")
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_PATIENCE)
        except grpc.FutureTimeoutError:
            hint = "check the address: `ray start --head` prints it"
            raise BadRequest(f"no Ray cluster answers at {address}", hint) from None


@dataclass(frozen=True)
class Layout:
    """What a job takes of a cluster. actors: pairs loaded, each with so many cpus and gpus. readers: processes that
    read videos at most, each with reader_cpus."""

    actors: int
    cpus: int
    gpus: float
    readers: int
    reader_cpus: int

    @classmethod
    def of(cls, machines: list[dict[str, float]], actors: int | None, gpus: float, device: str = "auto") -> Layout:
        """As many actors as are asked for, or one for each GPU, or one for each machine where there is none.

        machines: the resources of each, as Ray names them. gpus: of an actor, where the cluster has any and device
        does not say otherwise. Raises BadRequest for more than there is.
        """
        total = int(sum(one.get("CPU", 0) for one in machines))
        has_gpus = any(one.get("GPU", 0) for one in machines)
        if device == "cpu" or not has_gpus:
            gpus = 0.0
        if device not in ("auto", "cpu") and not gpus:
            raise BadRequest(f"no machine of the cluster has a GPU for --device {device}", "use --device cpu")
        if gpus:
            cpus, most = 1, sum(int(one.get("GPU", 0) / gpus) for one in machines)
            actors = actors or max(1, most)
        else:
            cores = [int(one["CPU"]) for one in machines if one.get("CPU", 0) >= 1] or [1]
            actors = actors or len(cores)
            cpus = max(1, (min(cores) - 1) // math.ceil(actors / len(cores)))  # one of a machine's is for reading
            most = sum(core // cpus for core in cores)
        if actors > most:
            each = f"{gpus:g} GPUs" if gpus else f"{cpus} cores"
            raise BadRequest(
                f"{actors} actors with {each} each do not fit: the cluster has room for {most}", "ask less"
            )
        left = total - actors * cpus
        return cls(actors, cpus, gpus, max(1, left), min(1, max(0, left)))


def machines() -> list[dict[str, float]]:
    """The resources of each machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
