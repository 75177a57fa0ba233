"""What a user may ask of one request, checked once, here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hippo.decode import Sampling, decoder_named
from hippo.errors import HippoError
from hippo.keep import pruner_named

METHODS = {
    "ar": ("ar", "none"),
    "sd": ("serial", "none"),
    "pearl": ("parallel", "none"),
    "hippo": ("parallel", "hippo"),
}


@dataclass(frozen=True)
class Options:
    """One request's settings. decoder and pruner are set by `method` unless they are given.

    keep_ratio: share of the video tokens that the draft sees, in (0, 1]. gamma: tokens a draft proposes at a time, or
    "auto", see `hippo.decode.gamma`. stop: strings that end the answer.
    """

    method: str = "hippo"
    decoder: str = ""
    pruner: str = ""
    keep_ratio: float = 0.1
    gamma: int | str = "auto"
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise HippoError(f"unknown method {self.method!r}", f"use one of: {', '.join(METHODS)}")
        decoder, pruner = METHODS[self.method]
        object.__setattr__(self, "decoder", self.decoder or decoder)
        object.__setattr__(self, "pruner", self.pruner or pruner)
        decoder_named(self.decoder)
        pruner_named(self.pruner)
        if not 0 < self.keep_ratio <= 1:
            raise HippoError(
                f"keep_ratio {self.keep_ratio:g} is not in (0, 1]", "use 0.1 to keep a tenth of the video tokens"
            )
        if self.gamma != "auto" and (not isinstance(self.gamma, int) or self.gamma < 1):
            raise HippoError(f"gamma {self.gamma!r} is neither a positive whole number nor 'auto'", "use --gamma auto")
        if self.decoder == "ar":
            object.__setattr__(self, "pruner", "none")  # there is no draft to prune for
        if "" in self.stop:
            raise HippoError("a stop string is empty", "leave --stop out, or name a string")
        if self.max_new_tokens < 1:
            raise HippoError(f"max_new_tokens {self.max_new_tokens} is not positive", "ask for at least one token")

    @property
    def name(self) -> str:
        """The preset's name if this is one, else "decoder + pruner"."""
        for method, parts in METHODS.items():
            if parts == (self.decoder, self.pruner):
                return method
        return f"{self.decoder} + {self.pruner}"


def make_options(
    method: str = "hippo",
    *,
    decoder: str = "",
    pruner: str = "",
    keep_ratio: float = 0.1,
    gamma: int | str = "auto",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
) -> Options:
    """Options from flat keyword arguments, as the Python API and the command line take them. Raises HippoError."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    sampling = Sampling(temperature, top_k, top_p, seed)
    return Options(method, decoder, pruner, keep_ratio, gamma, max_new_tokens, sampling, strings)
