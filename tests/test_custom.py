"""transformers' generate() with HIPPO behind it, against plain generate()."""

import copy
import gc
import os
import re
import weakref
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

import hippo
from hippo import custom
from hippo.checkpoints import BUNDLED
from hippo.families import family_of
from tests.drafts import draft
from tests.models import FAMILIES, generated, inputs, model, text_only, with_image

ROOT = Path(__file__).parents[1]
FOLDER = str(ROOT / "integrations" / "custom_generate")


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch, tmp_path):
    """transformers copies a repository's code before it runs it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def speculative():
    """A draft that is right at times, in this process: quick, and it surely drafts."""
    options = {"decoder": "serial", "gamma": 3, "keep_ratio": 1.0}
    with hippo.custom_generate(half_right(), draft_worker="inline", **options) as made:
        yield made


def half_right():
    """A draft whose tokens are the target's, or not."""
    other = copy.deepcopy(model("qwen2_5_vl"))
    with torch.no_grad():
        other.lm_head.weight += 0.05 * torch.randn(
            other.lm_head.weight.shape, generator=torch.Generator().manual_seed(1)
        )
    return other


class Streamer(BaseStreamer):
    """Notes what it gets."""

    def __init__(self):
        self.got = []

    def put(self, value):
        self.got.append(value.tolist())

    def end(self):
        self.got.append("end")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_what_generate_says(family):
    target, clip = model(family), inputs(family)
    options = {"decoder": "serial", "gamma": 3, "keep_ratio": 0.5}
    with hippo.custom_generate(draft("other", family), draft_worker="inline", **options) as made:
        for request in (with_image(family, clip), text_only(family)):
            assert generated(target, request, custom_generate=made) == generated(target, request)
            assert made.stats.checked
    assert made.stats.method == "serial + hippo"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_runs_once(family, speculative):
    """generate() would run it too if the pixels were left to it."""
    target, request = model(family), with_image(family, inputs(family))
    towers = [
        module for name, module in target.named_modules() if re.search(r"(visual|vision_model|vision_tower)$", name)
    ]
    runs = []
    handles = [tower.register_forward_hook(lambda *_: runs.append(1)) for tower in towers]
    try:
        family_of(target).embed(target, request)
        once = len(runs)
        generated(target, request, custom_generate=speculative, hippo={"method": "ar"}, max_new_tokens=2)
    finally:
        for handle in handles:
            handle.remove()
    assert once and len(runs) == 2 * once


def test_options_are_generates_own(speculative):
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    plain = generated(target, request)
    config = copy.deepcopy(target.generation_config)
    config.update(max_new_tokens=9, repetition_penalty=1.3)
    accepted = rejections = 0
    for options in (
        {"max_new_tokens": 5},
        {"max_new_tokens": None, "max_length": request["input_ids"].shape[1] + 7},
        {"eos_token_id": [plain[10], plain[12]]},
        {"eos_token_id": plain[6], "min_new_tokens": 12},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "suppress_tokens": plain[:2]},
        {"prefix_allowed_tokens_fn": lambda batch, ids: [len(ids) % 100, 7]},
        {"do_sample": True, "temperature": 5.0, "top_k": 1},
        {"generation_config": config, "max_new_tokens": 9},
    ):
        expected = generated(target, request, **options)
        assert generated(target, request, custom_generate=speculative, **options) == expected, options
        accepted, rejections = accepted + speculative.stats.accepted, rejections + speculative.stats.rejections
    assert accepted > 9 and rejections > 9, "the draft was right and wrong"


def test_the_end_has_its_reason(speculative):
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    plain = generated(target, request)
    for options, reason in (
        ({"eos_token_id": plain[4]}, "eos"),
        ({"max_new_tokens": 3}, "length"),
        ({"stopping_criteria": [Longer(request["input_ids"].shape[1] + 2)]}, "stop"),
    ):
        generated(target, request, custom_generate=speculative, **options)
        assert speculative.stats.finish == reason


class Longer(StoppingCriteria):
    """Ends a text that is longer, and notes what it saw."""

    def __init__(self, length):
        self.length, self.seen = length, []

    def __call__(self, input_ids, scores, **_):
        self.seen.append(input_ids.tolist())
        return torch.tensor([input_ids.shape[1] > self.length])


