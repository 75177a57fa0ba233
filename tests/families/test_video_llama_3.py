"""VideoLLaMA3's own processor on a real clip: unchanged patches without a token, a time before every frame."""

import pytest
import torch
from transformers import (
    AutoTokenizer,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

import hippo
from hippo.bench.world import make_scene, write_clip
from hippo.checkpoints import BUNDLED
from hippo.families import family_of
from hippo.inputs import messages_of, prepare, read_messages
from hippo.video import read_video
from tests.models import generated, inputs, model
from tests.models.common import scaled
from tests.models.video_llama_3 import make

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|video_pad|>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def processor():
    return VideoLlama3Processor(
        VideoLlama3ImageProcessor(),
        AutoTokenizer.from_pretrained(BUNDLED / "tiny" / "target"),
        VideoLlama3VideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 8 * 84 * 84}),
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(make_scene(3, objects=1), path)
    return read_video(path, frames=8)


def sized(processor, seed, layers):
    """A random model for the processor's tokens."""
    made = scaled(make(layers, len(processor.tokenizer)), seed)
    made.config.video_token_id, made.config.image_token_id = processor.video_token_id, processor.image_token_id
    return made


@pytest.mark.usefixtures("patient_targets")
@pytest.mark.parametrize("compression", [True, False])
def test_a_clip_through_the_processor_is_answered_as_by_generate(processor, video, compression, monkeypatch):
    monkeypatch.setattr(processor.video_processor, "use_token_compression", compression)
    request = prepare(processor, read_messages(messages_of(video, "What happens?")))
    target, draft = sized(processor, 0, 3), sized(processor, 7, 1)
    out = hippo.generate(
        target, draft, request, tokenizer=processor.tokenizer, gamma=4, max_new_tokens=24, keep_ratio=0.2
    )
    assert out.token_ids == generated(target, request)
    prompt = family_of(target).prepare_prompt(target.config, request)
    (grid,) = prompt.grids
    assert (grid.frames, grid.rows, grid.columns) == (8, 3, 3)
    assert (grid.tokens < 72) == compression
    assert out.stats.kept_tokens == round(0.2 * grid.tokens) and out.stats.checked > 0
    text = processor.tokenizer.decode(request["input_ids"][0])
    for seconds in video.timestamps:
        assert f"Time {seconds:.1f}s:<|video_pad|>" in text
    dropped = prompt.keep(torch.arange(0))
    assert processor.tokenizer.decode(prompt.input_ids[dropped]) == text.replace("<|video_pad|>", "")


def test_inputs_without_a_mask_have_a_token_for_every_cell():
    target, request = model("video_llama_3"), inputs("video_llama_3")
    frames, rows, columns = request["video_grid_thw"][0].tolist()
    words = request["input_ids"][0]
    cells = torch.full((frames * rows * columns // 4,), target.config.video_token_id)
    ids = torch.cat([words[:4], cells, words[-6:]])[None]
    whole = {key: value for key, value in request.items() if key != "video_compression_mask"}
    whole |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    out = hippo.generate(target, None, whole, method="ar", max_new_tokens=12)
    assert out.token_ids == generated(target, whole, max_new_tokens=12)
    assert family_of(target).prepare_prompt(target.config, whole).grids[0].tokens == len(cells)
