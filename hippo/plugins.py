"""What users plug in by name: `MODULE:NAME`, or an entry point of an installed package."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, reduce
from importlib import import_module
from typing import Any

from hippo.errors import BadRequest, HippoError, unknown


def load(kind: str, name: str, known: Iterable[str] = ()) -> Any:
    """The object that a name stands for.

    kind: "pruner" or "drafter"; the group of its entry points is "hippo.pruners" or "hippo.drafters". known: the names
    that hippo has itself, for the hint. Raises BadRequest if there is none, or if its module cannot be imported.
    """
    module, separator, path = name.partition(":")
    try:
        if not separator:
            return _entry_point(kind, name, tuple(known))
        return reduce(getattr, path.split("."), import_module(module))
    except HippoError:
        raise
    except Exception as error:  # a module of others may raise anything while it is imported
        raise BadRequest(
            f"{kind} {name!r} does not load ({said(error)})", f"check its name and its package; a {kind} is MODULE:NAME"
        ) from error


@lru_cache  # reading the metadata of all packages takes milliseconds
def _entry_point(kind: str, name: str, known: tuple[str, ...]) -> Any:
    from importlib.metadata import entry_points

    points = {point.name: point for point in entry_points(group=f"hippo.{kind}s")}
    if name not in points:
        raise unknown(kind, name, (*known, *points), "MODULE:NAME")
    return points[name].load()


def name_of(plugin: Any) -> str:
    """What reports call a plug-in that was not given by name."""
    named = plugin if hasattr(plugin, "__qualname__") else type(plugin)
    return f"{named.__module__}:{named.__qualname__}"


def said(error: Exception) -> str:
    """An error of others' code in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