class Shifted:
    """Bends the scores by how often it was called, and notes the texts it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.tolist())
        scores[:, len(self.seen) % 7 :: 11] += 3  # into what it gets, as some do
        return scores


def test_processors_and_criteria_with_a_state(speculative):
    """Both see each place once, in order, as in generate()."""
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    saw = []
    for made in (None, speculative):
        processor, criterion = Shifted(), Longer(request["input_ids"].shape[1] + 17)
        tokens = generated(
            target,
            request,
            custom_generate=made,
            logits_processor=LogitsProcessorList([processor]),
            stopping_criteria=StoppingCriteriaList([criterion]),
        )
        saw.append((tokens, processor.seen[: len(tokens)], criterion.seen))
    assert saw[0] == saw[1] and len(saw[0][0]) == 18 and tokens != generated(target, request)[:18]


def test_a_processor_sees_nothing_after_the_end():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    plain, processor = generated(target, request), LogitsProcessorList([lambda ids, scores: seen.append(ids) or scores])
    first = next(token for token in plain[3:] if token not in plain[:3])
    seen = []
    with hippo.custom_generate(draft("same"), draft_worker="inline", decoder="serial", gamma=8, keep_ratio=1.0) as made:
        tokens = generated(target, request, custom_generate=made, eos_token_id=first, logits_processor=processor)
    assert tokens == plain[: plain.index(first) + 1] and made.stats.accepted
    assert len(seen) == len(tokens)


def test_a_sampled_text_has_a_seed(speculative):
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")

    def sampled(torch_seed, **own):
        torch.manual_seed(torch_seed)
        options = {"do_sample": True, "temperature": 1.5, "top_p": 0.9}
        return generated(target, request, custom_generate=speculative, hippo=own, **options)

    assert sampled(1) == sampled(1) == sampled(1, method="ar") != sampled(2)
    assert sampled(1, seed=5) == sampled(2, seed=5) != sampled(1)
    torch.manual_seed(1)
    first = torch.rand(1)
    torch.manual_seed(1)
    generated(target, request, custom_generate=speculative)
    assert torch.rand(1) == first, "a greedy answer draws nothing"


@pytest.mark.parametrize("way", ["own", "call", "folder"])
def test_a_streamer_gets_what_generate_streams(speculative, way):
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    plain, ours = Streamer(), Streamer()
    generated(target, request, streamer=plain)
    if way == "own":
        with hippo.custom_generate(draft("other"), streamer=ours, draft_worker="inline") as made:
            generated(target, request, custom_generate=made)
    elif way == "call":
        generated(target, request, custom_generate=speculative, hippo={"streamer": ours})
    else:
        folder = {"custom_generate": FOLDER, "trust_remote_code": True, "draft": draft("other")}
        generated(target, request, streamer=ours, hippo={"method": "ar"}, **folder)
    assert plain.got == ours.got and ours.got[-1] == "end" and len(ours.got) == 26


def test_a_dict_is_returned_where_it_is_asked_for(speculative):
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    out = target.generate(**request, custom_generate=speculative, return_dict_in_generate=True, max_new_tokens=4)
    assert isinstance(out, GenerateDecoderOnlyOutput)
    assert out.sequences.tolist() == target.generate(**request, max_new_tokens=4).tolist()


REFUSED = {
    "num_beams=2": {"num_beams": 2},
    "num_return_sequences=2": {"num_return_sequences": 2, "do_sample": True},
    "penalty_alpha=0.6": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers='low'": {"dola_layers": "low"},
    "assistant_model=": {"assistant_model": draft("other")},
    "prompt_lookup_num_tokens=3": {"prompt_lookup_num_tokens": 3},
    "constrained beam search": {"force_words_ids": [[1]]},
    "guidance_scale=2.0": {"guidance_scale": 2.0},
    "output_hidden_states=True": {"output_hidden_states": True, "return_dict_in_generate": True},
    "output_attentions=True": {"output_attentions": True, "return_dict_in_generate": True},
    "output_scores=True": {"output_scores": True, "return_dict_in_generate": True},
    "output_logits=True": {"output_logits": True, "return_dict_in_generate": True},
    "use_cache=False": {"use_cache": False},
    "cache_implementation='static'": {"cache_implementation": "static"},
    "position_ids=": {"position_ids": torch.full((3, 1, 34), 2)},
    "streamer=": {"streamer": Streamer()},
    "max_new_tokens is not HIPPO's": {"hippo": {"max_new_tokens": 3}},
    "did you mean keep_ratio": {"hippo": {"keepratio": 0.3}},
    "keep_ratio 3 is not in": {"hippo": {"keep_ratio": 3}},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(speculative, said):
    with pytest.raises(hippo.BadRequest, match=re.escape(said)) as refused:
        generated(model("qwen2_5_vl"), inputs("qwen2_5_vl"), custom_generate=speculative, **REFUSED[said])
    assert "\n" not in str(refused.value)


def test_inputs_that_cannot_be_honoured(speculative):
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    two = {key: torch.cat([value, value]) for key, value in request.items()}
    with pytest.raises(hippo.BadRequest, match="a batch of 2 requests"):
        generated(target, two, custom_generate=speculative)
    padded = request | {"attention_mask": request["attention_mask"].clone()}
    padded["attention_mask"][0, 0] = 0
    with pytest.raises(hippo.BadRequest, match="padded"):
        generated(target, padded, custom_generate=speculative)
    filled = DynamicCache(config=target.config.get_text_config())
    rows = torch.zeros(1, 2, 3, 16)
    for layer in range(3):
        filled.update(rows, rows, layer)
    with pytest.raises(hippo.BadRequest, match=r"(cache|past_key_values)=\) is not served"):
        custom._require_served(target.generation_config, {"past_key_values": filled})
    for name in ("inputs_embeds", "vision_feature_layer"):
        with pytest.raises(hippo.BadRequest, match=f"{name}="):
            custom._require_served(target.generation_config, {name: rows})
    with pytest.raises(hippo.BadRequest, match="mm_encoder_outputs="):
        custom._require_served(target.generation_config, {"mm_encoder_outputs": {"video": rows}})


def test_options_are_checked_before_a_draft_is_loaded():
    with pytest.raises(hippo.BadRequest, match="temperature is not HIPPO's to decide here: pass it to generate"):
        hippo.custom_generate("no such folder", temperature=1.0)
    with pytest.raises(hippo.BadRequest, match="keep_ratio 2 is not in"):
        hippo.custom_generate("no such folder", keep_ratio=2)
    with (
        hippo.custom_generate("./no such folder") as made,
        pytest.raises(hippo.HippoError, match="no checkpoint folder"),
    ):
        generated(model("qwen2_5_vl"), inputs("qwen2_5_vl"), custom_generate=made)


def test_a_draft_of_another_family_needs_inputs_of_its_own():
    target, request, other = model("qwen2_5_vl"), inputs("qwen2_5_vl"), draft("other", "llava_onevision")
    with hippo.custom_generate(other, draft_worker="inline", decoder="serial") as made:
        with pytest.raises(hippo.CheckpointError, match="pass draft_inputs"):
            generated(target, request, custom_generate=made)
        own = {"draft_inputs": inputs("llava_onevision")}
        assert generated(target, request, custom_generate=made, hippo=own) == generated(target, request)
        assert made.stats.checked


def test_the_draft_is_loaded_once_and_ends_with_its_object():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    made = hippo.custom_generate(draft("other"))
    generated(target, request, custom_generate=made)
    process = made._draft.worker().pid
    generated(target, request, custom_generate=made)
    assert made._draft.worker().pid == process
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert generated(target, request, custom_generate=made) == generated(target, request)
    process, gone = made._draft.worker().pid, weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_folders_draft_lives_as_long_as_its_model():
    target, request, small = copy.deepcopy(model("qwen2_5_vl")), inputs("qwen2_5_vl"), draft("other")
    folder = {"custom_generate": FOLDER, "trust_remote_code": True}
    assert generated(target, request, draft=small, **folder) == generated(target, request)
    first = custom._made[target]
    assert generated(target, request, draft=small, **folder) and custom._made[target] is first
    process = first._draft.worker().pid
    assert generated(target, request, draft=draft("wrong"), **folder) == generated(target, request)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    process = custom._made[target]._draft.worker().pid
    del target, first
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_folder_refuses_what_only_it_sees():
    folder = {"custom_generate": FOLDER, "trust_remote_code": True}
    for said, options in (
        ("pass draft=", {}),
        ("assistant_model=", {"draft": draft("other"), "assistant_model": draft("other")}),
        ("synced_gpus=", {"draft": draft("other"), "synced_gpus": True}),
        ("num_beams=2", {"draft": draft("other"), "num_beams": 2}),
    ):
        with pytest.raises(hippo.BadRequest, match=said):
            generated(model("qwen2_5_vl"), inputs("qwen2_5_vl"), **options, **folder)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_n_grams_need_no_draft_model(family):
    target, request = model(family), inputs(family)
    with hippo.custom_generate("ngram") as made:
        assert generated(target, request, custom_generate=made) == generated(target, request)
        assert made.stats.drafter == "ngram" and not made.stats.draft_lost
    also = {"custom_generate": FOLDER, "trust_remote_code": True, "draft": "ngram"}
    assert generated(target, request, **also) == generated(target, request)
    assert custom._made[target].stats.drafter == "ngram"


@pytest.mark.usefixtures("patient_targets")
def test_the_quick_start_runs_as_written(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "transformers.md").read_text(), re.M | re.S)
    names = {}
    exec(blocks[0], names)
    target, request, decode = names["model"], names["inputs"], names["processor"].decode
    plain = generated(target, request, max_new_tokens=48)
    text, said, *streamed = capsys.readouterr().out.splitlines()
    assert text == "".join(streamed) == decode(plain, skip_special_tokens=True)
    assert float(re.match(r"(\S+) tokens per target forward", said)[1]) > 1.3
    exec(blocks[1], names)
    stopped = {"stop_strings": ["."], "tokenizer": names["processor"].tokenizer}
    assert names["ids"][0, request["input_ids"].shape[1] :].tolist() == generated(
        target, request, max_new_tokens=48, **stopped
    )
    assert custom._made[target].source == BUNDLED / "tiny" / "draft"
