"""Names to models, and failures in one line."""

import json
import re
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

import hippo
from hippo import checkpoints
from hippo.checkpoints import (
    BUNDLED,
    Checkpoint,
    known_attention,
    load_model,
    load_processor,
    load_target,
    own_processor,
    resolve,
    stored_bytes,
)
from hippo.cli.demo import CLIP
from hippo.draft import process
from hippo.draft.worker import load_draft
from hippo.errors import BadRequest, HippoError

TARGET, DRAFT = BUNDLED / "tiny" / "target", BUNDLED / "tiny" / "draft"


def test_tiny_is_the_bundled_pair():
    target, draft = resolve("tiny", None, "cpu", "auto", "auto")
    assert target == Checkpoint(str(TARGET), "cpu", "float32") and draft.source == str(BUNDLED / "tiny" / "draft")


def test_the_bundled_pair_is_small_enough():
    assert sum(file.stat().st_size for file in (BUNDLED / "tiny").rglob("*")) < 64e6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "there is no device 'cuda:99'"),
        ({"device": "mps"}, "'mps' is not supported"),
        ({"dtype": "float12"}, "unknown dtype 'float12'"),
    ],
)
def test_wrong_devices_and_dtypes(options, words):
    with pytest.raises(HippoError, match=words):
        resolve(**({"target": "x", "draft": None, "device": "cpu", "dtype": "auto", "draft_device": "auto"} | options))


