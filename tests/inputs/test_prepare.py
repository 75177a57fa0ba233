"""From messages to inputs: true times, no second sampling, everything in its order, nothing left out."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from hippo.cli.demo import CLIP
from hippo.errors import HippoError
from hippo.inputs import messages_of, prepare, read_messages
from hippo.video import read_video


def asked(sources, prompt, system="", **sampling):
    """Messages of a simple request, read."""
    return read_messages(messages_of(sources, prompt, system), **sampling)


def conversation():
    """One that holds everything; its videos differ in frames and its images in size."""
    return read_messages(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "first:"},
                    {"type": "video", "video": read_video(CLIP, frames=4)},
                    {"type": "text", "text": "second:"},
                    {"type": "image", "image": Image.new("RGB", (90, 60), "red")},
                    {"type": "video", "video": read_video(CLIP, frames=7)},
                    {"type": "text", "text": "third:"},
                    {"type": "image", "image": Image.new("RGB", (60, 120), "blue")},
                ],
            },
            {"role": "assistant", "content": "Nothing."},
            {"role": "user", "content": "Nothing?"},
        ]
    )


def test_frames_and_times_are_those_of_the_video(tiny):
    video = read_video(CLIP, frames=8)
    inputs = prepare(tiny.processor, asked(video, "What happens?"))
    assert inputs["video_grid_thw"].tolist() == [[4, 16, 16]]
    step = np.diff(video.timestamps).mean()
    assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(2 * step, rel=0.05)
    ids = inputs["input_ids"][0].tolist()
    text = tiny.processor.tokenizer.decode(ids)
    assert text.index("<|video_pad|>") < text.index("What happens?") < text.index("assistant")
    assert ids.count(tiny.pair.target.config.video_token_id) == 4 * 8 * 8


def test_pixels_are_the_frames(tiny):
    video = read_video(CLIP, frames=2)
    inputs = prepare(tiny.processor, asked(video, "?"))
    patch = inputs["pixel_values_videos"][0].view(3, 2, 14, 14)
    mean, std = (
        torch.tensor(tiny.processor.video_processor.image_mean),
        torch.tensor(tiny.processor.video_processor.image_std),
    )
    shown = (patch * std.view(3, 1, 1, 1) + mean.view(3, 1, 1, 1)) * 255
    corner = torch.from_numpy(video.frames[:, :14, :14]).permute(3, 0, 1, 2).float()
    assert (shown - corner).abs().max() < 1


def test_everything_stands_in_its_order(tiny):
    inputs = prepare(tiny.processor, conversation())
    text = tiny.processor.tokenizer.decode(inputs["input_ids"][0])
    texts = ["Be brief.", "first:", "video_pad", "second:", "image_pad", "video_pad", "third:", "image_pad"]
    at = 0
    for words in [*texts, "Nothing.", "Nothing?", "assistant\n"]:
        at = text.index(words, at) + len(words)
    assert inputs["video_grid_thw"][:, 0].tolist() == [2, 4]
    assert inputs["image_grid_thw"][0, 2] > inputs["image_grid_thw"][0, 1]
    assert inputs["image_grid_thw"][1, 2] < inputs["image_grid_thw"][1, 1]


def test_inputs_are_those_of_transformers_for_the_same_chat(tiny):
    messages = conversation()
    videos = [part["video"] for part in messages[1]["content"] if part["type"] == "video"]
    chat = [
        turn
        | {
            "content": [
                part | {"video": part["video"].frames} if part["type"] == "video" else part for part in turn["content"]
            ]
        }
        for turn in messages
    ]
    options = {"video_metadata": [video.metadata for video in videos], "do_sample_frames": False}
    theirs = tiny.processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, processor_kwargs=options
    )
    ours = prepare(tiny.processor, messages)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


def test_text_alone_has_no_pixels(tiny):
    inputs = prepare(tiny.processor, asked(None, "Say hello."))
    assert not any("pixel" in key or "grid" in key for key in inputs) and len(inputs["input_ids"]) == 1


def test_markers_are_refused_in_every_text(tiny):
    video, marked = read_video(CLIP, frames=2), "What is <|image_pad|>?"
    for messages in (
        asked(video, marked),
        asked(video, "What?", system=marked),
        [*asked(None, "What?"), {"role": "assistant", "content": marked}, *asked(video, "What?")],
    ):
        with pytest.raises(HippoError, match=r"own marker <\|image_pad\|>"):
            prepare(tiny.processor, read_messages(messages))


CONTENTS = "{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<|video_pad|>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words", "hint"),
    [
        (
            "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + CONTENTS
            + "{% endfor %}",
            r"refuses the messages \(no system\)",
            "in the user's turn",
        ),
        (
            "{% for m in messages if m['role'] != 'system' %}" + CONTENTS + "{% endfor %}",
            "leaves out what the system says",
            "in the user's turn",
        ),
        (
            "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}",
            "has no place for every video",
            "checkpoint's own processor",
        ),
        ("{% for m in messages %}<|video_pad|>{% endfor %}", "leaves out what the", ""),
        ("{% for m in messages %}{{ 'x' + m['content'] }}{% endfor %}", "refuses the messages", ""),
        (None, "refuses the messages .*does not have a chat template", ""),
    ],
)
def test_a_template_that_cannot_hold_it_is_one_line(tiny, template, words, hint):
    processor = copy.copy(tiny.processor)
    processor.chat_template = template
    with pytest.raises(HippoError, match=words) as error:
        prepare(processor, asked(CLIP, "What?", "Be brief.", frames=2))
    assert "\n" not in str(error.value) and hint in error.value.hint


def test_a_template_may_trim_and_drop_what_an_assistant_thought(tiny):
    processor = copy.copy(tiny.processor)
    processor.chat_template = "{% for m in messages if m['role'] != 'assistant' %}{{ m['content'][0]['text'] | trim }}"
    processor.chat_template += "{% endfor %}"
    turns = [("user", " One? "), ("assistant", "Hm. Two."), ("user", "Three?\n")]
    inputs = prepare(processor, read_messages([{"role": role, "content": text} for role, text in turns]))
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == "One?Three?"


def test_a_beginning_that_the_template_writes_is_not_written_twice(tiny):
    class Recording:
        def __init__(self):
            self.given = []

        def __getattr__(self, name):
            return getattr(tiny.processor, name)

        def __call__(self, **given):
            self.given.append(given)
            return tiny.processor(**given)

    processor = Recording()
    prepare(processor, asked(None, "Hello."))
    processor.tokenizer = copy.copy(tiny.processor.tokenizer)
    processor.tokenizer.bos_token = "<|im_start|>"
    prepare(processor, asked(None, "Hello."))
    assert [given.get("add_special_tokens", True) for given in processor.given] == [True, False]


class Sampling:
    """A video processor that does not do as it is told."""

    def __init__(self, plain, **forced):
        self.plain, self.forced = plain, forced

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def __call__(self, videos, video_metadata, **options):
        if self.forced:
            return self.plain(videos, video_metadata=video_metadata, **options | self.forced)
        for metadata in video_metadata:
            metadata.frames_indices = metadata.frames_indices[::2]
        return self.plain([[video[::2] for video in videos[0]]], video_metadata=video_metadata, **options)


@pytest.mark.parametrize("forced", [{}, {"do_sample_frames": True, "num_frames": 4}])
def test_a_processor_that_samples_again_is_noticed(tiny, forced):
    processor = copy.copy(tiny.processor)
    processor.video_processor = Sampling(tiny.processor.video_processor, **forced)
    with pytest.raises(HippoError, match="samples the frames again"):
        prepare(processor, asked([CLIP, CLIP], "What?", frames=8))


def test_what_the_processor_refuses_is_one_line(tiny):
    with pytest.raises(HippoError, match=r"refuses the videos or images .*aspect ratio") as error:
        prepare(tiny.processor, asked([CLIP, Image.new("RGB", (2000, 4))], "What?", frames=2))
    assert "\n" not in str(error.value)


def test_the_pixels_of_one_video_are_not_copied_to_be_joined(tiny):
    joined = []

    class Watched:
        def __getattr__(self, name):
            return getattr(tiny.processor.video_processor, name)

        def __call__(self, *videos, **options):
            x, y = torch.ones(2, 3), torch.ones(1, 3)
            joined.append(torch.cat([x]) is x and torch.cat([x, y], dim=0).shape == (3, 3))
            return tiny.processor.video_processor(*videos, **options)

    processor = copy.copy(tiny.processor)
    processor.video_processor = Watched()
    watched, plain = (prepare(of, asked([CLIP], "What?", frames=4)) for of in (processor, tiny.processor))
    assert joined == [True] and all(torch.equal(watched[name], plain[name]) for name in plain)
    x = torch.ones(2, 3)
    assert torch.cat([x]) is not x
