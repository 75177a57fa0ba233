"""Families that read a video as images, from a file through their own processors to generate()'s own words."""

import pytest
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

import hippo
from hippo.bench.world import make_scene, write_clip
from hippo.checkpoints import BUNDLED
from hippo.families import VideoGrid, family_of
from hippo.inputs import messages_of, prepare, read_messages
from hippo.llm import release
from tests.models import common, generated, internvl, smolvlm

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(make_scene(3), path, side=64)
    return hippo.read_video(path, frames=12)


def tokenizer(**tokens):
    return AutoTokenizer.from_pretrained(BUNDLED / "tiny" / "target", extra_special_tokens=tokens)


def internvl_processor():
    tokens = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG>", video_token="<video>"
    )
    size = {"height": 56, "width": 56}
    images, videos = GotOcr2ImageProcessor(size=size), InternVLVideoProcessor(size=size)
    return InternVLProcessor(images, tokens, videos, image_seq_length=4, chat_template=TEMPLATE)


def smolvlm_processor():
    pytest.importorskip("num2words")
    tokens = tokenizer(
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
        video_token="<video>",
    )
    sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    images, videos = SmolVLMImageProcessor(**sizes), SmolVLMVideoProcessor(**sizes)
    videos.fps = 1
    return SmolVLMProcessor(images, tokens, videos, image_seq_len=4, chat_template=TEMPLATE)


@pytest.mark.parametrize(
    ("family", "make_processor", "label"),
    [(internvl, internvl_processor, "Frame12: "), (smolvlm, smolvlm_processor, "Frame from 00:04:")],
)
def test_a_clip_is_answered_as_by_generate(family, make_processor, label, video):
    processor = make_processor()
    processor.video_processor.do_sample_frames, processor.video_processor.num_frames = True, 3  # must not count
    inputs = prepare(processor, read_messages(messages_of(video, "What happens?")))
    assert label in processor.tokenizer.decode(inputs["input_ids"][0])

    target, draft = (common.scaled(family.make(layers, len(processor.tokenizer)), layers) for layers in (3, 1))
    for model in (target, draft):
        model.config.image_token_id = processor.image_token_id
    assert family_of(target).prepare_prompt(target.config, inputs).grids == (VideoGrid(12, 2, 2),)
    try:
        out = hippo.generate(target, draft, inputs, max_new_tokens=24, keep_ratio=0.2)
        assert out.token_ids == generated(target, inputs) and not out.warnings
        assert out.stats.video_tokens == 48 and out.stats.kept_tokens == 10
    finally:
        release(target)
