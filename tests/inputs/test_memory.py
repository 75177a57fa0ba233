"""Media that were read are kept, and a file that changed is read again."""

import os
import shutil
import time
from fractions import Fraction

import numpy as np
import pytest
import torch

import hippo
from hippo.cli.common import BUNDLED
from hippo.inputs import MediaMemory, media_key, memory, messages_of, prepare, read_messages
from hippo.video.writing import write_video

CLIP = BUNDLED / "demo.mp4"


@pytest.fixture
def processor(tiny):
    return tiny.processor


class Counting:
    """Reads, and counts how often."""

    def __init__(self, processor):
        self.processor, self.memory, self.times = processor, MediaMemory(), 0

    def __call__(self, source, question="What happens?", frames=4):
        messages = messages_of(source, question)

        def read(process):
            self.times += 1
            turns = read_messages(messages, frames=frames)
            return turns, process(turns, {}), ("a warning",)

        return self.memory.read(self.processor, messages, (frames,), read)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    shutil.copy(CLIP, path)
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    time.sleep(memory._RECENT / 1e9 * 1.5)  # since its inode changed
    return path


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_another_question_on_a_clip_reads_nothing(processor, clip, monkeypatch):
    read = Counting(processor)
    first = read(clip)
    processed = []
    plain = type(processor.video_processor).__call__
    monkeypatch.setattr(
        type(processor.video_processor), "__call__", lambda *a, **k: processed.append(1) or plain(*a, **k)
    )
    turns, inputs, warnings = read(str(clip), "And then?")
    assert read.times == 1 and not processed and warnings == first[2]
    expected = read_messages(messages_of(clip, "And then?"), frames=4)
    assert same(inputs, prepare(processor, expected)) and processed
    assert turns[-1]["content"][-1]["text"] == "And then?"
    assert same(read(clip)[1], first[1]) and read.times == 1


def test_the_key_is_what_the_model_sees_and_what_is_kept_is_read_once_for_it(processor, clip, monkeypatch):
    read, digested, digest = Counting(processor), [], memory._digest
    monkeypatch.setattr(memory, "_digest", lambda tensor: digested.append(tensor.nbytes) or digest(tensor))
    keys = [read.memory.media_key(read(clip, question)[1]) for question in ("What happens?", "And then?")]
    assert keys[0] == keys[1] == media_key(read(clip)[1])
    pixels = read(clip)[1]["pixel_values_videos"]
    assert digested.count(pixels.nbytes) == 2, "once for both questions, once by the function"
    assert keys[0] != read.memory.media_key(read(clip, frames=5)[1])
    unknown = {"pixel_values_videos": pixels.clone()}
    before = read.memory.media_key(unknown)
    unknown["pixel_values_videos"][0] += 1
    assert read.memory.media_key(unknown) != before, "what is not kept may change"


def test_other_frames_are_read(processor, clip):
    read = Counting(processor)
    assert not same(read(clip)[1], read(clip, frames=8)[1]) and read.times == 2


def test_a_file_that_changed_under_its_name_is_read_again(processor, clip, tmp_path):
    read = Counting(processor)
    first = read(clip)[1]
    other = tmp_path / "other.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    write_video(noise, other, Fraction(2), (64, 64))
    state = clip.stat()
    os.replace(other, clip)
    os.utime(clip, ns=(state.st_atime_ns, state.st_mtime_ns))  # by its times alone it is the same
    time.sleep(memory._RECENT / 1e9 * 1.5)
    assert not same(read(clip)[1], first) and read.times == 2


def test_a_file_just_written_is_not_trusted(processor, clip):
    read = Counting(processor)
    os.utime(clip)
    read(clip)
    os.utime(clip)
    read(clip)
    assert read.times == 2


def test_what_has_no_path_is_read_again(processor, clip):
    read = Counting(processor)
    frames = hippo.read_video(clip, frames=4)
    for source in (clip.read_bytes(), frames):
        read(source)
        read(source)
    assert read.times == 4


def test_the_oldest_goes_when_there_is_no_room(processor, clip, tmp_path):
    read = Counting(processor)
    read.memory = MediaMemory(1000)
    read(clip)
    read(clip)
    assert read.times == 2


def test_a_missing_file_is_not_remembered(processor, tmp_path):
    read = Counting(processor)
    with pytest.raises(hippo.MediaError):
        read(tmp_path / "missing.mp4")
