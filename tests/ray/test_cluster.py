"""A cluster is found or refused in one line, and a job takes no more of it than there is."""

import socket

import pytest

from hippo.errors import BadRequest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'hippo-video[ray]'")

from hippo.ray.cluster import Layout, connected

CPUS, GPUS = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("machines", "actors", "gpus", "device", "expected"),
    [
        ([{"CPU": 1.0}], None, 1.0, "auto", Layout(1, 1, 0, 1, 0)),
        ([{"CPU": 2.0}], None, 1.0, "auto", Layout(1, 1, 0, 1, 1)),
        ([CPUS, CPUS, {"memory": 1.0}], None, 1.0, "auto", Layout(2, 7, 0, 2, 1)),
        ([CPUS, CPUS], 4, 1.0, "auto", Layout(4, 3, 0, 4, 1)),
        ([CPUS, GPUS, GPUS], None, 1.0, "auto", Layout(8, 1, 1.0, 32, 1)),
        ([GPUS], None, 2.0, "cuda", Layout(2, 1, 2.0, 14, 1)),
        ([GPUS], None, 0.5, "auto", Layout(8, 1, 0.5, 8, 1)),
        ([GPUS], None, 1.0, "cpu", Layout(1, 15, 0, 1, 1)),
    ],
)
def test_a_layout_by_what_there_is(machines, actors, gpus, device, expected):
    assert Layout.of(machines, actors, gpus, device) == expected


@pytest.mark.parametrize(
    ("machines", "actors", "gpus", "device", "message"),
    [
        ([CPUS], 9, 1.0, "auto", "room for 8"),
        ([GPUS], 5, 1.0, "auto", "room for 4"),
        ([GPUS], None, 8.0, "auto", "8 GPUs each do not fit"),
        ([CPUS], None, 1.0, "cuda", "no machine of the cluster has a GPU"),
    ],
)
def test_more_than_there_is_is_refused(machines, actors, gpus, device, message):
    with pytest.raises(BadRequest, match=message):
        Layout.of(machines, actors, gpus, device)


@pytest.fixture
def alone(monkeypatch):
    """This process is no driver yet, whichever test ran before."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", None)


def test_an_address_that_nobody_answers_is_one_line(alone, monkeypatch):
    monkeypatch.setattr("hippo.ray.cluster._PATIENCE", 0.5)
    with socket.socket() as silent:  # takes connections and says nothing, as a service that is no Ray
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BadRequest, match=address), connected(address):
            pass
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(BadRequest, match=address), connected("auto"):
            pass


def test_ray_client_is_not_for_jobs(alone):
    with pytest.raises(BadRequest, match="ray job submit"), connected("ray://127.0.0.1:10001"):
        pass


def test_no_cluster_here_is_one_line(alone, monkeypatch):
    def nobody(*_, **__):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify one")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", nobody)
    with pytest.raises(BadRequest, match="there is no Ray cluster at auto") as caught, connected("auto"):
        pass
    assert "\n" not in str(caught.value)
