"""Qwen3-VL's own: times between the frames, features in the first layers, a target with experts, the real processor."""

import copy

import pytest
import torch
from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

import hippo
from hippo.bench.world import make_scene, write_clip
from hippo.checkpoints import BUNDLED
from hippo.families import Embeds, family_of
from hippo.forward import CachedModel
from hippo.inputs import messages_of, prepare, read_messages
from hippo.llm import release
from hippo.video import read_video
from tests.models import generated, inputs, model

TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def processor():
    """A real one that makes 3 x 3 tokens of a frame; the bundled tokenizer has Qwen3-VL's markers."""
    size = {"shortest_edge": 56 * 56, "longest_edge": 8 * 84 * 84}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=AutoTokenizer.from_pretrained(BUNDLED / "tiny" / "target"),
        video_processor=Qwen3VLVideoProcessor(patch_size=14, size=size),
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "clip.mp4"
    write_clip(make_scene(1), path, side=112)
    return path


def speaking(processor, **options):
    """A test model that knows the processor's tokens."""
    net = copy.deepcopy(model("qwen3_vl", vocabulary=len(processor.tokenizer), **options))
    net.config.video_token_id, net.config.image_token_id = processor.video_token_id, processor.image_token_id
    return net


def test_every_frame_stands_behind_its_true_time_which_is_never_pruned(processor, clip):
    video, target = read_video(clip, frames=7), speaking(processor)
    prompt = family_of(target).prepare_prompt(
        target.config, prepare(processor, read_messages(messages_of(video, "What happens?")))
    )
    shown = [*video.timestamps, video.timestamps[-1]]
    times = [f"<{(first + second) / 2:.1f} seconds>" for first, second in zip(shown[::2], shown[1::2], strict=True)]
    text = processor.tokenizer.decode(prompt.input_ids[prompt.keep(torch.tensor([], dtype=torch.long))])
    assert "<|vision_start|><|vision_end|>".join([*times, ""]) in text and "video_pad" not in text
    (grid,) = prompt.grids
    assert (grid.frames, grid.rows, grid.columns) == (4, 3, 3) and len(prompt.video_at) == 36
    question = processor.tokenizer.decode(prompt.input_ids[prompt.question_at])
    assert "What happens?" in question and "seconds" not in question


@pytest.mark.usefixtures("patient_targets")
def test_what_the_real_processor_prepares_is_answered_as_generate_does(processor, clip):
    target, draft = speaking(processor), speaking(processor, seed=7, layers=1)
    for frames in (2, 7):
        request = prepare(processor, read_messages(messages_of(read_video(clip, frames=frames), "What happens?")))
        for method in ("ar", "sd", "pearl", "hippo"):
            out = hippo.generate(target, draft, request, method=method, max_new_tokens=24, keep_ratio=0.2)
            assert out.token_ids == generated(target, request) and not out.warnings
    release(target)


def test_a_clip_of_one_frame_is_refused_as_its_processor_refuses_it(processor, clip):
    with pytest.raises(hippo.HippoError, match="processor refuses the video"):
        prepare(processor, read_messages(messages_of(read_video(clip, frames=1), "What happens?")))


@pytest.mark.usefixtures("patient_targets")
def test_a_target_with_experts_and_a_dense_draft():
    target, request = model("qwen3_vl_moe"), inputs("qwen3_vl_moe")
    out = hippo.generate(target, model("qwen3_vl", 7, 1), request, gamma=4, max_new_tokens=24, keep_ratio=0.5)
    assert out.token_ids == generated(target, request) and out.stats.checked > 0 and not out.warnings
    release(target)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
def test_the_test_models_look_at_what_enters_their_first_layers(name):
    target, request = model(name), inputs(name)
    family = family_of(target)
    prompt, embeds = family.prepare_prompt(target.config, request), family.embed(target, request)
    deep, shallow = (
        CachedModel.of(family, target).prefill(each, prompt.positions, prompt.next_position)
        for each in (embeds, Embeds(embeds.tokens))
    )
    assert (deep - shallow).norm() > 0.1 * deep.norm()
    assert len(embeds.deep) == 2 and not embeds.deep[:, prompt.question_at].any()
