"""transformers' generate() as the front door: `generate(**inputs, custom_generate=hippo.custom_generate(draft))`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, TypedDict, Unpack
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode

from hippo.checkpoints import explained, require_served, resolve, stored_bytes
from hippo.decode import Rules
from hippo.draft import placement, plugin_of
from hippo.errors import BadRequest, out_of_memory_explained, unknown
from hippo.families import FAMILIES, family_of
from hippo.llm import require_one_family
from hippo.pair import Draft, Pair
from hippo.params import SamplingOptions, SamplingParams
from hippo.pruning import Pruner
from hippo.sequence import Sequence
from hippo.stats import Stats

_MEDIA = tuple(dict.fromkeys(name for family in FAMILIES for name in family.media_inputs))
# Options of generate() that ask for more than one sequence of token ids, and the values that do not.
_OFF: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "guidance_scale"), (None, 1)),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), (None, False)),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "dola_layers"), (None,)),
    "penalty_alpha": (None, 0),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
}
# What generate() makes of the inputs for forwards of its own.
_MADE = ("cache", "past_key_values", "position_ids", "attention_mask", "use_cache", "logits_to_keep", "cache_position")
_HINT = "leave it out, or leave out custom_generate"


class CustomOptions(TypedDict, total=False):
    """What is HIPPO's to decide, see `SamplingParams`. All else is an option of generate()."""

    method: str
    decoder: str
    pruner: str | Pruner
    keep_ratio: float | str
    keep_at_most: float
    gamma: int | str
    verify_width: int | str
    seed: int | None


class CustomGenerate:
    """What `hippo.custom_generate` returns. The draft ends when it is closed, or collected; it is a context manager.

    stats: of the last answer.
    """

    def __init__(
        self,
        draft: nn.Module | str | Path | None,
        streamer: Any = None,
        draft_device: str = "auto",
        draft_worker: str = "auto",
        trust_remote_code: bool = False,
        **options: Unpack[CustomOptions],
    ) -> None:
        _require_ours(options)
        SamplingParams.of(**options)
        self.source, self.stats = draft, Stats()
        self._options: dict[str, Any] = {"streamer": streamer, **options}
        self._draft_device, self._draft_worker, self._trusted = draft_device, draft_worker, trust_remote_code
        self._draft: Draft | None = None
        self._lock = threading.Lock()

    @property
    def __signature__(self) -> Signature:
        """By it generate() knows which of its keywords go to `__call__` as they are, rather than to a forward: the
        vision tower then runs here only."""
        several = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("model", "input_ids")]
        several += [Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in ("hippo", *_MEDIA)]
        return Signature([*several, Parameter("rest", Parameter.VAR_KEYWORD)])

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        hippo: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """What generate() calls. input_ids: (1, L). hippo: options for this call, see `custom_generate`.

        Returns (1, L + n) token ids, or an output that holds them as `sequences`. Raises HippoError.
        """
        given = dict(hippo or {})
        streamer, draft_inputs = given.pop("streamer", self._options["streamer"]), given.pop("draft_inputs", None)
        _require_ours(given)
        _require_passed_on()
        _require_served(generation_config, rest)
        inputs = {name: rest[name] for name in _MEDIA if rest.get(name) is not None}
        if len(input_ids) != 1:
            raise BadRequest(f"a batch of {len(input_ids)} requests", "pass one request at a time")
        params = self._params(given, generation_config, input_ids.shape[1])
        rules = _rules(logits_processor, stopping_criteria, input_ids)
        stats, tokens = Stats(), list[int]()
        self.stats = stats
        if streamer is not None:
            streamer.put(input_ids.cpu())
        with out_of_memory_explained():
            draft = None if params.decoder == "ar" else self._draft_for(model, draft_inputs is None)
            sequence = Sequence(
                Pair(model, draft),
                {"input_ids": input_ids, **inputs},
                params,
                stats,
                draft_inputs=None if draft_inputs is None else dict(draft_inputs),
                rules=rules,
            )
            with closing(sequence):
                for some in sequence:
                    tokens += some
                    for token in some if streamer is not None else ():
                        streamer.put(torch.tensor([token]))
        if streamer is not None:
            streamer.end()
        ids: Any = torch.cat([input_ids, input_ids.new_tensor(tokens)[None]], dim=-1)
        return GenerateDecoderOnlyOutput(sequences=ids) if generation_config.return_dict_in_generate else ids

    def close(self) -> None:
        """End the draft. A later call loads it again."""
        with self._lock:
            if self._draft is not None:
                self._draft.close()
                self._draft = None

    def __enter__(self) -> CustomGenerate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _params(self, given: dict[str, Any], config: GenerationConfig, length: int) -> SamplingParams:
        """length: of the prompt, in tokens."""
        options = {**self._options, **given}
        del options["streamer"]
        if config.do_sample and options.get("seed") is None:
            options["seed"] = int(torch.randint(2**62, ()))  # torch.manual_seed fixes the text, as in generate()
        # The processors that generate() made have the temperature and what else bends the distribution.
        return SamplingParams.of(
            **options, max_new_tokens=config.max_length - length, temperature=1.0 if config.do_sample else 0.0
        )

    def _draft_for(self, target: Any, one_family: bool) -> Draft | None:
        """The draft, made at the first call. one_family: it gets the target's inputs."""
        source = self.source
        with self._lock:
            if source is None or self._draft is not None:
                return self._draft
            if source == "ngram":
                self._draft = Draft(plugin_of("ngram"))
                return self._draft
            place = self._draft_worker
            if isinstance(source, nn.Module):
                if one_family:
                    require_one_family(target, source)
                device, dtype = str(next(source.parameters()).device), "auto"
                place = "process" if place == "auto" else place
            else:
                dtype = str(target.dtype).removeprefix("torch.")
                _, point = resolve("", source, str(target.device), dtype, self._draft_device, self._trusted)
                assert point is not None
                with explained(point.source):
                    family = require_served(point)
                if one_family and family is not family_of(target):
                    raise BadRequest(
                        f"{point.source} cannot use the inputs of a {target.config.model_type}",
                        "pass hippo={'draft_inputs': ...}, which its own processor made of the same request",
                    )
                source, device, dtype = point.source, point.device, point.dtype
                weights = stored_bytes(source) + target.get_memory_footprint()
                place = placement(place, str(target.device), device, weights)
            self._draft = Draft(source, dtype=dtype, device=device, place=place, trust_remote_code=self._trusted)
            return self._draft


