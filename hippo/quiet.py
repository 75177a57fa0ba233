"""Keeps transformers' notes and progress bars off the terminal while hippo loads and prepares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers prints errors only, unless its verbosity was raised above the default."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if level >= logging.WARNING:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
