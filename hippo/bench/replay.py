"""What speculative decoding would have done, from which drafted tokens are right: exact, and no clock is involved.

Greedy drafts are compared with the target's own text. As long as a draft is right it has seen that very text, so one
forward over the text gives what it would propose at every place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Of one answer or several: tokens after the first one, target forwards, drafted tokens checked and accepted, and
    rejections; defined as in `hippo.stats.Stats`."""

    tokens: int = 0
    forwards: int = 0
    checked: int = 0
    accepted: int = 0
    rejections: int = 0

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Counts(*[a + b for a, b in pairs])

    @property
    def tokens_per_target_forward(self) -> float:
        """Tokens a forward, the prefill and its token left out; 0 if there was none."""
        return self.tokens / self.forwards if self.forwards else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted over checked, 0 if none was checked."""
        return self.accepted / self.checked if self.checked else 0.0

    @property
    def run_between_rejections(self) -> float:
        """Accepted tokens in a row; an unbroken run is one."""
        return self.accepted / max(1, self.rejections)


def replay(right: list[bool], gamma: int, room: int) -> Counts:
    """Serial speculative decoding with `gamma` tokens at a time.

    right: for each token of the answer after its first, whether the draft would have proposed it. room: tokens that the
    answer may still hold after its first; it ended by itself if this is more than there are in `right`.
    """
    counts, at = Counts(), 0
    while at < len(right):
        proposed = min(gamma, room - at)
        window = right[at : at + proposed]
        accepted = next((i for i, good in enumerate(window) if not good), len(window))
        added = min(accepted + 1, len(right) - at)  # the target's own token follows, unless the answer has ended
        rejected = accepted < len(window)
        counts += Counts(added, 1, accepted + rejected, accepted, int(rejected))
        at += added
    return counts
