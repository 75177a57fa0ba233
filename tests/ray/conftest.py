"""One small Ray cluster for all tests of this folder."""

import os

import pytest


@pytest.fixture(scope="session")
def cluster():
    """A cluster of two cores on this machine, which this process is a driver of."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'hippo-video[ray]'")
    # Nothing is sent or kept in the home folder, and no process is ended because others on the machine take memory.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0"}
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    yield ray
    ray.shutdown()
