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


def test_close_ends_it_and_removes_the_copied_model():
    process = DraftProcess(model("qwen2_5_vl", 7, 1), "auto", "cpu", 1, 20.0)
    loaded = process.wait_loaded()
    assert loaded.vocabulary == 160 and loaded.bytes > 0 and process.alive
    copy = process._end.peek()[2][2]
    assert os.path.isdir(copy)
    process.close()
    assert not process.alive and not os.path.exists(copy)
    with pytest.raises(DraftLost):
        process.send("anything")
