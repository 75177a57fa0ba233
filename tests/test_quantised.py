"""Quantised targets: by the packages that are here, and by a stand-in that is always here."""

import copy
import json
import logging
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from transformers.quantizers import quantizer_bnb_4bit

import hippo
from hippo.checkpoints import BUNDLED, Checkpoint, load_target, quantisation_of
from hippo.cli.demo import CLIP
from hippo.draft.shared_vision import vision_fingerprint
from hippo.errors import HippoError
from hippo.families import family_of
from hippo.forward import why_not_fused
from hippo.llm import release
from hippo.pair import Draft, Pair
from hippo.params import METHODS
from hippo.report.difference import first_difference
from tests.drafts import draft
from tests.models import FAMILIES, generated, inputs, model

pytestmark = pytest.mark.usefixtures("patient_targets")

TARGET = BUNDLED / "tiny" / "target"


class Packed(nn.Module):
    """A linear layer whose weight is int8 with a scale for each row."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x):
        return nn.functional.linear(x, self.packed * self.scale, self.bias)


def packed(of):
    """A copy of a model with every projection of its text layers packed."""
    of = copy.deepcopy(of)
    for layer in family_of(of).language_model(of).layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, Packed(child))
    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_layers_keep_their_own_forward_and_the_words_are_generates(family):
    target, small, request = packed(model(family)), draft("other", family), inputs(family)
    expected = generated(target, request)
    assert why_not_fused(family_of(target).language_model(target))
    try:
        for method in METHODS:
            out = hippo.generate(target, small, request, method=method, gamma=4, max_new_tokens=24, keep_ratio=0.3)
            assert out.token_ids == expected and not out.stats.draft_lost and (method == "ar" or out.stats.checked > 0)
    finally:
        release(target)


def bitsandbytes(**bits):
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells every product's dtypes
    # On a CPU it needs rows of a multiple of 64, which this vision tower's are not; and a head tied to the embedding,
    # which it leaves out by itself unless it is told what to leave out.
    return BitsAndBytesConfig(**bits, llm_int8_skip_modules=["model.visual", "lm_head"])


def torchao(name):
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(getattr(quantization, name)())


def quanto():
    pytest.importorskip("optimum.quanto")
    return QuantoConfig(weights="int8")


KINDS = {
    "bitsandbytes, 4 bits": lambda: bitsandbytes(load_in_4bit=True),
    "bitsandbytes, 8 bits": lambda: bitsandbytes(load_in_8bit=True),
    "torchao, 8 bits": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao, 8 bits, activations too": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
    "quanto, 8 bits": quanto,
}


@pytest.fixture(params=KINDS)
def quantised(request):
    """(what it is, the bundled target quantised as it is loaded)."""
    config = KINDS[request.param]()
    return request.param, AutoModelForImageTextToText.from_pretrained(
        TARGET, quantization_config=config, dtype=torch.float32
    )


def require_own_words(kind, pair, inputs, expected, answers, record_property):
    """Every answer is generate()'s own, or parts from it at a near tie."""
    parted = [
        (method, first_difference(pair, inputs, expected, ids)) for method, ids in answers.items() if ids != expected
    ]
    said = [f"{method} at token {found['at']}, gap {found['gap']:.3g}" for method, found in parted]
    record_property("seen", f"{kind}: {len(answers) - len(parted)} of {len(answers)} identical; " + "; ".join(said))
    assert all(found["near_tie"] for _, found in parted), parted


def test_a_target_quantised_in_memory_says_its_own_words(quantised, tiny, record_property):
    kind, target = quantised
    small = AutoModelForImageTextToText.from_pretrained(BUNDLED / "tiny" / "draft", dtype=torch.float32)
    request = tiny.inputs(CLIP)
    assert quantisation_of(target) == kind.split(",")[0] and target.dtype == torch.float32
    assert "quantised" in why_not_fused(target.model.language_model)
    assert vision_fingerprint(family_of(target), target) == vision_fingerprint(family_of(target), target)
    expected = generated(target, request, max_new_tokens=32)
    assert expected != generated(tiny.pair.target, request, max_new_tokens=4)
    try:
        outs = {m: hippo.generate(target, small, request, method=m, gamma=4, max_new_tokens=32) for m in METHODS}
        assert not any(out.warnings for out in outs.values()) and outs["hippo"].stats.accepted > 10
        answers = {method: out.token_ids for method, out in outs.items()}
        require_own_words(kind, Pair(target, Draft(small)), request, expected, answers, record_property)
    finally:
        release(target)


def test_a_checkpoint_that_is_quantised_loads_as_it_is(quantised, tiny, tmp_path, record_property):
    kind, target = quantised
    if kind.startswith("quanto"):
        pytest.skip("transformers does not save these")
    target.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    with hippo.load(tmp_path, "tiny", device="cpu") as llm:
        assert quantisation_of(llm.pair.target) == kind.split(",")[0]
        request = llm.inputs(CLIP)
        expected = generated(llm.pair.target, request, max_new_tokens=16)
        answers = {m: llm.generate(CLIP, method=m, max_new_tokens=16).token_ids for m in METHODS}
        require_own_words(f"{kind}, loaded", llm.pair, request, expected, answers, record_property)


def test_a_package_that_quantised_weights_need_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda **_: False)
    folder = shutil.copytree(TARGET, tmp_path / "target")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(HippoError, match=r"needs a package that is not here .*(bitsandbytes|accelerate).*: install it"):
        load_target(Checkpoint(str(folder), "cpu", "auto"))
