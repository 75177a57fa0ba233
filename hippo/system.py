"""Memory of this machine and limits of this process, known without torch."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = 1 << 62  # bytes


def available_memory() -> int:
    """Bytes of this machine that can still be allocated; UNKNOWN where there is no /proc/meminfo."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return UNKNOWN
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), UNKNOWN)


def memory_limit() -> int:
    """Bytes of its own that this process may allocate (`ulimit -d`); UNKNOWN without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return UNKNOWN
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return UNKNOWN if limit == resource.RLIM_INFINITY else limit
