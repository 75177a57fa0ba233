"""Pairs that nearly match: the draft sees the video by a processor of its own, is of another family or too large."""

import copy
import json
import shutil

import pytest
from transformers import (
    AutoTokenizer,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

import hippo
from hippo.bench.pruners import ABLATIONS
from hippo.checkpoints import BUNDLED
from hippo.cli.demo import CLIP
from hippo.draft import process
from hippo.families import family_of
from hippo.llm import VideoLLM, release
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.pruning import RATIOS
from hippo.report.baseline import transformers_generate
from tests.models import FAMILIES, generated, inputs, llava_onevision, model, qwen2_vl, qwen3_vl, with_second_video
from tests.models.common import scaled, text

pytestmark = pytest.mark.usefixtures("patient_targets")

TARGET, DRAFT = BUNDLED / "tiny" / "target", BUNDLED / "tiny" / "draft"


@pytest.fixture(autouse=True, scope="module")
def _end_all_drafts():
    yield
    for family in FAMILIES:
        release(model(family))


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        *[("qwen2_5_vl", draft) for draft in ("qwen2_vl", "qwen3_vl", "llava_onevision", "internvl", "video_llama_3")],
        *[(target, "qwen2_5_vl") for target in ("qwen3_vl", "llava_onevision", "video_llama_3")],
    ],
)
def test_a_draft_of_another_family_and_grid(target, draft):
    target, small = model(target), model(draft, 7, 1)
    request, its_own = inputs(target.config.model_type), inputs(draft, frames=12)
    assert (
        family_of(target).prepare_prompt(target.config, request).grids
        != family_of(small).prepare_prompt(small.config, its_own).grids
    )
    expected = generated(target, request)
    for method in ("sd", "pearl", "hippo"):
        out = hippo.generate(target, small, request, its_own, method=method, gamma=4, max_new_tokens=24, keep_ratio=0.3)
        assert out.token_ids == expected and not out.stats.draft_lost and out.stats.checked > 0
        kept = 0.3 if method == "hippo" else 1.0
        assert out.stats.kept_tokens == round(kept * out.stats.video_tokens), "counted on the target's grid"


def test_a_model_that_is_given_its_own_inputs_twice_does_not_share_its_eyes():
    target, request = model("qwen2_5_vl"), with_second_video("qwen2_5_vl", inputs("qwen2_5_vl"))
    other = inputs("qwen2_5_vl", seed=3)
    alike, own, unlike = (
        hippo.generate(target, target, request, inputs_, pruner="none", gamma=4, max_new_tokens=24)
        for inputs_ in (None, request, other)
    )
    assert alike.token_ids == own.token_ids == unlike.token_ids == generated(target, request)
    assert alike.stats.rejections == own.stats.rejections == 0 < unlike.stats.rejections


def test_a_draft_that_knows_fewer_videos_sees_all_of_them():
    target, small = model("qwen2_5_vl"), model("llava_onevision", 7, 1)
    request = with_second_video("qwen2_5_vl", inputs("qwen2_5_vl"))
    out = hippo.generate(target, small, request, inputs("llava_onevision"), gamma=4, max_new_tokens=24)
    assert out.token_ids == generated(target, request) and out.stats.checked > 0
    (warning,) = out.warnings
    assert "holds 1 videos and the target's 2" in warning


def test_another_family_needs_inputs_of_its_own():
    target, small, request = model("qwen2_5_vl"), model("llava_onevision", 7, 1), inputs("qwen2_5_vl")
    with pytest.raises(hippo.HippoError, match=r"cannot use the inputs of a qwen2_5_vl: pass draft_inputs"):
        hippo.generate(target, small, request)
    assert hippo.generate(target, small, request, method="ar", max_new_tokens=24).stats.new_tokens == 24


def test_a_draft_that_cannot_use_the_inputs_is_lost_and_the_warning_says_what_to_do(monkeypatch):
    monkeypatch.setattr(process, "may_fork", lambda *_: True)  # saved to disk it would not load
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    other = copy.deepcopy(model("qwen2_5_vl", 7, 1))
    other.config.vision_config.spatial_merge_size = 4
    out = hippo.generate(target, other, request, max_new_tokens=24)
    (warning,) = out.warnings
    assert out.token_ids == generated(target, request) and out.stats.draft_lost
    assert "cannot use the inputs" in warning and "as draft_inputs" in warning and "\n" not in warning


def test_a_draft_larger_than_its_target_is_allowed_and_told_once():
    target, large, request = model("qwen2_5_vl", layers=2), model("qwen2_5_vl", 7, 4), inputs("qwen2_5_vl")
    first, second = (hippo.generate(target, large, request, gamma=4, max_new_tokens=24) for _ in range(2))
    release(target)
    (warning,) = first.warnings
    assert "the draft is larger than the target (1." in warning and not second.warnings
    assert first.token_ids == second.token_ids == generated(target, request) and first.stats.checked > 0


TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{% if part.type == 'video' %}<|video_pad|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 8 * 84 * 84}
MARKS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}  # one tokenizer for all