@pytest.fixture
def gpus(monkeypatch):
    """As if there were two, with 10 GiB free on each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 30, 10 << 30))


def places(**options):
    """The devices of target and draft."""
    target, draft = resolve("x", "y", **{"device": "auto", "dtype": "auto", "draft_device": "auto"} | options)
    return target.device, draft.device


def test_one_gpu_each_where_there_are_two_and_the_target_fits_one(gpus, monkeypatch):
    assert places() == ("cuda:0", "cuda:1") and places(draft_device="cuda:0") == ("cuda:0", "cuda:0")
    assert places(device="cuda:1") == ("cuda:1", "cuda:1")
    monkeypatch.setattr(checkpoints, "stored_bytes", lambda source: 15 << 30)
    assert places() == ("all", "cuda:0"), "it fits both together"
    assert places(device="cuda:0") == ("cuda:0", "cuda:0")
    checkpoints.require_memory(Checkpoint(str(TARGET), "all", "auto"))
    with pytest.raises(HippoError, match=r"15\.0 GiB on cuda:0, 10\.0 GiB are free"):
        checkpoints.require_memory(Checkpoint(str(TARGET), "cuda:0", "auto"))


def test_all_gpus_need_one():
    with pytest.raises(HippoError, match="no GPU here to spread over"):
        places(device="all")


def test_under_torchrun_each_process_has_a_part(gpus, monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert places() == ("parts", "cuda:1") and Checkpoint("x", "parts", "auto").first_device == "cuda:1"
    checkpoints.require_memory(Checkpoint(str(TARGET), "parts", "auto"))


def test_a_target_may_be_spread_over_devices(monkeypatch, tmp_path):
    """The second device is a disk here, from which accelerate fetches layers as it would from another GPU."""
    others = ("embed_tokens", "norm", "rotary_emb")
    spread = dict.fromkeys(("model.visual", "lm_head", *(f"model.language_model.{name}" for name in others)), "cpu")
    spread |= {f"model.language_model.layers.{layer}": "cpu" if layer < 20 else "disk" for layer in range(24)}
    usual = transformers.AutoModelForImageTextToText.from_pretrained

    def over_both(source, *, device_map, **given):
        assert device_map == "auto"
        return usual(source, device_map=spread, offload_folder=str(tmp_path), **given)

    with hippo.load("tiny", start_draft=False) as llm:
        monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", over_both)
        target = load_model(Checkpoint(str(TARGET), "all", "float32"))
        monkeypatch.undo()
        assert {parameter.device.type for parameter in target.parameters()} == {"cpu", "meta"}
        request = llm.inputs(CLIP)
        expected = llm.generate(CLIP, method="ar", max_new_tokens=12).token_ids
        draft = load_draft(str(DRAFT), "float32", "cpu")
        for method in ("ar", "sd", "hippo"):
            out = hippo.generate(target, draft, request, method=method, max_new_tokens=12)
            assert out.token_ids == expected and not out.warnings


def test_a_missing_folder_and_an_unreachable_hub(monkeypatch):
    with pytest.raises(HippoError, match="there is no checkpoint folder"):
        load_processor(Checkpoint("./nowhere", "cpu", "auto"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HippoError, match="cannot be reached"):
        load_processor(Checkpoint("nobody/nothing", "cpu", "auto"))


@pytest.mark.parametrize(
    ("error", "words"),
    [(GatedRepoError, "is gated: accept its terms on the hub"), (RepositoryNotFoundError, "the model hub knows no")],
)
def test_what_the_hub_refuses(monkeypatch, error, words):
    def refuse(*_, **__):
        raise error("no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(HippoError, match=words) as told:
        load_processor(Checkpoint("somebody/something", "cpu", "auto"))
    assert "\n" not in str(told.value)


def test_a_checkpoint_whose_processor_takes_no_video(monkeypatch):
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: SimpleNamespace())
    with pytest.raises(HippoError, match="takes no video: use a video-LLM checkpoint"):
        load_processor(Checkpoint(str(TARGET), "cpu", "auto"))


def test_code_of_a_checkpoint_is_not_run_unasked(tmp_path):
    settings = {"model_type": "somebodys_video_llm", "auto_map": {"AutoConfig": "code.SomebodysConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    target = Checkpoint(str(TARGET), "cpu", "auto")
    for load in (load_processor, lambda checkpoint: own_processor(None, target, checkpoint)):
        with pytest.raises(HippoError, match=r"own code for models of type 'somebodys_video_llm'.*--trust-remote-code"):
            load(Checkpoint(str(tmp_path), "cpu", "auto"))
    with pytest.raises(HippoError, match="knows no model of type 'somebodys_video_llm'"):
        load_processor(Checkpoint(str(tmp_path), "cpu", "auto", trust_remote_code=True))
    assert not (tmp_path / "was_run").exists()


def test_code_of_a_processor_is_not_run_unasked(tmp_path):
    with (
        pytest.raises(HippoError, match=r"none is run unasked: .*--trust-remote-code"),
        checkpoints.explained(tmp_path),
    ):
        raise ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")


@pytest.mark.parametrize("trusted", [False, True])
def test_trust_reaches_everything_that_is_loaded(monkeypatch, trusted):
    told = []
    for name in ("AutoProcessor", "AutoTokenizer", "AutoModelForImageTextToText"):
        plain = getattr(transformers, name).from_pretrained

        def loading(*args, plain=plain, name=name, **options):
            told.append((name, options.get("trust_remote_code")))
            return plain(*args, **options)

        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", loading)
    monkeypatch.setattr(process, "may_fork", lambda *_: False)
    monkeypatch.setattr(process, "fresh", lambda pipe, arguments: told.append(("draft", arguments[3])) or Ended())
    with hippo.load("tiny", start_draft=False, trust_remote_code=trusted) as llm:
        llm.pair.draft.worker()
    with pytest.raises(HippoError, match="draft model did not load"):
        hippo.load("tiny", trust_remote_code=trusted)
    load_draft(BUNDLED / "tiny" / "draft", "auto", "cpu", trusted)
    loaded = ("AutoProcessor", "AutoTokenizer", "AutoModelForImageTextToText")
    assert {(name, trusted) for name in loaded} <= set(told) and (trusted or True not in {trust for _, trust in told})
    assert [trust for name, trust in told if name == "draft"] == ["trust" if trusted else "no code"] * 2


@pytest.mark.parametrize("given", [None, "eager", {"vision_config": "eager"}])
def test_attention_reaches_both_models(monkeypatch, given):
    told, plain = [], transformers.AutoModelForImageTextToText.from_pretrained

    def loading(*args, **options):
        told.append(options.get("attn_implementation"))
        return plain(*args, **options)

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", loading)
    with hippo.load("tiny", attn_implementation=given, draft_worker="inline") as llm:
        config = llm.pair.target.config
    parts = {name: getattr(config, name)._attn_implementation for name in ("text_config", "vision_config")}
    assert parts == {
        "text_config": "eager" if given == "eager" else "sdpa",
        "vision_config": "eager" if given else "sdpa",
    }
    assert told == [given] * 2
    monkeypatch.setattr(process, "may_fork", lambda *_: False)
    monkeypatch.setattr(process, "fresh", lambda pipe, arguments: told.append(arguments[5]) or Ended())
    with hippo.load("tiny", attn_implementation=given, start_draft=False) as llm:
        llm.pair.draft.worker()
    assert told[-1] == known_attention(given)


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ("paged|eager", "'paged|eager' needs transformers' own paged cache"),
        ({"text_config": "paged|sdpa"}, "'paged|sdpa' needs transformers' own paged cache"),
        ("{eager", "is no JSON"),
        ({"text_config": 3}, "3 is no name"),
        ("nonsense", "cannot have attention 'nonsense' here"),
        ("flex_attention", "cannot have attention 'flex_attention' here"),
        ("flash_attention_2", "cannot have attention 'flash_attention_2' here"),
    ],
)
def test_attention_that_cannot_be_is_refused_by_name(given, cause):
    with pytest.raises(BadRequest, match=re.escape(cause)):
        hippo.load("tiny", attn_implementation=given, start_draft=False)


class Ended:
    """A child process that has ended."""

    pid = 0

    def poll(self):
        return 1

    def wait(self, timeout=None):
        return 1


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(HippoError, match="does not load"):
        load_processor(Checkpoint(str(tmp_path), "cpu", "auto"))


def test_a_package_that_a_processor_lacks_is_named(tmp_path):
    with pytest.raises(HippoError, match="num2words"), checkpoints.explained(str(tmp_path)):
        raise ImportError("Package `num2words` is required. Install it with `pip install num2words`.")


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("videollama3_qwen2", "knows no model of type 'videollama3_qwen2'"),
        ("qwen2", "'qwen2' are no video-LLMs"),
        ("video_llava", "'video_llava' are video-LLMs that HIPPO does not serve yet"),
    ],
)
def test_a_checkpoint_of_another_kind_is_told_by_its_type(tmp_path, model_type, words):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(HippoError, match=words):
        load_processor(Checkpoint(str(tmp_path), "cpu", "auto"))


def test_not_enough_memory_is_told_before_loading(monkeypatch):
    monkeypatch.setattr(checkpoints, "free_memory", lambda device: 1000)
    with pytest.raises(HippoError, match="not enough memory"):
        load_target(Checkpoint(str(TARGET), "cpu", "float32"))


@pytest.mark.parametrize(
    ("share", "bits", "words"),
    [
        (
            1.1,
            16,
            r"no room for the draft: .*draft needs up to .* GiB on cpu, .* left beside the target: use a smaller",
        ),
        (1.7, 16, "use --draft-bits 8, which fits, or a smaller draft, another --draft-device, or --method ar"),
        (1.3, 8, "use --draft-bits 4, which fits"),
        (1.7, 8, ""),
        (2.1, 16, ""),
        (0.5, 16, ""),  # the target is refused by itself
    ],
)
def test_no_room_for_the_draft_is_said_before_loading(monkeypatch, share, bits, words):
    """share: of the target's bytes that are free; the draft is as large as it."""
    both = [Checkpoint(str(folder), "cpu", "float32") for folder in (TARGET, DRAFT)]
    monkeypatch.setattr(checkpoints, "stored_bytes", lambda source: 1 << 20)
    monkeypatch.setattr(checkpoints, "free_memory", lambda device: int(share * (2 << 20)))
    if not words:
        checkpoints.require_room(*both, bits)
        return
    with pytest.raises(HippoError, match=words) as error:
        checkpoints.require_room(*both, bits)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(checkpoints, "load_model", None)
    with pytest.raises(HippoError, match="no room for the draft"):
        hippo.load("tiny", draft_bits=bits, dtype="float32")


