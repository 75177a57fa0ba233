"""Shared fixtures."""

import pytest
import torch
import transformers

import hippo

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _two_threads():
    """Two threads: what the project is measured with, and what leaves room for the draft's process."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny():
    """The bundled pair, loaded once."""
    with hippo.load("tiny") as llm:
        yield llm
