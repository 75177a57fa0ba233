"""From a name to a loaded model: the bundled pair, checkpoint folders and hub ids, with failures said in one line."""

from __future__ import annotations

import atexit
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hippo import tensor_parallel
from hippo.device import free_memory, has_bfloat16, has_products
from hippo.errors import BadRequest, HippoError
from hippo.families import Family, require_family

BUNDLED = Path(__file__).parent / "bundled"
SPREAD = "all"  # a device: layer by layer over all GPUs
LARGE = 256 << 20  # bytes of weights from which reading them takes longer than starting operations
PARTS = "parts"  # a device: a part of each layer in each of the processes that torchrun started, see `tensor_parallel`


@dataclass(frozen=True)
class Checkpoint:
    """A folder or hub id, the device to put it on (or SPREAD or PARTS), the torch dtype's name (or "auto"), whether
    code that the checkpoint brings may run, and its attention as `known_attention` returns it."""

    source: str
    device: str
    dtype: str
    trust_remote_code: bool = False
    attention: str = ""

    @property
    def first_device(self) -> str:
        """The device that its inputs are put on."""
        return _first(self.device)

    @property
    def identity(self) -> dict[str, Any]:
        """What its measurements are kept under."""
        folder = Path(self.source)
        source = str(folder.resolve()) if folder.is_dir() else self.source
        found = {"source": source, "device": self.device, "dtype": self.dtype, "bytes": stored_bytes(self.source)}
        return found | ({"attention": self.attention} if self.attention else {})


def resolve(
    target: str | Path,
    draft: str | Path | None,
    device: str,
    dtype: str,
    draft_device: str,
    trust_remote_code: bool = False,
    attention: str = "",
) -> tuple[Checkpoint, Checkpoint | None]:
    """Where the models are and where they will run. Raises HippoError."""
    if str(target) == "tiny":
        target, draft = BUNDLED / "tiny" / "target", draft or BUNDLED / "tiny" / "draft"
    if draft is not None and str(draft) == "tiny":
        draft = BUNDLED / "tiny" / "draft"
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise HippoError(f"unknown dtype {dtype!r}", "use auto, float32, bfloat16 or float16")
    several, place = torch.cuda.device_count() > 1, pick_device(device)
    if tensor_parallel.world_size() > 1:
        place = PARTS
    elif several and device == "auto" and stored_bytes(str(target)) > free_memory(place):
        place = SPREAD
    if draft_device == "auto":
        draft_place = "cuda:1" if several and device == "auto" and place == "cuda:0" else _first(place)
    else:
        draft_place = pick_device(draft_device)
    here = Checkpoint(str(target), place, _dtype_on(place, dtype, str(target)), trust_remote_code, attention)
    if draft is None:
        return here, None
    # Where both are on a CPU they have one precision: embeddings of the target serve the draft.
    wanted = here.dtype if place == draft_place == "cpu" else dtype
    precision = _dtype_on(draft_place, wanted, str(draft))
    return here, Checkpoint(str(draft), draft_place, precision, trust_remote_code, attention)


def pick_device(device: str) -> str:
    """ "auto" made concrete; raises HippoError for a device this machine lacks."""
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == SPREAD:
        if not torch.cuda.is_available():
            raise HippoError("there is no GPU here to spread over", "use --device cpu")
        return device
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise HippoError(f"unknown device {device!r}", "use auto, cpu, cuda, cuda:1 or all") from None
    if wanted.type == "cpu":
        return "cpu"
    if wanted.type != "cuda":
        raise HippoError(f"device {device!r} is not supported", "use auto, cpu, cuda or cuda:1")
    if (wanted.index or 0) >= torch.cuda.device_count():
        raise HippoError(f"there is no device {device!r} here", "use --device cpu; `hippo doctor` lists devices")
    return device


def load_processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's processor. Raises HippoError."""
    from transformers import AutoProcessor

    with explained(checkpoint.source):
        require_served(checkpoint)
        processor = AutoProcessor.from_pretrained(checkpoint.source, trust_remote_code=checkpoint.trust_remote_code)
    if getattr(processor, "video_processor", None) is None:
        raise HippoError(
            f"{checkpoint.source} takes no video", "use a video-LLM checkpoint, such as Qwen/Qwen2.5-VL-7B-Instruct"
        )
    return processor


def load_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's configuration, as its model would have it. Raises HippoError."""
    from transformers import AutoConfig

    with explained(checkpoint.source):
        return AutoConfig.from_pretrained(checkpoint.source, trust_remote_code=checkpoint.trust_remote_code)


