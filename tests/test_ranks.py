"""A target held by several processes together: the words are those of one process, whatever each of them sees."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from packaging.version import Version

from hippo import ranks
from hippo.cli.demo import CLIP
from hippo.decode import Sampling

parts = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"), reason="the parts of this transformers do not fit together"
)


def test_one_process_leads_itself():
    assert ranks.count() == 1 and ranks.leads()
    assert ranks.told([1]) == [1] and ranks.least(3) == 3 and ranks.mean(torch.ones(2)).tolist() == [1, 1]


def test_a_seed_is_drawn_once():
    drawn = Sampling(temperature=1.0).seeded()
    assert drawn.seed is not None and drawn.seeded() == drawn and Sampling(seed=3).seeded().seed == 3


def run_by_two(*arguments):
    """What `hippo` prints, run by two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hippo"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )


@parts
def test_two_processes_say_what_generate_says_by_every_method():
    done = run_by_two("verify", CLIP, "--max-new-tokens", 24, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["methods"]  # of one of them alone, or this would not be JSON
    assert [row["method"] for row in rows] == ["ar", "sd", "pearl", "hippo"] and all(row["identical"] for row in rows)
    assert 0 < rows[-1]["kept_tokens"] < 60, "chosen by the attention of all heads"


@parts
def test_sampling_without_a_seed_is_the_same_in_both():
    done = run_by_two("caption", CLIP, "--temperature", 1.5, "--max-new-tokens", 24, "--json")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["stats"]["new_tokens"] <= 24
