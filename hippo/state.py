"""What is known of this machine and of pairs on it, kept on disk from one process to the next.

One small JSON file for each fact, in `hippo` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache). A file counts
only on the machine and with the versions that wrote it. Nothing here raises: what cannot be read is not known, and what
cannot be written is measured again. HIPPO_STATE=off turns it off.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hippo import __version__
from hippo.device import cores

_LARGEST = 1 << 20  # bytes of a file that may be ours


def folder() -> Path | None:
    """Where the files are; None if nothing is kept."""
    if os.environ.get("HIPPO_STATE", "").lower() in ("off", "0", "no", "false"):
        return None
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # there is no home
        return None
    return Path(home) / "hippo"


def read(kind: str, of: dict[str, Any]) -> Any:
    """What was kept of a kind for these names and values, as JSON has it; None if nothing was, or by another machine or
    version."""
    if (place := folder()) is None:
        return None
    key = _key(of)
    with suppress(OSError, ValueError, RecursionError):
        file = _file(place, kind, key)
        if file.stat().st_size <= _LARGEST:
            kept = json.loads(file.read_text())
            return kept["value"] if isinstance(kept, dict) and kept.get("key") == key and "value" in kept else None
    return None


def write(kind: str, of: dict[str, Any], value: Any) -> bool:
    """Keep a value for `read`, whole or not at all. Returns whether it was written."""
    if (place := folder()) is None:
        return False
    key = _key(of)
    unfinished = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place, suffix=".part", delete=False) as file:
            unfinished = file.name
            json.dump({"key": key, "value": value}, file)
        os.replace(unfinished, _file(place, kind, key))
    except (OSError, ValueError, TypeError):
        if unfinished is not None:
            with suppress(OSError):
                os.unlink(unfinished)
        return False
    return True


@cache
def machine() -> dict[str, Any]:
    """What measurements depend on: the processors, their number, and the versions of hippo and torch."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu(), "cores": cores(), "gpus": gpus, "hippo": __version__, "torch": torch.__version__}


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _key(of: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(machine() | of))  # as it is read back


def _file(place: Path, kind: str, key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return place / f"{kind}-{digest}.json"
