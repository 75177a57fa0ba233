"""Shared fixtures."""

import pytest
import torch
import transformers

import hippo
from hippo.decode import Choice
from hippo.device import cores
from hippo.draft import Drafter

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def pytest_collection_modifyitems(items):
    """Ray leaves threads in the process, after which a draft is a fresh interpreter and no longer a fork."""
    items.sort(key=lambda item: "ray" in item.path.parts)


@pytest.fixture(autouse=True)
def _two_threads():
    """Two threads: what the project is measured with, and what leaves room for the draft's process."""
    torch.set_num_threads(min(2, cores()))


@pytest.fixture(scope="session")
def tiny():
    """The bundled pair, loaded once."""
    with hippo.load("tiny") as llm:
        yield llm


@pytest.fixture
def patient_targets(monkeypatch):
    """Test targets are so small that they would often be done before the draft has read its prompt, and so fast that a
    draft is not worth it: they wait for it, and each answer begins with it, so that every test really drafts."""
    ready = Drafter.ready

    def patient(self):
        while not self.lost and self._held is None and not self._ready:
            self._hear(wait=True)
        return ready(self)

    monkeypatch.setattr(Drafter, "ready", patient)
    monkeypatch.setattr(Choice, "_has_rested", True)
    monkeypatch.setattr(Choice, "_TRIALS", 1e9)  # it never rests, however busy the machine is


def pytest_terminal_summary(terminalreporter):
    """Show what tests saw, to be quoted: `record_property("seen", ...)`."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [value for report in reports for name, value in report.user_properties if name == "seen"]
    if lines:
        terminalreporter.section("seen")
        for line in lines:
            terminalreporter.line(line)