def of_other_patches(tokenizer):
    """Every frame by itself, patches of 16 pixels and one token each."""
    cut = {"patch_size": 16, "merge_size": 1, "temporal_patch_size": 1}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "patch_size": 16}
    vision |= {"spatial_merge_size": 1, "temporal_patch_size": 1}
    config = Qwen2VLConfig(text_config=text(1, len(tokenizer)) | qwen2_vl.MROPE, vision_config=vision)
    videos = Qwen2VLVideoProcessor(size=PIXELS, **cut)
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**cut), tokenizer, videos, chat_template=TEMPLATE)
    return Qwen2VLForConditionalGeneration(config), processor


def of_qwen3_vl(tokenizer):
    videos = Qwen3VLVideoProcessor(patch_size=14, size=PIXELS)
    template = TEMPLATE.replace("<|video_pad|>", "<|vision_start|><|video_pad|><|vision_end|>")
    processor = Qwen3VLProcessor(Qwen2VLImageProcessor(), tokenizer, videos, chat_template=template)
    return qwen3_vl.make(1, len(tokenizer)), processor


def of_llava_onevision(tokenizer):
    size = {"height": 56, "width": 56}
    images, videos = LlavaOnevisionImageProcessor(size=size), LlavaOnevisionVideoProcessor(size=size)
    processor = LlavaOnevisionProcessor(images, tokenizer, videos, 16, "full", TEMPLATE, **MARKS)
    return llava_onevision.make(1, len(tokenizer)), processor


@pytest.fixture(scope="module", params=[of_other_patches, of_qwen3_vl, of_llava_onevision])
def untrained(request):
    """A draft that was never trained, and its processor, with the bundled tokenizer."""
    draft, processor = request.param(AutoTokenizer.from_pretrained(TARGET))
    draft = scaled(draft, 7)
    ids = processor.tokenizer.convert_tokens_to_ids([*MARKS.values(), "<|vision_start|>", "<|vision_end|>"])
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    for name, id_ in zip(names, ids, strict=True):
        setattr(draft.config, name, id_)
    return draft, processor


def words(llm, video, **options):
    return transformers_generate(llm, SamplingParams.of(**options), video=video).token_ids


def test_messages_are_prepared_for_each_by_its_own_processor(tiny, untrained):
    draft, processor = untrained
    video = hippo.read_video(CLIP, frames=5)
    expected = words(tiny, video, max_new_tokens=24)
    with VideoLLM(Pair(tiny.pair.target, Draft(draft)), tiny.processor, processor) as llm:
        for method in ("sd", "pearl", "hippo"):
            out = llm.generate(video, method=method, gamma=4, max_new_tokens=24)
            assert out.token_ids == expected and not out.warnings and out.stats.checked > 0
        assert out.stats.kept_tokens in {round(ratio * 3 * 64) for ratio in RATIOS}


def test_a_request_that_the_drafts_processor_refuses_is_answered_without_it(tiny):
    draft, processor = of_qwen3_vl(AutoTokenizer.from_pretrained(TARGET))
    video = hippo.read_video(CLIP, frames=1)  # too short for Qwen3-VL's
    with VideoLLM(Pair(tiny.pair.target, Draft(draft)), tiny.processor, processor) as llm:
        out = llm.generate(video, max_new_tokens=8)
    (warning,) = out.warnings
    assert "the draft cannot be asked this (the model's processor refuses" in warning and "alone" in warning
    assert out.token_ids == words(tiny, video, max_new_tokens=8) and out.stats.method == "ar"


def test_a_folder_of_another_family_is_loaded_with_its_processor(tmp_path, tiny):
    draft, processor = of_llava_onevision(AutoTokenizer.from_pretrained(TARGET))
    draft.config.image_token_id, draft.config.video_token_id = processor.image_token_id, processor.video_token_id
    draft.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with hippo.load(TARGET, tmp_path) as llm:
        assert isinstance(llm.draft_processor, LlavaOnevisionProcessor)
        out = llm.generate(CLIP, frames=4, gamma=4, max_new_tokens=24)
    assert out.stats.checked > 0 and not out.warnings
    assert out.token_ids == words(tiny, hippo.read_video(CLIP, frames=4), max_new_tokens=24)


def test_a_trained_draft_of_another_size_drafts_better_than_blind(tmp_path, tiny):
    """Of a frame it gets 7 x 7 tokens, the target 8 x 8."""
    folder = shutil.copytree(DRAFT, tmp_path / "draft")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["video_processor"]["size"]["longest_edge"] = 196 * 196
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with hippo.load(TARGET, folder) as llm:
        assert llm.draft_processor.tokenizer.get_vocab() == llm.processor.tokenizer.get_vocab()
        sees, blind = (
            llm.generate(CLIP, pruner=pruner, gamma=4, keep_ratio=0.1) for pruner in ("hippo", ABLATIONS["blind"])
        )
    assert sees.token_ids == blind.token_ids == words(tiny, CLIP) and not sees.warnings
    assert sees.stats.kept_tokens == 51 and sees.stats.acceptance_rate > blind.stats.acceptance_rate + 0.1


def test_the_same_folder_twice_shares_processor_and_eyes(tiny):
    with hippo.load(TARGET, TARGET) as llm:
        out = llm.generate(CLIP, method="pearl", gamma=4, max_new_tokens=40)
        assert llm.draft_processor is None
        assert llm.pair.draft.worker().wait_loaded().vision == tiny.pair.draft.worker().wait_loaded().vision
    assert out.token_ids == words(tiny, CLIP, max_new_tokens=40) and out.stats.rejections == 0 and not out.warnings
