"""What a caller may ask of one answer: `SamplingParams`, checked once, here."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from hippo import plugins
from hippo.errors import BadRequest, unknown

if TYPE_CHECKING:  # torch takes seconds to import, and parameters do not need it
    from torch import Tensor

    from hippo.pruning import Pruner, Signals

METHODS = {
    "ar": ("ar", "none"),
    "sd": ("serial", "none"),
    "pearl": ("parallel", "none"),
    "hippo": ("auto", "hippo"),
}
DECODERS = ("ar", "serial", "parallel", "auto")
PRUNERS = ("none", "uniform", "attention", "specvlm", "hippo")
_ALIASES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}


class SamplingOptions(TypedDict, total=False):
    """What `SamplingParams.of` takes: the fields of `SamplingParams` and other libraries' names for some of them."""

    method: str
    decoder: str
    pruner: str | Pruner | Callable[[Signals, float], Tensor]
    keep_ratio: float | str
    keep_at_most: float
    gamma: int | str
    verify_width: int | str
    max_new_tokens: int
    max_tokens: int
    max_completion_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is decoded. Raises BadRequest for values that make no sense.

    Args:
        method: "ar", "sd", "pearl" or "hippo"; sets decoder and pruner unless they are given.
        decoder: "ar", "serial" (in turns), "parallel", or "auto", which chooses among them by measured costs.
        pruner: "none", "uniform", "attention", "specvlm" or "hippo"; or one of your own: a function (signals,
            keep_ratio) -> kept tokens, a `hippo.pruning.Pruner`, "MODULE:NAME" of either, or the name of an entry
            point. See docs/pruner-plugins.md.
        keep_ratio: share of the video tokens that the draft sees, in (0, 1]; "auto" chooses it for each request, by
            what the scores of its tokens say and what a kept token costs this draft.
        keep_at_most: the largest share that "auto" may choose.
        gamma: tokens drafted at a time, or "auto".
        verify_width: tokens that every target forward after the prefill is padded to, so that in half precision the
            text does not depend on what was drafted and when; 0 is off. "auto" is 8 on a GPU with fused forwards, for
            up to 4096 new tokens, and else 0: on a CPU the text does not depend on it, but for models whose layers are
            not batch-invariant; these have 8 where the CPU has tile products.
        max_new_tokens: the longest answer, in tokens.
        temperature: 0 is greedy.
        top_k: sample among the k likeliest tokens; 0 is off.
        top_p: sample among the likeliest tokens that reach this probability mass; 1 is off.
        min_p: sample among tokens at least this fraction as likely as the likeliest; 0 is off.
        repetition_penalty: None leaves it to the checkpoint's generation config; 1 is off.
        seed: fixes a sampled text; the text is the same by every method.
        stop: strings that end the answer.
        logprobs: give each token's log probability by the target, before penalties and temperature, and those of so
            many of the likeliest tokens, 0 to 20; None is off. See `hippo.TokenInfo`.
    """

    method: str = "hippo"
    decoder: str = ""
    pruner: str | Pruner | Callable[[Signals, float], Tensor] = ""
    keep_ratio: float | str = "auto"
    keep_at_most: float = 1.0
    gamma: int | str = "auto"
    verify_width: int | str = "auto"
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _require_known("method", self.method, tuple(METHODS))
        decoder, pruner = METHODS[self.method]
        self._set("decoder", self.decoder or decoder)
        _require_known("decoder", self.decoder, DECODERS)
        # Without a draft there is nothing to prune for.
        self._set("pruner", "none" if self.decoder == "ar" else self.pruner or pruner)
        if self.pruner not in PRUNERS:
            own = plugins.load("pruner", self.pruner, PRUNERS) if isinstance(self.pruner, str) else self.pruner
            if not callable(getattr(own, "keep", own)):
                raise BadRequest(f"pruner {self.pruner!r} is no function", "pass (signals, keep_ratio) -> kept tokens")
        self._set("stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        self._require_numbers()
        for name in ("keep_ratio", "keep_at_most"):
            if (ratio := getattr(self, name)) != "auto" and not 0 < ratio <= 1:
                raise BadRequest(f"{name} {ratio:g} is not in (0, 1]", "0.1 keeps a tenth of the video tokens")
        if self.gamma != "auto" and (not _is_whole(self.gamma) or int(self.gamma) < 1):
            raise BadRequest(f"gamma {self.gamma!r} is neither a positive whole number nor 'auto'", "use --gamma auto")
        if self.verify_width != "auto" and (not _is_whole(self.verify_width) or not 0 <= int(self.verify_width) <= 25):
            raise BadRequest(f"verify_width {self.verify_width!r} is not in 0 to 25 nor 'auto'", "use 0 for off")
        if "" in self.stop:
            raise BadRequest("a stop string is empty", "leave --stop out, or name a string")
        if self.max_new_tokens < 1:
            raise BadRequest(f"max_new_tokens {self.max_new_tokens} is not positive", "ask for at least one token")
        if not 0 <= self.temperature < math.inf:
            raise BadRequest(f"temperature {self.temperature} is not a number from 0 on", "use 0 for greedy")
        if self.top_k < 0:
            raise BadRequest(f"top_k {self.top_k} is negative", "use 0 for off or a positive number")
        if not 0 < self.top_p <= 1:
            raise BadRequest(f"top_p {self.top_p} is not in (0, 1]", "use 1 for off")
        if not 0 <= self.min_p <= 1:
            raise BadRequest(f"min_p {self.min_p} is not in [0, 1]", "use 0 for off")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < math.inf:
            raise BadRequest(f"repetition_penalty {self.repetition_penalty} is not positive", "use 1 for off")
        if self.logprobs is not None and (not _is_whole(self.logprobs) or not 0 <= self.logprobs <= 20):
            raise BadRequest(f"logprobs {self.logprobs!r} is not in 0 to 20", "leave it out for off")

    @classmethod
    def of(cls, also: Sequence[str] = (), **options: Any) -> SamplingParams:
        """From keyword arguments, transformers' `do_sample` and OpenAI's `max_tokens` among them.

        also: names that the caller takes itself, for hints. Raises BadRequest; an unknown option's names the nearest.
        """
        known = [field.name for field in fields(cls)]
        given: dict[str, Any] = {}
        for name, value in options.items():
            name = _ALIASES.get(name, name)
            if name in given:
                raise BadRequest(f"{name} is given twice", "give it once")
            if name not in (*known, "do_sample"):
                raise unknown("option", name, [*known, *also, *_ALIASES])
            given[name] = value
        sampled = given.pop("do_sample", None)
        if sampled is False and given.get("temperature"):
            raise BadRequest("do_sample=False with a temperature above 0", "leave one of them out")
        if sampled and "temperature" not in given:
            given["temperature"] = 1.0
        return cls(**given)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken every time."""
        return self.temperature == 0

    @property
    def pruner_name(self) -> str:
        """The pruner's name, whether it is given by name or as an object."""
        return (
            self.pruner if isinstance(self.pruner, str) else getattr(self.pruner, "name", plugins.name_of(self.pruner))
        )

    @property
    def name(self) -> str:
        """The method's name if this is one of METHODS, else "decoder + pruner"."""
        for method, parts in METHODS.items():
            if parts == (self.decoder, self.pruner_name):
                return method
        return f"{self.decoder} + {self.pruner_name}"

    def seeded(self) -> SamplingParams:
        """The same with a seed, drawn if there was none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(64))

    def _require_numbers(self) -> None:
        for name in ("max_new_tokens", "top_k"):
            if not _is_whole(getattr(self, name)):
                raise BadRequest(f"{name} {getattr(self, name)!r} is not a whole number", "give one")
        for name in ("keep_ratio", "keep_at_most", "temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if (name, value) in (("repetition_penalty", None), ("keep_ratio", "auto")):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise BadRequest(f"{name} {value!r} is not a number", "give one" + ", or auto" * (name == "keep_ratio"))
            self._set(name, float(value))
        if self.seed is not None and not _is_whole(self.seed):
            raise BadRequest(f"seed {self.seed!r} is not a whole number", "give one, or leave it out")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_known(what: str, name: Any, known: Sequence[str]) -> None:
    if name not in known:
        raise unknown(what, name, known)
