"""hippo models: every family of the registry, as its card has it."""

import json

import pytest

from hippo.cli.models import models
from hippo.families import FAMILIES


def test_json_has_a_row_for_each_family(capsys):
    models(json=True)
    listed = json.loads(capsys.readouterr().out)
    assert "not measured" in listed["memory"] and "released checkpoint" in listed["not run"]
    assert [row["family"] for row in listed["families"]] == [family.card.name for family in FAMILIES]
    for row, family in zip(listed["families"], FAMILIES, strict=True):
        assert row["model_types"] == list(family.model_types) and row["notes"] == list(family.card.notes)
        assert "equal to generate() in float32; in bfloat16 too, but for near ties" in row["run"][0]
        assert (len(row["run"]) > 1) == ("qwen2_5_vl" in family.model_types), "the bundled pair's family"
        for pair, (target, draft) in zip(row["pairs"], family.card.pairs, strict=True):
            assert (pair["target"]["id"], pair["draft"]["id"]) == (target.id, draft.id)
            assert pair["gib"] == pytest.approx(2e9 * (target.billions + draft.billions) / 2**30, abs=0.06)


def test_the_table_goes_to_stderr_with_every_id_whole(capsys):
    models()
    out, table = capsys.readouterr()
    assert out == ""
    for family in FAMILIES:
        assert family.card.name in table
        assert all(checkpoint.id in table for pair in family.card.pairs for checkpoint in pair)