def custom_generate(
    draft: nn.Module | str | Path | None,
    *,
    streamer: Any = None,
    draft_device: str = "auto",
    draft_worker: str = "auto",
    trust_remote_code: bool = False,
    **options: Unpack[CustomOptions],
) -> CustomGenerate:
    """What transformers' generate() takes as `custom_generate=`: the text is the model's own, decoded with a draft.

    Args:
        draft: a smaller model with the same tokenizer: in memory, a checkpoint folder or a hub id. It is loaded once,
            at the first call. "ngram" drafts without a model. None for method "ar".
        streamer: gets the prompt and each token, as one that is passed to generate().
        draft_device: see `hippo.load`; "auto" is the model's own. A draft in memory stays on its device.
        draft_worker: see `hippo.load`.
        trust_remote_code: let code run that the draft's checkpoint brings.
        options: see `CustomOptions`. `generate(..., hippo={...})` has options for one call, `streamer` among them, and
            `draft_inputs`: the same request by the draft's own processor, needed if the two are of different families.

    Raises:
        HippoError: BadRequest. generate() itself raises that too, CheckpointError and OutOfMemory.
    """
    return CustomGenerate(draft, streamer, draft_device, draft_worker, trust_remote_code, **options)


# What `generate` made for a model; one that is collected takes its draft with it.
_made: WeakKeyDictionary[nn.Module, CustomGenerate] = WeakKeyDictionary()
_made_lock = threading.Lock()