def load_target(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's model, in evaluation mode on its device. Raises HippoError."""
    require_memory(checkpoint)
    with explained(checkpoint.source):
        return load_model(checkpoint)


def known_attention(wanted: str | Mapping[str, str] | None) -> str:
    """The name of an attention as transformers' from_pretrained takes it, or JSON of a mapping from the parts of a
    configuration to names; "" for transformers' own choice. Raises BadRequest."""
    names = [*wanted.values()] if isinstance(wanted, Mapping) else [] if wanted is None else [wanted]
    if isinstance(wanted, str) and wanted.startswith("{"):
        try:
            return known_attention(json.loads(wanted))
        except ValueError:
            raise BadRequest(f"attn_implementation {wanted!r} is no JSON", "use a name such as sdpa") from None
    for name in names:
        if not isinstance(name, str) or not name:
            raise BadRequest(f"attn_implementation {name!r} is no name", "use a name such as sdpa")
        if name.startswith("paged|"):
            raise BadRequest(f"attention {name!r} needs transformers' own paged cache", "use the name without paged|")
    return json.dumps(dict(wanted), sort_keys=True) if isinstance(wanted, Mapping) else wanted or ""


@contextmanager
def _attention_explained(checkpoint: Checkpoint) -> Iterator[None]:
    """Name the attention that a model cannot have; transformers raises where its family has none or a package is not
    there."""
    try:
        yield
    except (ValueError, ImportError) as error:
        text = " ".join(str(error).split())
        if not (checkpoint.attention and ("attention" in text.lower() or "attn_implementation" in text)):
            raise
        raise BadRequest(
            f"{checkpoint.source} cannot have attention {checkpoint.attention!r} here ({text[:160]})",
            "use sdpa or eager, or leave --attn-implementation out",
        ) from None


def load_model(checkpoint: Checkpoint) -> nn.Module:
    """`load_target` without its words for what goes wrong, beside attention that it cannot have."""
    with _attention_explained(checkpoint):
        return _load_model(checkpoint)


def _load_model(checkpoint: Checkpoint) -> nn.Module:
    from transformers import AutoModelForImageTextToText

    given: dict[str, Any] = {
        "dtype": getattr(torch, checkpoint.dtype, "auto"),
        "trust_remote_code": checkpoint.trust_remote_code,
    }
    if checkpoint.attention:
        named = checkpoint.attention.startswith("{")
        given["attn_implementation"] = json.loads(checkpoint.attention) if named else checkpoint.attention
    if checkpoint.device == PARTS:
        from transformers.distributed import DistributedConfig

        given["distributed_config"] = DistributedConfig(tp_plan="auto")
        atexit.register(tensor_parallel.shutdown)
    elif checkpoint.device == SPREAD:
        given["device_map"] = "auto"
    elif _settings(checkpoint.source).get("quantization_config"):
        # Packed weights may not be moved, and some would go to a GPU by themselves.
        given["device_map"] = {"": checkpoint.device}
    else:
        model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint.source, **given)
        return model.to(checkpoint.device).eval()
    return AutoModelForImageTextToText.from_pretrained(checkpoint.source, **given).eval()


def quantisation_of(model: Any) -> str:
    """What a model is quantised by, such as "bitsandbytes"; empty if it is not."""
    settings = getattr(model.config, "quantization_config", None)
    if settings is None:
        return ""
    method = settings["quant_method"] if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method))


def require_memory(checkpoint: Checkpoint) -> None:
    """Refuse a local checkpoint that cannot fit, rather than be killed half-way. Raises HippoError."""
    needed, free = _needed(checkpoint), _free(checkpoint.device)
    if needed > free:
        raise HippoError(
            f"not enough memory: {checkpoint.source} needs up to {needed / 2**30:.1f} GiB on {checkpoint.device}, "
            f"{free / 2**30:.1f} GiB are free",
            "use a smaller checkpoint, another --device or --dtype bfloat16",
        )


def require_room(target: Checkpoint, draft: Checkpoint, bits: int) -> None:
    """Refuse a local draft for which there is no room beside its target, and say what would fit. Raises HippoError."""
    size, shared = _needed(draft), draft.device == target.first_device
    free = _free(draft.device) - (_needed(target) if shared else 0)
    if free < 0 or size * bits / 16 <= free:  # a target without room is refused by itself
        return
    fits = next((fewer for fewer in (8, 4) if fewer < bits and size * fewer / 16 <= free), None)
    raise HippoError(
        f"no room for the draft: {draft.source} needs up to {size * bits / 16 / 2**30:.1f} GiB on {draft.device}, "
        f"{free / 2**30:.1f} GiB are left" + (" beside the target" if shared else ""),
        (f"use --draft-bits {fits}, which fits, or " if fits else "use ")
        + "a smaller draft, another --draft-device, or --method ar",
    )


