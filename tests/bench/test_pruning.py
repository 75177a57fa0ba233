"""The study of pruners: its figures by hand, and a small one from end to end."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from hippo.bench import pruning
from hippo.bench.pruning import Sample, edge_excess, ground, interval, requests, study, summary
from hippo.bench.world import make_scene
from hippo.cli.app import app
from hippo.families import VideoGrid


def sample(seed, pruner, value, ratio=0.1):
    return Sample(seed, "question", pruner, ratio, 20, value, 0.5, 1.0, 0.5, 0.0, 0.0, 0.01)


def test_each_clip_is_described_and_asked_about_an_object():
    asked = list(requests(50000, 5))
    assert [(seed, kind) for seed, kind, _ in asked] == [
        (50000 + i // 2, ("description", "question")[i % 2]) for i in range(10)
    ]
    for seed, kind, prompt in asked:
        if kind == "question":
            assert any(thing.shape in prompt for thing in make_scene(seed).things)


def test_edge_excess():
    grid = VideoGrid(4, 4, 4)
    assert edge_excess(torch.arange(64), grid) == pytest.approx(0) == edge_excess(torch.arange(0), grid)
    inside = [16 * frame + 4 * row + column for frame in (1, 2) for row in (1, 2) for column in (1, 2)]
    assert edge_excess(torch.tensor(inside), grid) == -1
    assert edge_excess(torch.arange(16), grid) == pytest.approx(64 / 56 - 1)


def test_edge_excess_among_some_places():
    grid = VideoGrid(4, 4, 4)
    middle = torch.zeros(4, 4, 4, dtype=torch.bool)
    middle[1:3, 1:3] = True  # eight of these sixteen are at a frame's edge
    among = middle.flatten()
    assert edge_excess(among.nonzero()[:, 0], grid, among) == 0
    inner = torch.tensor([16 + 5, 0, 3])  # the last two are not among them
    assert edge_excess(inner, grid, among) == -1


def test_ground_is_where_no_object_shows():
    scene, grid = make_scene(50000), VideoGrid(3, 8, 8)
    times = [0.0, 0.1, 0.4, 0.5, 0.9, 1.0]
    bare = ground(scene, times, grid).view(3, 8, 8)
    for number, time in enumerate(times):
        for look in (thing.look(time) for thing in scene.things):
            if look.visible:
                assert not bare[number // 2, min(7, int(look.y * 8)), min(7, int(look.x * 8))]
    assert 0.3 < bare.float().mean() < 1


def test_an_interval_holds_the_mean_and_narrows():
    wide, narrow = interval([0.0, 1.0] * 5), interval([0.0, 1.0] * 500)
    assert wide[0] == narrow[0] == 0.5 and wide[1] < narrow[1] < 0.5 < narrow[2] < wide[2]


def test_pairs_are_of_the_same_clip():
    samples = [
        sample(seed, pruner, seed + plus) for seed in (1, 5, 9) for pruner, plus in (("hippo", 2), ("random", 0))
    ]
    samples += [sample(seed, "none", 10.0, 1.0) for seed in (1, 5, 9)]
    result = summary(samples)
    won = {row["pruner"]: row for row in result["paired"]}
    assert won["random"]["hippo_minus"] == won["random"]["low"] == won["random"]["high"] == 2
    assert won["none"]["hippo_minus"] == -3 and won["none"]["keep_ratio"] == 0.1
    assert {row["pruner"]: row["tokens_per_target_forward"] for row in result["rows"]}["random"] == 5


def test_a_draft_that_sees_everything_overlaps_more_than_a_blind_one(tiny):
    seen = list(study(tiny, (50000, 2), ["none", "blind"], [0.1], 8))
    assert len(seen) == 8 and all(math.isfinite(s.overlap) and 0 < s.overlap <= 1 for s in seen)
    overlap = {name: sum(s.overlap for s in seen if s.pruner == name) for name in ("none", "blind")}
    assert overlap["none"] > overlap["blind"]


def test_the_oracle_is_at_least_as_good_as_what_it_starts_from(tiny, monkeypatch):
    monkeypatch.setattr(pruning, "ORACLE_STEPS", 3)
    seen = list(study(tiny, (50000, 2), ["uniform", "hippo", "oracle"], [0.05], 8))
    by = {(s.pruner, s.seed, s.prompt_kind): s.tokens_per_target_forward for s in seen}
    for (pruner, *request), value in by.items():
        assert by["oracle", *request] >= value, pruner


def test_the_command_writes_samples_tables_and_plots(tmp_path):
    options = [
        "--clips",
        "2",
        "--pruners",
        "hippo,uniform",
        "--keep-ratio",
        "0.1",
        "--json",
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(app, ["bench", "pruning", "--first-seed", "50000", *options])
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert {row["pruner"] for row in printed["rows"]} == {"hippo", "uniform"}
    assert {(row["pruner"], row["prompt_kind"]) for row in printed["paired"]} == {
        ("uniform", "description"), ("uniform", "question"),
    }  # fmt: skip
    lines = (tmp_path / "o" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 8 and "| uniform | 0.1 |" in (tmp_path / "o" / "tables.md").read_text()
    for name in ("accepted.png", "edges.png"):
        assert (tmp_path / "o" / name).read_bytes()[:4] == b"\x89PNG"
