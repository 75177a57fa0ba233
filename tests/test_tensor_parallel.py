"""A target held by several processes together: the words are those of one process, whatever each of them sees."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from packaging.version import Version

import hippo
from hippo import tensor_parallel
from hippo.cli.demo import CLIP
from hippo.params import SamplingParams
from tests.models import inputs, model

parts = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"), reason="the parts of this transformers do not fit together"
)


def test_one_process_leads_itself():
    assert tensor_parallel.world_size() == 1 and tensor_parallel.is_leader()
    assert (
        tensor_parallel.broadcast([1]) == [1]
        and tensor_parallel.all_min(3) == 3
        and tensor_parallel.all_mean(torch.ones(2)).tolist() == [1, 1]
    )


def test_a_seed_is_drawn_once():
    drawn = SamplingParams(temperature=1.0).seeded()
    assert drawn.seed is not None and drawn.seeded() == drawn and SamplingParams(seed=3).seeded().seed == 3


def run_by_two(*arguments):
    """What `hippo` prints, run by two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hippo"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600
    )


@parts
def test_two_processes_say_what_generate_says_by_every_method():
    done = run_by_two("verify", CLIP, "--max-new-tokens", 24, "--keep-ratio", 0.1, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["methods"]  # of one of them alone, or this would not be JSON
    assert [row["method"] for row in rows] == ["ar", "sd", "pearl", "hippo"] and all(row["identical"] for row in rows)
    assert 0 < rows[-1]["kept_tokens"] < 60, "chosen by the attention of all heads"


def test_sampling_without_a_seed_uses_the_leaders(monkeypatch):
    seeded = lambda value: replace(value, seed=5) if isinstance(value, SamplingParams) else value  # noqa: E731
    monkeypatch.setattr(tensor_parallel, "broadcast", seeded)
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    options = {"method": "ar", "temperature": 1.5, "max_new_tokens": 24}
    drawn = [hippo.generate(target, None, request, **options, **more).token_ids for more in ({}, {}, {"seed": 5})]
    assert drawn[0] == drawn[1] == drawn[2]