def require_itself_packable(target: Checkpoint) -> None:
    """Refuse a quantised target as a draft in fewer bits: its weights cannot be packed again. Raises BadRequest."""
    if _settings(target.source).get("quantization_config"):
        raise no_self_draft(target.source)


def no_self_draft(source: str) -> BadRequest:
    """Why a quantised target cannot draft for itself."""
    return BadRequest(
        f"{source} is quantised already, so it cannot draft for itself in fewer bits",
        "use a smaller --draft, or the checkpoint that is not quantised as --draft with --draft-bits 4",
    )


def notes_on(target: Checkpoint, draft: Checkpoint | None, bits: int) -> tuple[str, ...]:
    """What a user should know of how these will run: a dtype without fast products, layers that cannot be packed."""
    notes = []
    if target.first_device == "cpu" and not has_products(target.dtype):
        notes.append(f"this CPU has no fast products in {target.dtype}: --dtype float32 is faster")
    if draft is not None and bits != 16:
        notes += [note] if (note := _packing_note(draft, bits)) else []
    return tuple(notes)


def _packing_note(draft: Checkpoint, bits: int) -> str:
    from hippo.forward.quantize import unpacked

    if _settings(draft.source).get("quantization_config"):
        return f"the draft is quantised already: draft_bits {bits} changes nothing"
    try:
        left, every = unpacked(skeleton(draft.source), bits)
    except Exception:  # its code or configuration is special; it says so when it is loaded
        return ""
    if not left:
        return ""
    return f"{len(left)} of the draft's {every} linear layers keep 16 bits: {', '.join(dict.fromkeys(left.values()))}"


