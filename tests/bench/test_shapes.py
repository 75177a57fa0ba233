"""Shapes: what is published, and a small one run through the whole study."""

import pytest

from hippo.bench import shapes
from hippo.bench.commands.speed import table
from hippo.bench.speed import bench_shape
from hippo.errors import HippoError
from hippo.families import family_of

SMALL = shapes.Text(64, 96, 2, 4, 2, 152064)


VIDEO = [name for name, shape in shapes.SHAPES.items() if shape.request is not shapes.text_request]


@pytest.mark.parametrize("name", VIDEO)
def test_a_request_holds_the_video_tokens_asked_for(name):
    import torch

    shape = shapes.shape_named(name)
    with torch.device("meta"):
        target = shape.make(shape.target)
    request = shape.request(1000)
    prompt = family_of(target).prepare_prompt(target.config, request)
    assert 1000 <= len(prompt.video_at) < 1200 and len(prompt.question_at) >= shapes.WORDS
    billions = sum(parameter.numel() for parameter in target.parameters()) / 1e9
    size = name.split("+")[0].rsplit("-", 1)[1]
    assert billions == pytest.approx({"3b": 3.75, "7b": 8.2, "32b": 33.5}[size], rel=0.1)


def test_the_pair_that_is_published_is_there_with_its_draft():
    target, draft = (shapes.model_of_shape("qwen2.5-vl-7b+3b", role) for role in ("target", "draft"))
    billions = sum(parameter.numel() for parameter in draft.parameters()) / 1e9
    assert billions == pytest.approx(3.75, rel=0.1)
    assert target.config.vision_config.depth == draft.config.vision_config.depth == 32


def test_a_shape_is_measured_and_marked_synthetic(monkeypatch):
    small = shapes.Shape(shapes.qwen2_5_vl, shapes.qwen2_5_vl_request, SMALL, SMALL)
    vision = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2)
    monkeypatch.setattr(shapes, "QWEN_VISION", vision)
    monkeypatch.setitem(shapes.SHAPES, "small", small)
    result = bench_shape("small", 64, ["ar", "hippo"], 1, 12, 0.8, "auto", "cpu", lambda name, share: None)
    assert [row["method"] for row in result["rows"]] == ["generate", "ar", "hippo"]
    for row in result["rows"]:
        assert row["new_tokens"] == 12 and row["synthetic"] and row["identical"] is None
    # A draft as large as its target may be found not worth its time: then it is not used.
    assert result["rows"][1]["target_forwards"] == 11 >= result["rows"][2]["target_forwards"]


def test_a_shape_of_text_is_as_large_as_published_and_drafts_inline_where_it_is_large(monkeypatch):
    import torch

    shape = shapes.shape_named("qwen2.5-1.5b+0.5b")
    with torch.device("meta"):
        target = shape.make(shape.target)
    assert sum(parameter.numel() for parameter in target.parameters()) / 1e9 == pytest.approx(1.8, rel=0.05)
    assert shape.request(128)["input_ids"].shape == (1, 128)
    monkeypatch.setattr("hippo.draft.process.LARGE", 0)
    small = shapes.Shape(shapes.qwen2_5_text, shapes.text_request, SMALL, SMALL)
    monkeypatch.setitem(shapes.SHAPES, "small", small)
    methods = ["static", "assisted", "pearl", "sd", "serial+hippo", "hippo", "wrong-draft"]
    result = bench_shape("small", 64, methods, 1, 12, 0.8, 8, "cpu", lambda name, share: None)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["generate", "ar", *methods] and not result["steps"]
    assert rows["pearl"]["cannot_run"] == "a draft that works inline works in turns"
    assert "cannot be given a rate" in rows["assisted"]["cannot_run"] and rows["assisted"]["seconds"] is None
    assert rows["wrong-draft"]["acceptance_rate"] == 0 < rows["serial+hippo"]["acceptance_rate"]
    assert rows["static"]["new_tokens"] == 12 and result["machine"]["draft bits"] == 8
    text = table(result)
    assert "| pearl | cannot run: a draft that works inline works in turns |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_an_unknown_shape_is_refused():
    with pytest.raises(HippoError, match="unknown shape 'x'"):
        shapes.shape_named("x")
