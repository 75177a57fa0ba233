"""What is free is less than what there is, and shrinks when some is taken."""

from pathlib import Path

import numpy as np
import pytest

from hippo.memory import free_memory


def test_free_memory_shrinks_when_some_is_taken():
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc/meminfo here")
    before = free_memory()
    taken = np.ones(600 << 17)  # 600 MiB
    assert 1 << 20 < free_memory() < before - (300 << 20) and taken.any()