def skeleton(source: str) -> Any:
    """A checkpoint's model without weights, on the meta device, from its configuration on this machine. A quantised one
    has the layers of one that is not. Raises whatever transformers raises."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def _needed(checkpoint: Checkpoint) -> int:
    """Bytes that its weights take at most once they are loaded; 0 if that is not known before."""
    weights = stored_bytes(checkpoint.source)
    packed = bool(weights and _settings(checkpoint.source).get("quantization_config"))
    grows = checkpoint.first_device == "cpu" and checkpoint.dtype == "float32" and not packed
    return weights * (2 if grows else 1)


def own_processor(processor: Any, target: Checkpoint, draft: Checkpoint) -> Any:
    """The draft's own processor where its inputs are not those that the target's makes: of another family, with other
    settings or another chat template. None where one processor serves both.

    processor: the target's. A draft of the same family may come without a processor or a chat template. Raises
    HippoError, also if the tokenizers differ.
    """
    from transformers import AutoTokenizer

    with explained(draft.source):
        one_family = require_served(draft) is require_served(target)
        try:
            own = load_processor(draft)
        except HippoError:
            if not one_family:
                raise
            tokenizer = AutoTokenizer.from_pretrained(draft.source, trust_remote_code=draft.trust_remote_code)
            require_same_tokenizer(processor.tokenizer, tokenizer)
            return None
    require_same_tokenizer(processor.tokenizer, own.tokenizer)
    own.chat_template = own.chat_template or processor.chat_template
    same = own.chat_template == processor.chat_template and own.to_dict() == processor.to_dict()
    return None if one_family and same else own


def require_same_tokenizer(target: Any, draft: Any) -> None:
    """Draft and target must mean the same by every token id. Raises HippoError naming the first that differs.

    Only the tokenizers count: weights padded to different vocabulary sizes are fine.
    """
    ours, theirs = ({index: token for token, index in t.get_vocab().items()} for t in (target, draft))
    for index in sorted(ours.keys() | theirs.keys()):
        if ours.get(index) != theirs.get(index):
            raise HippoError(
                f"draft and target have different tokenizers: token {index} is {ours.get(index)!r} for the target and "
                f"{theirs.get(index)!r} for the draft",
                "use a draft of the target's own family",
            )


def require_there(source: str) -> None:
    """Refuse a checkpoint that is neither a folder, nor cached, nor on the hub. Raises HippoError at once, where
    loading would first try for minutes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if Path(source).is_dir():
        return
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise HippoError(
            f"there is no checkpoint folder {source}", "name a folder that save_pretrained wrote, or a hub id"
        )
    try:
        if _cached(source) is None:
            HfApi().model_info(source, timeout=10)
    except GatedRepoError:
        raise HippoError(f"{source} is gated", "accept its terms on the hub and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise HippoError(f"the model hub knows no {source}", "check the model id") from None
    except Exception as error:
        raise HippoError(
            f"{source} is not on this machine and the model hub cannot be reached ({type(error).__name__})",
            "check the name and the network, or name a local folder",
        ) from None


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Say in one line why a checkpoint does not load."""
    require_there(source)
    try:
        yield
    except (HippoError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Checkpoints fail in many ways (safetensors, JSON, missing classes); the first line of each is enough.
        text = " ".join(str(error).split())
        if isinstance(error, ImportError) or "pip install" in text:
            raise HippoError(f"{source} needs a package that is not here ({text})", "install it") from None
        if "trust_remote_code" in text:
            raise _brings_code(source, "its processor or model") from None
        raise HippoError(
            f"{source} does not load ({text[:160]})", "check that it is a whole video-LLM checkpoint"
        ) from None


def require_served(checkpoint: Checkpoint) -> Family:
    """The checkpoint's family. Raises HippoError where there is none, or where its code may not run."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    settings = _settings(checkpoint.source)
    model_type = settings.get("model_type")
    if model_type is None:  # transformers says why
        model_type = AutoConfig.from_pretrained(checkpoint.source, trust_remote_code=False).model_type
    if "auto_map" in settings and model_type not in CONFIG_MAPPING_NAMES and not checkpoint.trust_remote_code:
        raise _brings_code(checkpoint.source, f"models of type {model_type!r}, which transformers does not have")
    return require_family(model_type)


def _brings_code(source: str, of: str) -> HippoError:
    return HippoError(
        f"{source} brings its own code for {of}, and none is run unasked",
        "if you trust it, add --trust-remote-code (in Python trust_remote_code=True); it also needs to be of a family "
        "that `hippo models` lists",
    )


def _settings(source: str) -> dict[str, Any]:
    """Its config.json, whether or not transformers knows the type of model."""
    from transformers import PreTrainedConfig

    return PreTrainedConfig.get_config_dict(source)[0]


def _dtype_on(device: str, dtype: str, source: str) -> str:
    """ "auto" made concrete on a CPU: bfloat16 where it has products for it and the weights are stored so and large
    enough that reading them takes the time; else float32."""
    if dtype != "auto" or _first(device) != "cpu":
        return dtype
    if (weights := stored_bytes(source)) <= LARGE:
        return "float32"
    settings = _settings(source)
    return cpu_dtype(stored_dtype(settings), weights, bool(settings.get("quantization_config")))


def cpu_dtype(stored: str, weights: int, quantised: bool = False) -> str:
    """What "auto" is on a CPU, for weights of so many bytes that are stored in a dtype."""
    half = has_bfloat16() and stored == "bfloat16" and weights > LARGE and not quantised
    return "bfloat16" if half else "float32"


def stored_dtype(settings: dict[str, Any]) -> str:
    """The dtype that a configuration names, such as "bfloat16"; "" if it names none."""
    text = settings.get("text_config") or {}
    found = settings.get("dtype") or settings.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return str(found or "").removeprefix("torch.")


def _first(device: str) -> str:
    if device == PARTS:
        return tensor_parallel.local_device()
    return "cuda:0" if device == SPREAD else device


def known_bits(wanted: int | str) -> int:
    """4, 8 or 16; 0 for "auto". Raises BadRequest."""
    if str(wanted) not in ("auto", "4", "8", "16"):
        raise BadRequest(f"draft_bits {wanted!r} is not known", "use 4, 8, 16 or auto")
    return 0 if wanted == "auto" else int(wanted)


def bits_for(draft: Checkpoint, wanted: int | str, place: str) -> int:
    """Bits of a draft's weights. "auto" is 16 for a draft that is quantised, on a GPU, or so small that reading its
    weights takes no time, and else what this CPU multiplies fastest. Raises BadRequest."""
    from hippo.forward.quantize import fastest_bits

    if bits := known_bits(wanted):
        return bits
    settings = _settings(draft.source)
    if place == "process" or draft.device != "cpu" or settings.get("quantization_config"):
        return 16
    text = settings.get("text_config", settings)
    hidden, inner = text.get("hidden_size"), text.get("intermediate_size")
    return fastest_bits([(inner, hidden), (hidden, inner)]) if hidden and inner else 16


def stored_bytes(source: str) -> int:
    """Bytes of the weights of a checkpoint folder, or of a hub id in the local cache; 0 where they are not known before
    they are there."""
    folder = Path(source)
    if not folder.is_dir():
        folder = _cached(source) or folder
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]["total_size"])
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _cached(source: str) -> Path | None:
    """The folder that a hub id has in the local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _free(device: str) -> int:
    """Bytes that a checkpoint can have on a device."""
    if device == SPREAD:
        return sum(free_memory(f"cuda:{index}") for index in range(torch.cuda.device_count()))
    first = _first(device)
    return free_memory(first) * (tensor_parallel.world_size() if device == PARTS and first != "cpu" else 1)
