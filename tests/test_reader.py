"""Inputs are made without weights, travel, and are answered as if they had been read where the models are."""

import pickle
import shutil
from dataclasses import replace

import pytest
import torch

import hippo
from hippo.checkpoints import BUNDLED
from hippo.cli.demo import CLIP
from hippo.errors import HippoError
from hippo.inputs import messages_of
from hippo.params import SamplingParams
from hippo.reader import Reader

ASKED = hippo.Request(messages_of(str(CLIP), "What is here?"), SamplingParams(max_new_tokens=8), frames=4)


@pytest.fixture(scope="module")
def without_weights(tmp_path_factory):
    folders = []
    for name in ("target", "draft"):
        folders.append(tmp_path_factory.mktemp("pair") / name)
        shutil.copytree(BUNDLED / "tiny" / name, folders[-1], ignore=shutil.ignore_patterns("*.safetensors"))
    return folders


def test_a_checkpoint_without_weights_makes_the_inputs_of_the_whole_one(tiny, without_weights):
    read = Reader.load(*without_weights).prepare(ASKED)
    ours, theirs = read.inputs, tiny.reader.prepare(ASKED).inputs
    assert ours.keys() == theirs.keys() and read.draft_inputs is None and read.params == ASKED.params
    for name, value in theirs.items():
        assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value, name


def test_what_was_prepared_elsewhere_is_answered_without_being_read(tiny, without_weights, monkeypatch):
    prepared = replace(ASKED, prepared=Reader.load(*without_weights).prepare(ASKED))
    arrived = pickle.loads(pickle.dumps(prepared))
    alone = tiny.generate(ASKED)
    monkeypatch.setattr(Reader, "read", None)
    answer = tiny.generate(arrived)
    assert answer.token_ids == alone.token_ids and answer.text == alone.text


def test_what_cannot_be_read_is_said_as_ever(without_weights, tmp_path):
    reader = Reader.load(*without_weights)
    with pytest.raises(HippoError, match=r"gone\.mp4"):
        reader.prepare(hippo.Request([{"role": "user", "content": [{"type": "video", "video": "gone.mp4"}]}]))
    with pytest.raises(HippoError, match="no checkpoint folder"):
        Reader.load(str(tmp_path / "gone"))
