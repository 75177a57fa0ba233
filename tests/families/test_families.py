"""Each family: positions and embeddings as generate() has them, and test models that depend on their video."""

import pytest
import torch

from hippo.errors import HippoError
from hippo.families import FAMILIES as served
from hippo.families import base, family_of, require_family
from hippo.forward import CachedModel, cached_model
from hippo.pruning import PRUNERS, AttentionRecorder, recording
from tests.models import FAMILIES, generated, inputs, model, text_only, with_image, with_second_video


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


def steps(target, request, tokens, positions=None):
    """Logits along `tokens`, by the family's own prompt and a KV cache."""
    family = family_of(target)
    prompt = family.prepare_prompt(target.config, request)
    cached = CachedModel.of(family, target)
    positions = prompt.positions if positions is None else positions
    rows = [cached.prefill(family.embed(target, request), positions, prompt.next_position)]
    rows += [cached.extend([token])[-1] for token in tokens]
    return torch.stack(rows)


def test_the_test_models_depend_on_the_video(name):
    request = inputs(name)
    pixels = [key for key in request if key.startswith("pixel_values")]
    others = [{key: inputs(name, seed=seed)[key] for key in pixels} for seed in range(4)]
    assert len({tuple(generated(model(name), request | other)) for other in others}) == 4


