"""Predictions: sizes by configuration, speeds by the scheduler's formulas, memory."""

import json
import shutil

import pytest

from hippo.bench.shapes import model_of_shape
from hippo.checkpoints import BUNDLED
from hippo.decode.costs import Costs, in_turns_speed
from hippo.errors import HippoError
from hippo.report import plan as module
from hippo.report.plan import Sizes, plan, sizes_of, sizes_of_model
from hippo.report.rates import Rates
from tests.models import FAMILIES, model

TARGET, DRAFT = BUNDLED / "tiny" / "target", BUNDLED / "tiny" / "draft"
BIG, SMALL = (Sizes(name, size, size // 10, 28, 1000) for name, size in (("big", 10**9), ("small", 10**8)))
FREE = 64 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One that reads a number of a weight in 100 ps, in 8 and 4 bits in 50 and 30, and has no products of tiles."""
    fast = {16: 1e-10, 8: 5e-11, 4: 3e-11}
    monkeypatch.setattr(
        module, "rates", lambda device, dtype, bits=16: Rates({1: fast[bits], 2: fast[bits], 8: 2 * fast[bits]}, 0.0)
    )
    monkeypatch.setattr(module, "free_width", lambda dtype, device: 0)
    monkeypatch.setattr(module, "free_memory", lambda device: FREE)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_of_a_model_are_all_its_weights(family):
    net = model(family)
    sizes = sizes_of_model(net, "x")
    every = sum(parameter.numel() for parameter in net.parameters())
    assert 0 < sizes.read <= every and sizes.rest <= every and sizes.cache > 0
    if family != "qwen3_vl_moe":
        assert sizes.read + sizes.rest == every
        assert sizes.weight_bytes("float32") == 4 * every


def test_of_experts_only_those_asked_are_read():
    net = model("qwen3_vl_moe")
    config = net.config.get_text_config()
    experts = sum(p.numel() for n, p in net.named_parameters() if ".experts." in n)
    every = sum(p.numel() for p in net.parameters())
    outside = every - sizes_of_model(net, "x").read
    assert outside > experts * (1 - config.num_experts_per_tok / config.num_experts) > 0


def test_sizes_come_from_a_configuration_alone(tmp_path):
    shutil.copy(TARGET / "config.json", tmp_path)
    sizes = sizes_of(str(tmp_path))
    whole = sizes_of(str(TARGET))
    assert (sizes.read, sizes.rest, sizes.cache, sizes.stored) == (whole.read, whole.rest, whole.cache, 0)
    stored = sum(file.stat().st_size for file in TARGET.glob("*.safetensors"))
    assert sizes.weight_bytes("bfloat16") == pytest.approx(stored, rel=0.02) and sizes.dtype == "float32"


def test_a_quantised_checkpoint_has_the_bytes_of_its_index(tmp_path):
    settings = json.loads((TARGET / "config.json").read_text())
    quantised = settings | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 5_000_000}}))
    sizes = sizes_of(str(tmp_path))
    assert sizes.stored == sizes.weight_bytes("bfloat16") == 5_000_000
    assert plan(sizes, sizes_of(str(DRAFT))).target_seconds[1] < plan(sizes_of(str(TARGET)), None).target_seconds[1]
    assert list(plan(sizes_of(str(TARGET)), sizes).draft_seconds) == [16], "it is packed already"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "no configuration of .*hf download"),
        ("{", "no configuration"),
        ({"model_type": "qwen2"}, "no video-LLMs"),
        ({"model_type": "qwen2_5_vl", "text_config": {"hidden_size": "wide"}}, "makes no model"),
    ],
)
def test_what_has_no_usable_configuration(tmp_path, settings, words):
    if settings is not None:
        (tmp_path / "config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    with pytest.raises(HippoError, match=words) as error:
        sizes_of(str(tmp_path) if settings is not None else "nobody/nothing")
    assert "\n" not in str(error.value)


def test_seconds_are_those_of_the_bytes_read():
    result = plan(BIG, SMALL, context=1, keep_ratio=1, device="cpu", dtype="float32", draft_worker="inline")
    assert result.target_seconds[1] == pytest.approx(0.1, rel=1e-4)
    assert result.target_seconds[8] == pytest.approx(0.2, rel=1e-4)
    assert result.draft_seconds == pytest.approx({16: 0.01, 8: 0.005, 4: 0.003}, rel=1e-4)
    longer = plan(BIG, SMALL, context=10**6, device="cpu", dtype="float32", draft_worker="inline")
    assert longer.target_seconds[1] == pytest.approx(0.1 + 1000 * 10**6 * 1e-10)
    assert longer.draft_seconds[16] == pytest.approx(0.01 + 1000 * 10**5 * 1e-10), "it sees a tenth"


def test_speeds_are_those_of_the_scheduler():
    result = plan(BIG, SMALL, context=1, device="cpu", dtype="float32", draft_worker="inline", acceptances=(0.6, 0.9))
    costs = Costs()
    for width, seconds in result.target_seconds.items():
        costs.saw_target(width, seconds, both=False)
    costs.saw_draft(result.draft_seconds[4], both=False)
    for choice in result.choices:
        speed, gamma = in_turns_speed(costs, [choice.acceptance])
        assert result.bits == 4 and choice.gamma == gamma and choice.parallel is None and choice.best == "in turns"
        assert choice.in_turns == choice.speed == pytest.approx(speed * result.target_seconds[1])
    assert str(result.choices[1]).startswith(f"in turns, {gamma} tokens, about ")
    assert result.sentence.startswith("with this pair on this machine: in turns, ")


def test_two_models_that_read_one_memory_gain_nothing_by_working_at_once():
    here = plan(BIG, SMALL, device="cpu", dtype="float32", draft_worker="thread")
    assert all(choice.parallel < choice.in_turns and choice.best == "in turns" for choice in here.choices)
    assert here.place == "thread" and plan(BIG, SMALL, device="cpu").place == "inline"


def test_a_device_each_hides_the_drafts_time(monkeypatch):
    monkeypatch.setattr(module, "_places", lambda *_: ("cuda:0", "cuda:1"))
    apart = plan(BIG, SMALL, acceptances=(0.9,))
    assert apart.place == "process" and apart.bits == 16 and apart.dtypes == ("bfloat16", "bfloat16")
    assert apart.choices[0].best == "parallel" and "parallel, " in apart.sentence and len(apart.memory) == 2


def test_padded_forwards_bound_how_far_is_drafted(monkeypatch):
    monkeypatch.setattr(module, "free_width", lambda dtype, device: 8)
    result = plan(BIG, SMALL, device="cpu", dtype="bfloat16", acceptances=(0.95,))
    assert result.choices[0].gamma == 7


def test_a_draft_as_dear_as_its_target_is_not_used():
    result = plan(BIG, BIG, device="cpu", dtype="float32", draft_bits=16, acceptances=(0.3,))
    assert result.choices[0].best == "plain" and result.choices[0].speed == 1
    assert result.sentence.endswith("plain decoding, nothing is faster at acceptance 0.3")


def test_a_quantised_target_cannot_draft_for_itself():
    with pytest.raises(HippoError, match="packed is quantised already"):
        plan(Sizes("packed", 10**9, 10**8, 28, 1000, stored=10**9), None, device="cpu")


def test_a_target_drafts_for_itself_in_four_bits():
    result = plan(BIG, None, device="cpu", dtype="float32")
    assert result.bits == 4 and result.draft is BIG and result.draft_seconds[4] < result.target_seconds[1] / 3


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (5_000_000_000, ""),
        (4_600_000_000, "a draft in 8 bits fits: use --draft-bits 8"),
        (4_450_000_000, "0.0 GiB are left for a draft: use a smaller one"),
        (1_000_000_000, "not even the target fits"),
    ],
)
def test_what_would_fit_is_said(monkeypatch, free, words):
    monkeypatch.setattr(module, "free_memory", lambda device: free)
    result = plan(BIG, SMALL, context=1, device="cpu", dtype="float32", draft_bits=16)
    assert words in result.short and result.as_dict()["fits"] == (not words) == (not result.short)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"acceptances": (1.0,)}, "not in"),
        ({"acceptances": ()}, "not in"),
        ({"dtype": "float12"}, "unknown dtype"),
        ({"draft_bits": 5}, "draft_bits 5"),
        ({"draft_worker": "here"}, "unknown place"),
        ({"device": "cuda:99"}, "no device"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(HippoError, match=words):
        plan(BIG, SMALL, **options)


def test_a_shape_needs_no_weights():
    sizes = sizes_of_model(model_of_shape("qwen2.5-vl-7b", "target"), "shape")
    assert (sizes.read + sizes.rest) / 1e9 == pytest.approx(8.29, rel=0.01) and sizes.cache == 2 * 28 * 4 * 128
