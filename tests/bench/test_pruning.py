"""The study of pruners: its figures by hand, and a small one from end to end."""

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hippo.bench import pruning
from hippo.bench.pruning import Sample, edge_excess, ground, interval, mixes, requests, study, summary
from hippo.bench.world import KINDS, film
from hippo.cli.app import app
from hippo.families import VideoGrid
from hippo.pruning import RATIOS

CLIP = Path("hippo/bundled/demo.mp4")


def sample(seed, pruner, value, ratio=0.1, kind="plain"):
    return Sample(
        seed, kind, "question", pruner, ratio, 20, 512, value, 0.5, 1.0, 0.5, 0.0, 0.0, 0.01, {"tiny": value / 2}
    )


def test_each_clip_is_described_and_asked_about_an_object_and_kinds_take_turns():
    asked = list(requests(50000, 4, ("plain", "crowd")))
    assert [(one.seed, one.kind, one.prompt_kind) for one in asked] == [
        (50000 + i // 2, ("plain", "crowd")[i // 2 % 2], ("description", "question")[i % 2]) for i in range(8)
    ]
    assert all(one.prompt == film(one.kind, one.seed).question for one in asked[1::2])


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


@pytest.mark.parametrize("kind", KINDS)
def test_ground_is_where_nothing_shows(kind):
    made, grid = film(kind, 50001), VideoGrid(3, 8, 8)
    times = [0.0, 0.1, 0.4, 0.5, 0.9, 1.0]
    bare = ground(made.shown, times, grid).view(3, 8, 8)
    for number, time in enumerate(times):
        for left, top, right, bottom in made.shown(time):
            x, y = (left + right) / 2, (top + bottom) / 2
            if 0 <= x < 1 and 0 <= y < 1:
                assert not bare[number // 2, int(y * 8), int(x * 8)]
    assert 0.2 < bare.float().mean() <= 1


def test_an_interval_holds_the_mean_and_narrows():
    wide, narrow = interval([0.0, 1.0] * 5), interval([0.0, 1.0] * 500)
    assert wide[0] == narrow[0] == 0.5 and wide[1] < narrow[1] < 0.5 < narrow[2] < wide[2]


def test_pairs_are_of_the_same_clip():
    samples = [
        sample(seed, pruner, seed + plus, kind=("plain", "cut")[seed > 5])
        for seed in (1, 5, 9)
        for pruner, plus in (("hippo", 2), ("random", 0))
    ]
    samples += [sample(seed, "none", 10.0, 1.0) for seed in (1, 5, 9)]
    samples += [sample(seed, "auto for tiny", 7.0, ratio) for seed, ratio in ((1, 0.1), (5, 0.2), (9, 0.5))]
    result = summary(samples)
    won = {row["pruner"]: row for row in result["paired"]}
    assert won["random"]["hippo_minus"] == won["random"]["low"] == won["random"]["high"] == 2
    assert won["none"]["hippo_minus"] == -3 and won["none"]["keep_ratio"] == 0.1
    rows = {row["pruner"]: row for row in result["rows"]}
    assert rows["random"]["tokens_per_target_forward"] == 5 and rows["random"]["seconds"] == {"tiny": 2.5}
    assert rows["auto for tiny"]["clips"] == 3 and rows["auto for tiny"]["keep_ratio"] == pytest.approx(0.8 / 3)
    kinds = {(row["kind"], row["pruner"]): row for row in result["kinds"]}
    assert kinds["cut", "random"]["clips"] == 1 and kinds["cut", "random"]["tokens_per_target_forward"] == 9
    assert kinds["plain", "random"]["hippo_minus"] == 2


@pytest.fixture(scope="module")
def seen(tiny):
    """A small study with everything in it."""
    names = ["none", "blind", "uniform", "hippo", "oracle", "auto", "rescored"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "ORACLE_STEPS", 3)
        return [one for some in study(tiny, requests(50000, 2, ("plain", "pan")), names, [0.05], 8) for one in some]


def test_a_draft_that_sees_everything_overlaps_more_than_a_blind_one(seen):
    assert all(math.isfinite(s.overlap) and 0 < s.overlap <= 1 for s in seen)
    overlap = {name: sum(s.overlap for s in seen if s.pruner == name) for name in ("none", "blind")}
    assert overlap["none"] > overlap["blind"]


def test_the_oracle_is_at_least_as_good_as_what_it_starts_from(seen):
    by = {(s.pruner, s.seed, s.prompt_kind): s.tokens_per_target_forward for s in seen}
    for name, *request in by:
        if name in ("uniform", "hippo"):
            assert by["oracle", *request] >= by[name, *request], name


def test_every_choice_has_predicted_seconds_and_auto_one_row_for_each_pair(seen):
    assert all(len(s.seconds) == 2 and min(s.seconds.values()) > 0 for s in seen)
    autos = {s.pruner for s in seen if s.pruner.startswith("auto")}
    assert autos == {"auto for tiny", f"auto for {pruning.SHAPE}"}
    assert {s.keep_ratio for s in seen if s.pruner.startswith("auto")} <= set(RATIOS)


def test_real_clips_are_described_and_mixed(tiny):
    asked = list(mixes([CLIP], 2))
    assert [one.kind for one in asked] == ["real", "part", "mirrored"]
    (some,) = study(tiny, mixes([CLIP], 0), ["none", "hippo"], [0.1], 8, frames=4)
    assert [one.pruner for one in some] == ["none", "hippo"] and some[0].ground_edge_excess == some[0].edge_excess


def test_the_command_writes_samples_tables_and_plots(tmp_path):
    options = [
        "--clips",
        "2",
        "--pruners",
        "hippo,uniform",
        "--kinds",
        "plain,text",
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
    text = (tmp_path / "o" / "tables.md").read_text()
    assert len(lines) == 8 and "| uniform | 0.1 |" in text and "| text | uniform | 0.1 |" in text
    for name in ("accepted.png", "edges.png"):
        assert (tmp_path / "o" / name).read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_kind_of_clip_is_named():
    result = CliRunner().invoke(app, ["bench", "pruning", "--kinds", "rain"])
    assert result.exit_code != 0 and "rain" in str(result.exception)
