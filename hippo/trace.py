"""What is known of an answer beside its words: each token, the video tokens that the draft saw, who worked when."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from hippo.families import VideoGrid

_LONGEST = 8192  # spans; a longer answer's last ones are not kept


class Logprob(NamedTuple):
    """A token's log probability by the target, and the likeliest tokens with theirs, likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenInfo(NamedTuple):
    """A token of an answer.

    drafted: whether the draft proposed it and the target accepted it. seconds: from the request's submission until it
    was committed. logprob: its natural log probability by the target, before penalties and temperature; top: the
    likeliest ids with theirs, likeliest first. Both only if `SamplingParams.logprobs` asks for them.
    """

    id: int
    drafted: bool
    seconds: float
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Kept(NamedTuple):
    """The video tokens that the draft saw. indices: (K,) sorted, on the CPU, into the tokens of the grids, one video
    after the other. grids: the target's, one for each video."""

    indices: Tensor
    grids: tuple[VideoGrid, ...]


class Span(NamedTuple):
    """A piece of work. who: "target" or "draft". what: "vision", "prefill", "verify" or "propose". began, ended:
    seconds since the request was submitted. tokens: those that the text model read, or one that it proposed."""

    who: str
    what: str
    began: float
    ended: float
    tokens: int


@dataclass
class Trace:
    """Filled as a request proceeds. submitted: by time.perf_counter, which all processes of a machine share. timeline:
    as the target came to know of it, so spans of the two models are not in order."""

    submitted: float = field(default_factory=time.perf_counter)
    tokens: list[TokenInfo] = field(default_factory=list)
    kept: Kept | None = None
    timeline: list[Span] = field(default_factory=list)

    def did(self, who: str, what: str, ended: float, seconds: float, tokens: int) -> None:
        """Add a span. ended: by time.perf_counter."""
        if len(self.timeline) < _LONGEST:
            ended -= self.submitted
            self.timeline.append(Span(who, what, ended - seconds, ended, tokens))
