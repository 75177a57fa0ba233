"""The draft's process: starting, failing to start, ending."""

import os

import pytest

from hippo.draft.process import DraftLost, DraftProcess
from hippo.errors import HippoError
from tests.models import model


def test_a_model_that_does_not_load_is_explained():
    process = DraftProcess("/nowhere", "auto", "cpu", 1, 20.0)
    with pytest.raises(HippoError, match="the draft model did not load"):
        process.wait_loaded()
    process.close()
    assert not process.alive


def test_a_copied_model_is_removed_and_close_ends_the_process():
    process = DraftProcess(model("qwen2_5_vl", 7, 1), "auto", "cpu", 1, 20.0)
    loaded = process.wait_loaded()
    assert loaded.vocabulary == 160 and process.alive
    assert not os.path.exists(process._copy), "gone as soon as it is loaded"
    process.close()
    assert not process.alive
    with pytest.raises(DraftLost):
        process.send("anything")
