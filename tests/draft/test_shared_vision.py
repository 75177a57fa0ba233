"""Which models share a vision tower, and what the target sends a draft that does."""

import copy
from types import SimpleNamespace

import pytest
import torch

from hippo.draft import shared_vision
from hippo.draft.shared_vision import kept_prompt, vision_fingerprint
from hippo.families import family_of
from tests.models import FAMILIES, IMAGE, VIDEO, inputs, model, with_image


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_same_vision_tower_has_the_same_fingerprint(name):
    target = model(name)
    family = family_of(target)
    words, tower, projector = copy.deepcopy(target), copy.deepcopy(target), copy.deepcopy(target)
    words.get_output_embeddings().weight.data.neg_()
    family.language_model(words).layers[0].self_attn.q_proj.weight.data.neg_()
    assert (
        vision_fingerprint(family, words)
        == vision_fingerprint(family, target)
        != vision_fingerprint(family, model(name, 7, 1))
    )
    text = {id(parameter) for parameter in family.language_model(target).parameters()}
    outside = [key for key, parameter in target.model.named_parameters() if id(parameter) not in text]
    for changed, key in ((tower, outside[0]), (projector, outside[-1])):
        changed.model.get_parameter(key).data.add_(0.01)
        assert vision_fingerprint(family, changed) != vision_fingerprint(family, target)


class Wrapped(torch.Tensor):
    """A tensor made of packed numbers and a scale, which knows no operation: as some quantised ones."""

    @staticmethod
    def __new__(cls, packed, scale):
        return torch.Tensor._make_wrapper_subclass(cls, packed.shape, dtype=scale.dtype)

    def __init__(self, packed, scale):
        self.packed, self.scale = packed, scale

    def __tensor_flatten__(self):
        return ["packed", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].packed, args[0].scale)
        raise NotImplementedError(str(function))


def test_packed_weights_are_told_apart_by_what_they_are_made_of():
    target = copy.deepcopy(model("qwen2_5_vl"))
    family, block = family_of(target), target.model.visual.blocks[0].mlp.down_proj
    packed, fingerprints = torch.ones(block.weight.shape, dtype=torch.int8), []
    for scale in (0.5, 0.5, 0.25):
        block.weight = torch.nn.Parameter(Wrapped(packed, torch.tensor([scale])), requires_grad=False)
        fingerprints.append(vision_fingerprint(family, target))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_embeddings_sent_are_those_of_tokens_that_are_no_text(name):
    target, request = model(name), with_image(name, inputs(name))
    family = family_of(target)
    prompt, embeds = family.prepare_prompt(target.config, request), family.embed(target, request)
    kept = torch.arange(0, len(prompt.video_at), 5)
    record = kept_prompt(prompt, embeds, kept, target.get_input_embeddings())
    words = target.get_input_embeddings()(record["ids"])
    words[record["at"]] = record["rows"]
    assert torch.equal(words, embeds.tokens[prompt.keep(kept)])
    assert record["at"].tolist() == torch.isin(record["ids"], torch.tensor([IMAGE, VIDEO])).nonzero()[:, 0].tolist()
    assert record["positions"].shape[1] == len(record["ids"])


def test_tensors_of_more_numbers_than_float32_can_count():
    one = torch.nn.Module()
    one.config, one.weight = SimpleNamespace(model_type="x"), torch.nn.Parameter(torch.zeros(2**24 + 6))
    one.get_output_embeddings = one.get_input_embeddings = lambda: torch.nn.Module()
    family = SimpleNamespace(language_model=lambda model: torch.nn.Module())
    before = vision_fingerprint(family, one)
    with torch.no_grad():
        one.weight[-1] = 1
    assert vision_fingerprint(family, one) != before


def test_a_fingerprint_is_computed_again_only_after_a_change(monkeypatch):
    target, computed = copy.deepcopy(model("qwen2_5_vl")), []
    family, blake2b = family_of(target), shared_vision.blake2b
    monkeypatch.setattr(shared_vision, "blake2b", lambda *a, **k: computed.append(1) or blake2b(*a, **k))
    first = [vision_fingerprint(family, target) for _ in range(3)]
    assert len(computed) == 1
    with torch.no_grad():
        target.model.visual.blocks[0].mlp.down_proj.weight.add_(1)
    second = vision_fingerprint(family, target)
    target.model.visual.blocks[0] = copy.deepcopy(model("qwen2_5_vl").model.visual.blocks[0])
    assert len(set(first)) == 1 and second != first[0] == vision_fingerprint(family, target)
    assert len(computed) == 3


def test_weights_made_in_inference_mode_have_a_fingerprint():
    """They count no changes."""
    with torch.inference_mode():
        target = copy.deepcopy(model("qwen2_5_vl"))
    assert next(target.parameters()).is_inference()
    family = family_of(target)
    assert vision_fingerprint(family, target) == vision_fingerprint(family, model("qwen2_5_vl"))
