"""Shared fixtures."""

import pytest
import torch
import transformers

import hippo
from tests.models import model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _two_threads():
    """Two threads: what the project is measured with, and what leaves room for the draft's process."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _no_draft_is_left():
    """Whatever a test did, no draft process outlives the session."""
    yield
    for _, pair in list(hippo.llm._pairs.values()):
        pair.close()


@pytest.fixture(scope="session")
def tiny():
    """The bundled pair, loaded once."""
    with hippo.load("tiny") as llm:
        yield llm


@pytest.fixture
def drafts():
    """Draft kinds by name: another model, the target itself (nothing rejected), none of whose tokens is ever right."""
    return lambda family: {"other": model(family, 7, 1), "same": model(family, 0, 3)}
