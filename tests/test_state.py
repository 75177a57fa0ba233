"""What is kept on disk: read back on the same machine alone, and never in the way of an answer."""

import json
import os

import pytest

import hippo
from hippo import state
from hippo.cli.demo import CLIP
from hippo.decode import Costs

KEY, VALUE = {"source": "x", "bits": 4}, {"costs": [1, 2.5]}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("HIPPO_STATE", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hippo"


def test_what_is_written_is_read_by_its_own_key():
    assert state.read("pair", KEY) is None
    assert state.write("pair", KEY, VALUE) and state.read("pair", KEY) == VALUE
    assert state.read("pair", KEY | {"bits": 8}) is None and state.read("other", KEY) is None
    assert state.write("pair", KEY, 3) and state.read("pair", KEY) == 3


def test_off_reads_and_writes_nothing(home, monkeypatch):
    assert state.write("pair", KEY, VALUE)
    monkeypatch.setenv("HIPPO_STATE", "off")
    assert state.read("pair", KEY) is None and not state.write("pair", {}, VALUE)
    assert len(list(home.iterdir())) == 1


@pytest.mark.parametrize("changed", [{"cpu": "another"}, {"hippo": "9.9"}, {"torch": "9.9"}, {"gpus": ["one"]}])
def test_another_machine_or_version_is_not_known(home, monkeypatch, changed):
    state.write("pair", KEY, VALUE)
    (file,) = home.iterdir()
    here = state.machine()
    monkeypatch.setattr(state, "machine", lambda: here | changed)
    assert state.read("pair", KEY) is None
    # Nor is a file of that machine under this one's name.
    state.write("pair", KEY, "theirs")
    (theirs,) = set(home.iterdir()) - {file}
    os.replace(theirs, file)
    monkeypatch.setattr(state, "machine", lambda: here)
    assert state.read("pair", KEY) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"key": 1}', "\x00\xff", "[" * 100_000, "9" * (2 << 20)])
def test_a_damaged_file_is_not_known_and_is_replaced(home, content):
    state.write("pair", KEY, VALUE)
    (file,) = home.iterdir()
    file.write_text(content)
    assert state.read("pair", KEY) is None
    assert state.write("pair", KEY, VALUE) and state.read("pair", KEY) == VALUE


def test_a_disk_that_takes_nothing_leaves_nothing(home, monkeypatch):
    home.parent.joinpath("hippo").write_text("a file where the folder should be")
    assert not state.write("pair", KEY, VALUE) and state.read("pair", KEY) is None
    home.unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    assert not state.write("pair", KEY, VALUE) and not list(home.iterdir()), "no half file is left"
    monkeypatch.setattr(json, "dump", lambda *_: None)
    monkeypatch.setattr(os, "replace", full)
    assert not state.write("pair", KEY, VALUE) and not list(home.iterdir())


def test_without_a_home_nothing_is_kept(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(state.Path, "home", homeless)
    assert state.folder() is None and not state.write("pair", KEY, VALUE)


def test_costs_survive_the_disk_and_nonsense_does_not():
    costs = Costs()
    costs.saw_target(1, 0.2, both=False)
    costs.saw_target(5, 0.25, both=True)
    costs.saw_draft(0.05, both=False)
    costs.serve(8)
    costs.saw_target(2.5, 0.7, both=False)
    costs.in_groups.saw_draft(0.3, both=True)
    again = Costs.of_dict(json.loads(json.dumps(costs.as_dict())))
    for size in (8, 1):
        costs.serve(size)
        again.serve(size)
        assert again.target(False) == costs.target(False) and again.draft(False) == costs.draft(False)
        assert again.in_groups.draft(True) == costs.in_groups.draft(True)
    assert again.as_dict() == costs.as_dict()
    nothing = {"target": {}, "draft": []}
    for bad in (
        None,
        [],
        {},
        {"batches": {}},
        {"batches": {"1": {"alone": nothing}}, "prompts": []},
        *(
            {"batches": {batch: {"alone": nothing | wrong, "beside": nothing}}, "prompts": []}
            for batch, wrong in (
                ("0", {}),
                ("x", {}),
                ("1", {"draft": [float("nan")]}),
                ("1", {"draft": ["x"]}),
                ("1", {"draft": [-1.0]}),
                ("1", {"target": {"0": [1.0]}}),
                ("1", {"target": {"x": [1.0]}}),
            )
        ),
        {"batches": {}, "prompts": [], "in_groups": {}},
    ):
        with pytest.raises(ValueError, match="not the costs"):
            Costs.of_dict(bad)


def test_a_pair_remembers_what_it_measured(home):
    with hippo.load("tiny") as llm:
        assert not llm.pair.draft.costs.known(both=True)
        words = llm.generate(CLIP, max_new_tokens=40).token_ids
        measured = llm.pair.draft.costs.as_dict()
    (file,) = home.iterdir()
    with hippo.load("tiny") as llm:
        assert llm.pair.draft.costs.as_dict() == measured
        assert llm.generate(CLIP, max_new_tokens=40).token_ids == words
    kept = json.loads(file.read_text())
    for value in ({"costs": {}, "acceptance": 0.5}, {"acceptance": 2}, kept["value"] | {"acceptance": "x"}, 7):
        file.write_text(json.dumps(kept | {"value": value}))
        with hippo.load("tiny", start_draft=False) as llm:
            assert not llm.pair.draft.costs.known(both=True) and llm.pair.draft.acceptance == 0.8