def quantised(folder):
    shutil.copytree(TARGET, folder)
    change(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    return folder


def test_a_quantised_target_cannot_draft_for_itself_in_fewer_bits(tmp_path):
    folder = quantised(tmp_path / "packed")
    for bits in ("auto", 4, 8):
        with pytest.raises(BadRequest, match=r"is quantised already, .* not quantised as --draft with --draft-bits 4"):
            hippo.load(folder, "self", draft_bits=bits)


def test_what_will_not_be_as_wished_is_said(monkeypatch, tmp_path):
    target, draft = Checkpoint(str(TARGET), "cpu", "float32"), Checkpoint(str(DRAFT), "cpu", "float32")
    assert checkpoints.notes_on(target, None, 16) == checkpoints.notes_on(target, draft, 16) == ()
    packed = Checkpoint(str(quantised(tmp_path / "packed")), "cpu", "float32")
    assert checkpoints.notes_on(target, packed, 4) == ("the draft is quantised already: draft_bits 4 changes nothing",)
    odd = shutil.copytree(DRAFT, tmp_path / "odd")
    settings = json.loads((DRAFT / "config.json").read_text())
    change(odd / "config.json", text_config=settings["text_config"] | {"intermediate_size": 200})
    (note,) = checkpoints.notes_on(target, Checkpoint(str(odd), "cpu", "float32"), 4)
    assert re.match(r"\d+ of the draft's \d+ linear layers keep 16 bits: .* width not a multiple of", note)
    monkeypatch.setattr(checkpoints, "has_products", lambda dtype: dtype != "float16")
    slow = Checkpoint(str(TARGET), "cpu", "float16")
    assert checkpoints.notes_on(slow, None, 16) == (
        "this CPU has no fast products in float16: --dtype float32 is faster",
    )


def test_notes_are_warnings_of_the_first_answer(monkeypatch):
    monkeypatch.setattr("hippo.llm.notes_on", lambda *_: ("layers keep 16 bits",))
    with hippo.load("tiny", start_draft=False) as llm:
        first, second = (llm.generate(CLIP, method="ar", max_new_tokens=2) for _ in range(2))
    assert first.warnings == ("layers keep 16 bits",) and second.warnings == ()


def test_weights_of_a_hub_id_are_counted_where_they_are_cached(monkeypatch, tmp_path):
    shutil.copy(TARGET / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert stored_bytes("somebody/something") == 100
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 900}}')
    assert stored_bytes("somebody/something") == 900
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    assert stored_bytes("somebody/something") == 0 == stored_bytes("not a name//at all")