def test_the_test_models_depend_on_positions(name):
    target, request = model(name), inputs(name)
    prompt = family_of(target).prepare_prompt(target.config, request)
    tokens = generated(target, request)
    right = steps(target, request, tokens[:-1])
    squeezed = steps(target, request, tokens[:-1], prompt.positions // 2)
    assert right.argmax(-1).tolist() == tokens
    assert squeezed.argmax(-1).tolist() != tokens


@pytest.mark.parametrize("holds", ["video", "nothing", "image", "image and video", "image and videos"])
def test_logits_are_those_of_generate(name, holds):
    target, request = model(name), inputs(name) if "video" in holds else text_only(name)
    request = with_second_video(name, request) if "videos" in holds else request
    request = with_image(name, request) if "image" in holds else request
    out = target.generate(
        **request, do_sample=False, max_new_tokens=12, return_dict_in_generate=True, output_logits=True
    )
    tokens = out.sequences[0, request["input_ids"].shape[1] :].tolist()
    torch.testing.assert_close(steps(target, request, tokens[:-1]), torch.cat(out.logits), rtol=1e-4, atol=1e-3)


def test_video_tokens_lie_in_frame_row_column_order(name):
    target, request = model(name), inputs(name)
    prompt = family_of(target).prepare_prompt(target.config, request)
    (grid,) = prompt.grids
    assert len(prompt.video_at) == grid.tokens
    if name.startswith("qwen"):
        at = prompt.positions[:, prompt.video_at].view(3, grid.frames, grid.rows, grid.columns)
        assert (at[1].diff(dim=1) == 1).all() and (at[2].diff(dim=2) == 1).all()
        assert (at[0].diff(dim=0) > 0).all()
    if name == "qwen2_5_vl":
        assert int(prompt.next_position[0]) <= int(prompt.positions.max()), "the clip must reach further than the text"


def test_each_of_two_videos_has_its_own_tokens(name):
    target, request = model(name), with_second_video(name, inputs(name))
    prompt = family_of(target).prepare_prompt(target.config, request)
    first, second = prompt.grids
    assert first == family_of(target).prepare_prompt(target.config, inputs(name)).grids[0]
    assert len(prompt.video_at) == first.tokens + second.tokens
    words = prompt.input_ids[prompt.video_at[first.tokens - 1] : prompt.video_at[first.tokens]].tolist()
    assert len([word for word in words if word < 150]) > 3, "there must be words between the two"
    assert (prompt.question_at > prompt.video_at[-1]).all()


def test_keep_leaves_all_but_the_dropped_video_tokens(name):
    target, request = model(name), inputs(name)
    prompt = family_of(target).prepare_prompt(target.config, request)
    kept = torch.tensor([0, 5])
    stays = prompt.keep(kept)
    assert len(stays) == len(prompt.input_ids) - len(prompt.video_at) + 2
    assert set(prompt.video_at[kept].tolist()) <= set(stays.tolist())
    assert stays.tolist() == sorted(stays.tolist())


def test_a_pruned_prompt_is_the_whole_one_with_the_dropped_tokens_masked(name):
    """What a draft reads, against transformers' own forward in which nothing attends to the dropped."""
    target, request = model(name), with_image(name, inputs(name))
    family = family_of(target)
    prompt = family.prepare_prompt(target.config, request)
    stays = prompt.keep(torch.arange(1, len(prompt.video_at), 3))
    mask = torch.zeros_like(request["input_ids"])
    mask[:, stays] = 1
    positions = prompt.positions if len(prompt.positions) == 1 else prompt.positions[:, None]
    with torch.no_grad():
        expected = target(**request | {"attention_mask": mask, "position_ids": positions}).logits[0, -1]
    ours = CachedModel.of(family, target).prefill(
        family.embed(target, request)[stays], prompt.positions[:, stays], prompt.next_position
    )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("holds", ["video", "image and video", "image and videos"])
def test_video_and_prompt_read_in_parts_give_what_they_give_whole(name, holds, monkeypatch):
    target, request = model(name), inputs(name)
    request = with_second_video(name, request) if "videos" in holds else request
    request = with_image(name, request) if "image" in holds else request
    family = family_of(target)
    prompt = family.prepare_prompt(target.config, request)

    def read():
        embeds = family.embed(target, request)
        wanted = [PRUNERS[name].attention for name in ("attention", "hippo")]
        recorders = [AttentionRecorder(prompt.question_at, prompt.video_at, attention, 3) for attention in wanted]
        with recording(*recorders):
            logits = CachedModel.of(family, target).read(embeds, prompt)
        return [embeds.tokens, logits, *embeds.arguments.get("deepstack_visual_embeds", [])], recorders

    (whole, recorded), calls = read(), []
    for module, part in ((base, 1), (cached_model, 7)):
        monkeypatch.setattr(module, "_WHOLE", 4)
        monkeypatch.setattr(module, "_PART", part)
    tower = family.language_model(target).register_forward_hook(lambda *_: calls.append(1))
    parts, recorded_in_parts = read()
    tower.remove()
    assert len(calls) > 2
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    for one, other in zip(recorded_in_parts, recorded, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
    tokens = generated(target, request)
    assert steps(target, request, tokens[:-1]).argmax(-1).tolist() == tokens


def test_the_question_is_the_text_after_the_video(name):
    target, request = model(name), inputs(name, question=3)
    prompt = family_of(target).prepare_prompt(target.config, request)
    ids = prompt.input_ids[prompt.question_at]
    assert len(ids) == 3 and (prompt.question_at > prompt.video_at[-1]).all()
    assert (ids != prompt.input_ids[prompt.video_at[0]]).all()


def test_requests_that_cannot_be_served_are_refused(name):
    target, request = model(name), inputs(name)
    family = family_of(target)
    two = {key: torch.cat([value, value]) for key, value in request.items()}
    with pytest.raises(HippoError, match="one request at a time"):
        family.prepare_prompt(target.config, two)
    with pytest.raises(HippoError, match="0 in the videos"):
        family.prepare_prompt(target.config, {"input_ids": request["input_ids"]})
    mask = request["attention_mask"].clone()
    mask[0, 0] = 0
    with pytest.raises(HippoError, match="padded"):
        family.prepare_prompt(target.config, request | {"attention_mask": mask})
    at = family.prepare_prompt(target.config, request).video_at[0]
    ids = request["input_ids"]
    short = request | {"attention_mask": None, "input_ids": torch.cat([ids[:, :at], ids[:, at + 1 :]], dim=1)}
    with pytest.raises(HippoError, match="video tokens in the prompt"):
        family.prepare_prompt(target.config, short)


def test_an_image_matters_and_none_of_its_tokens_is_the_videos(name):
    target, request = model(name), with_image(name, inputs(name))
    prompt = family_of(target).prepare_prompt(target.config, request)
    assert prompt.grids == family_of(target).prepare_prompt(target.config, inputs(name)).grids
    assert len(prompt.video_at) == prompt.grids[0].tokens
    assert generated(target, request) != generated(target, with_image(name, inputs(name), seed=1))


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("video_llava", "'video_llava' are video-LLMs that HIPPO does not serve yet: .* one file in hippo/families"),
        ("glm4v_moe", "are video-LLMs that HIPPO does not serve yet"),  # shares its processor: only its config tells
        ("llava", "'llava' are no video-LLMs: use one of: qwen2_vl, "),
        ("videomae", "are no video-LLMs"),  # takes video but writes nothing
        ("qwen2", "are no video-LLMs"),
        ("videollama3_qwen2", r"transformers [\d.]+\S* knows no model of type 'videollama3_qwen2'"),
    ],
)
def test_why_a_model_is_not_served(model_type, words):
    with pytest.raises(HippoError, match=words):
        require_family(model_type)


def test_what_is_no_model_of_transformers_is_named():
    with pytest.raises(HippoError, match="no model of type 'Linear'"):
        family_of(torch.nn.Linear(1, 1))


def test_every_family_was_run_and_has_a_card():
    types = {name for family in served for name in family.model_types}
    assert types == set(FAMILIES), "what `hippo models` says was run must be what these tests run"
    for family in served:
        assert family.card.name and family.card.notes
        for target, draft in family.card.pairs:
            assert target.id.count("/") == draft.id.count("/") == 1 and target.billions > 1.5 * draft.billions > 0
