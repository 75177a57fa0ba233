"""Rates: measured once, kept on disk, and never less for more tokens."""

import json

import pytest

from hippo.report import rates as module
from hippo.report.rates import Rates, rates


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Little is read, and what is kept is the test's own."""
    monkeypatch.setitem(module._BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(module, "_SIDE", 256)
    monkeypatch.setenv("HIPPO_STATE", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = module._measured
    measured.cache_clear()
    yield tmp_path / "hippo"
    measured.cache_clear()


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 16), ("bfloat16", 16), ("bfloat16", 8), ("bfloat16", 4)])
def test_more_tokens_never_take_less(dtype, bits):
    found = rates("cpu", dtype, bits)
    seconds = [found.at(width) for width in range(1, 10)]
    assert seconds == sorted(seconds) and 0 < seconds[0] < 1e-6 and 0 < found.operation < 1e-2


def test_between_measured_widths_and_beyond():
    line = Rates({1: 1.0, 2: 2.0, 4: 3.0, 8: 7.0}, 0.1)
    assert [line.at(width) for width in (1, 2, 3, 6, 8, 10)] == pytest.approx([1, 2, 2.5, 5, 7, 9])


def test_they_are_measured_once_and_kept(small, monkeypatch):
    found = rates("cpu", "float32")
    monkeypatch.setattr(module, "_measured", None)
    assert rates("cpu", "float32") == found
    (file,) = small.iterdir()
    kept = json.loads(file.read_text())
    for value in (None, {}, {"seconds": {}, "operation": 1e-6}, kept["value"] | {"operation": -1.0}):
        file.write_text(json.dumps(kept | {"value": value}))
        with pytest.raises(TypeError):  # measured again
            rates("cpu", "float32")


def test_a_gpus_packed_weights_are_read_byte_by_byte(monkeypatch):
    monkeypatch.setattr(module, "_kept", lambda value: Rates({1: 2e-12, 2: 2e-12, 4: 2e-12, 8: 2e-12}, 1e-6))
    assert rates("cuda:0", "bfloat16", 8).at(1) == pytest.approx(1e-12)
    assert rates("cuda:0", "bfloat16", 4).at(1) == pytest.approx(0.625e-12)