def test_a_different_tokenizer_is_refused_by_its_first_different_token(tmp_path):
    folder = shutil.copytree(BUNDLED / "tiny" / "draft", tmp_path / "draft")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.get)[400:402]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(content))
    with pytest.raises(HippoError, match=f"token {vocabulary[b]} is"):
        own_processor_of(folder)


def own_processor_of(draft):
    target = Checkpoint(str(TARGET), "cpu", "auto")
    return own_processor(load_processor(target), target, Checkpoint(str(draft), "cpu", "auto"))


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_one_processor_serves_a_pair_that_was_made_for_each_other(tmp_path):
    assert own_processor_of(DRAFT) is None and own_processor_of(TARGET) is None
    bare = shutil.copytree(DRAFT, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    assert own_processor_of(bare) is None
    (bare / "processor_config.json").unlink()
    assert own_processor_of(bare) is None


def test_a_draft_with_other_settings_or_another_template_brings_its_own_processor(tmp_path):
    sized, words, family = (shutil.copytree(DRAFT, tmp_path / name) for name in ("sized", "words", "family"))
    settings = json.loads((DRAFT / "processor_config.json").read_text())
    smaller = {"video_processor": settings["video_processor"] | {"size": {"longest_edge": 9, "shortest_edge": 4}}}
    change(sized / "processor_config.json", **smaller)
    assert own_processor_of(sized).video_processor.size["longest_edge"] == 9
    (words / "chat_template.jinja").write_text("{{ messages }}")
    assert own_processor_of(words).chat_template == "{{ messages }}"
    change(family / "config.json", model_type="qwen2_vl")
    assert own_processor_of(family) is not None
    (family / "processor_config.json").unlink()
    with pytest.raises(HippoError, match="does not load"):
        own_processor_of(family)
