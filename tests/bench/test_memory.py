"""Peak memory of a process and its children."""

import sys

import pytest

from hippo.bench.memory import peak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PSS is Linux's")
HOLD = "import time; held = b'x' * {}; time.sleep(0.4)"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"


def test_what_a_process_and_its_children_hold_is_counted():
    little, much = peak(["-c", HOLD.format(1)]), peak(["-c", HOLD.format(64 << 20)])
    through_a_child = peak(["-c", CHILD.format(HOLD.format(64 << 20))])
    assert 60 << 20 < much - little < 70 << 20
    assert through_a_child > much


def test_a_process_that_fails_has_no_peak():
    assert peak(["-c", "raise SystemExit(3)"]) is None