def generate(
    model: Any,
    draft: nn.Module | str | Path | None = None,
    hippo: Mapping[str, Any] | None = None,
    streamer: Any = None,
    tokenizer: Any = None,
    **given: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """What a `custom_generate` repository runs: gets all that generate() was given, and `draft=`.

    The draft lives as long as the model, or until the model is given another one.
    """
    if draft is None:
        raise BadRequest("there is no draft model", "pass draft=: a model, a checkpoint folder or a hub id")
    for name in ("assistant_model", "synced_gpus", "negative_prompt_ids", "negative_prompt_attention_mask"):
        if given.get(name):
            raise BadRequest(f"generate({name}=) is not served", _HINT)
    with _made_lock:
        known = _made.get(model)
        if known is None or known.source != draft:
            if known is not None:
                known.close()
            known = _made[model] = custom_generate(draft)
    strings = given.get("stop_strings") or getattr(given.get("generation_config"), "stop_strings", None)
    strings = strings or model.generation_config.stop_strings
    if strings and tokenizer is not None:  # generate() does not pass a tokenizer on to a callable
        criteria = [*(given.get("stopping_criteria") or ()), StopStringCriteria(tokenizer, strings)]
        given |= {"stop_strings": None, "stopping_criteria": StoppingCriteriaList(criteria)}
    options = {**({} if streamer is None else {"streamer": streamer}), **(hippo or {})}
    # Of the class: a repository with both weights and this code replaces the instance's own generate().
    answer: Tensor | GenerateDecoderOnlyOutput = type(model).generate(
        model, custom_generate=known, hippo=options, **given
    )
    return answer


def _require_ours(options: Mapping[str, Any]) -> None:
    """Raises BadRequest for what is no option of HIPPO's here."""
    for name in options:
        if name in CustomOptions.__annotations__:
            continue
        if name in SamplingOptions.__annotations__:
            raise BadRequest(f"{name} is not HIPPO's to decide here", "pass it to generate()")
        raise unknown("option", name, [*CustomOptions.__annotations__, "streamer", "draft_inputs"])


def _require_passed_on() -> None:
    """Raises BadRequest for what generate() was given and does not pass on to a callable: whoever iterates a streamer
    would wait for ever. Only its own frame knows of it."""
    frame = sys._getframe(2)
    if frame.f_code.co_name == "generate":
        for name, hint in (("streamer", "pass hippo={'streamer': ...}"), ("assistant_model", _HINT)):
            if frame.f_locals.get(name) is not None:
                raise BadRequest(f"generate({name}=) does not reach a custom_generate callable", hint)


def _require_served(config: GenerationConfig, rest: Mapping[str, Any]) -> None:
    """Raises BadRequest for options and inputs of generate() that cannot be honoured. rest: its keywords."""
    for name, off in _OFF.items():
        if (value := getattr(config, name, None)) not in off:
            raise BadRequest(f"generate({name}={value!r}) is not served", _HINT)
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise BadRequest(f"generate() is asked for {mode.value.replace('_', ' ')}, which is not served", _HINT)
    if (mask := rest.get("attention_mask")) is not None and not mask.all():
        raise BadRequest("the prompt is padded", "pass it without padding")
    for name, value in rest.items():
        if value is None or name in _MEDIA:
            continue
        own_cache = hasattr(value, "get_seq_length") and (
            getattr(value, "_is_user_defined", False) or value.get_seq_length()
        )
        # Without the grids of videos generate() counts tokens.
        own_positions = name == "position_ids" and not (value == torch.arange(value.shape[-1]).to(value)).all()
        if own_cache or own_positions or not (name in _MADE or (name == "mm_encoder_outputs" and not value)):
            raise BadRequest(f"generate({name}=) is not served", _HINT)


def _rules(processors: LogitsProcessorList, criteria: StoppingCriteriaList, prompt: Tensor) -> Rules:
    """generate()'s rules, which are on the device of its prompt, (1, L)."""
    eos = {int(token) for one in criteria if hasattr(one, "eos_token_id") for token in one.eos_token_id}
    length = prompt.shape[1]

    def process(ids: Any, scores: Any) -> Any:
        # Drafted tokens may go on after the end, which processors with a state do not expect.
        if eos and not eos.isdisjoint(ids[0, length:].tolist()):
            return scores
        return processors(ids.to(prompt.device), scores.to(prompt.device))

    def ends(tokens: list[int]) -> bool:
        return bool(criteria(torch.cat([prompt, prompt.new_tensor(tokens)[None]], dim=-1), None).all())

    return Rules(process if processors else LogitsProcessorList(), ends, eos)


__all__ = ["CustomGenerate", "CustomOptions", "custom_generate", "generate"]
