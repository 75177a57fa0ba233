"""What a request did and how long each part took."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hippo.trace import Trace


@dataclass
class Seconds:
    """Wall time by phase, on the target's side unless it says draft. Phases that overlap are each counted in full.

    video: reading frames. vision: the target's vision tower. prefill: the target's text prefill. scoring: choosing the
    kept tokens. draft_prefill: the draft's vision tower and prefill, in its own process beside the others.
    decode: from the first token to the last. total: everything the caller waited for.
    """

    video: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    scoring: float = 0.0
    draft_prefill: float = 0.0
    decode: float = 0.0
    total: float = 0.0


@dataclass
class Stats:
    """Counts of one request. target_forwards: those after the prefill. draft_rounds: those of them beside which the
    draft worked. rounds: of decoding, by the way: "plain", "in turns", "parallel" or "two groups". checked, accepted:
    drafted tokens. accepted_at: those accepted, by their place among the tokens that one forward checked. kept_tokens:
    of the target's video tokens. captured: share of the video tokens' score that they hold, see
    `hippo.pruning.captured`. cached_tokens: of the prompt, read by an earlier request. kv_cache_mib: what the target's
    keys and values take. drafter: what drafts without a model; nothing is pruned then, and kept_tokens is 0. warnings:
    what the user should know, beside a lost draft. trace: token by token."""

    method: str = ""
    new_tokens: int = 0
    target_forwards: int = 0
    draft_forwards: int = 0
    draft_rounds: int = 0
    rounds: dict[str, int] = field(default_factory=dict)
    checked: int = 0
    accepted: int = 0
    accepted_at: list[int] = field(default_factory=list)
    rejections: int = 0
    prompt_tokens: int = 0
    video_tokens: int = 0
    kept_tokens: int = 0
    captured: float = 1.0
    cached_tokens: int = 0
    kv_cache_mib: float = 0.0
    drafter: str = ""
    draft_lost: str = ""
    finish: str = ""
    warnings: list[str] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)
    trace: Trace = field(default_factory=Trace, repr=False, compare=False)

    def accept(self, count: int) -> None:
        """Count drafted tokens that one forward accepted."""
        self.accepted += count
        self.accepted_at += [0] * (count - len(self.accepted_at))
        for place in range(count):
            self.accepted_at[place] += 1

    @property
    def acceptance_rate(self) -> float:
        """Accepted over checked draft tokens, 0 when none was checked."""
        return self.accepted / self.checked if self.checked else 0.0

    @property
    def tokens_per_target_forward(self) -> float:
        """Generated tokens over target forwards after the prefill, whose own token is not counted."""
        return (self.new_tokens - 1) / self.target_forwards if self.target_forwards else 0.0

    @property
    def run_between_rejections(self) -> float:
        """Mean number of drafted tokens accepted in a row, across forwards (PEARL's MAT); an unbroken run is one."""
        return self.accepted / max(1, self.rejections)

    @property
    def gamma(self) -> float:
        """Mean number of tokens drafted for a target forward, 0 without a draft."""
        return self.draft_forwards / self.draft_rounds if self.draft_rounds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; draft_lost is a bool and draft_lost_reason says why."""
        beside = ("warnings", "trace")  # no counts
        counts = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in beside}
        counts["seconds"] = asdict(self.seconds)
        counts["draft_lost_reason"] = counts["draft_lost"]
        counts["draft_lost"] = bool(self.draft_lost)
        for name in ("gamma", "acceptance_rate", "tokens_per_target_forward", "run_between_rejections"):
            counts[name] = getattr(self, name)
        return counts
