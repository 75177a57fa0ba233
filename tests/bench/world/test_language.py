"""English: what is written can be read, and says what the scene holds."""

import random

from hypothesis import given
from hypothesis import strategies as st

from hippo.bench.world import ask, describe, facts, make_scene, read
from hippo.checkpoints import BUNDLED


@given(st.integers(0, 10**6), st.integers(0, 100))
def test_a_description_reads_back_as_the_facts(seed, voice):
    scene = make_scene(seed)
    assert read(describe(scene, random.Random(voice))) == facts(scene)


@given(st.integers(0, 10**6))
def test_answers_can_be_read(seed):
    question, answer = ask(make_scene(seed), random.Random(seed))
    assert question.endswith("?") and None not in read(answer)


def test_nonsense_is_not_read():
    assert read("The red circle sings. The red circle moves upwards.")[0] is None


def test_lengths_in_tokens():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "tiny" / "target")
    texts = [describe(make_scene(seed), random.Random(seed)) for seed in range(300)]
    lengths = sorted(len(tokenizer(text).input_ids) + 1 for text in texts)
    assert lengths[0] >= 59 and lengths[-1] <= 200 and len(set(texts)) == 300
