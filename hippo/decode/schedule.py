"""Which way to decode the next round, and how far to draft in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from statistics import median

from hippo.decode.costs import (
    LARGEST,
    UNKNOWN,
    Acceptance,
    Costs,
    groups_speed,
    in_turns_speed,
    parallel_speed,
    plain_speed,
)
from hippo.decode.policies import AlwaysDraft, FixedGamma, InGroups, InTurns, Lookahead, Rest, Threshold


class Mode(Enum):
    """How a round is decoded: by the target alone, in turns, with both models at the same time, or in turns while the
    target checks other requests."""

    PLAIN = "plain"
    IN_TURNS = "in turns"
    PARALLEL = "parallel"
    GROUPS = "two groups"

    @property
    def overlaps(self) -> bool:
        """Whether the draft works while the target does."""
        return self in (Mode.PARALLEL, Mode.GROUPS)


class Schedule:
    """The policies of one request with one way of decoding, and what they measure.

    decoder: "ar", "serial" or "parallel". gamma: tokens at a time, or "auto". costs, prior: what earlier requests
    measured. most: drafted tokens that a target forward takes.
    """

    def __init__(
        self, decoder: str, gamma: int | str, costs: Costs | None = None, prior: float = UNKNOWN, most: int = LARGEST
    ) -> None:
        self._most = most
        self.costs, self.acceptance = costs or Costs(), Acceptance(prior)
        self._mode = {"ar": Mode.PLAIN, "serial": Mode.IN_TURNS, "parallel": Mode.PARALLEL}.get(decoder, Mode.PLAIN)
        self._lookaheads: dict[Mode, Lookahead] = {
            Mode.IN_TURNS: InTurns(self.costs, self.acceptance, most),
            Mode.PARALLEL: Threshold(self.costs, self.acceptance),
            Mode.GROUPS: InGroups(self.costs, self.acceptance, most),
        }
        self._rest: AlwaysDraft = Rest(self.costs, self._mode is Mode.PARALLEL)
        self._least = 1
        if isinstance(gamma, int):
            self._least = self._most = min(gamma, most)
            self._lookaheads = {mode: FixedGamma(gamma, mode is Mode.PARALLEL) for mode in self._lookaheads}
            self._rest = AlwaysDraft()
        self._now, self._pre_verify, self._two_groups = Mode.PLAIN, True, False
        self._longest, self._target_seconds = 1, 0.0
        self._refused: float | None = None  # probability of a drafted token that was not worth checking

    def batch(self, size: int, two_groups: bool = False) -> None:
        """How many requests decode together from now on, and whether in two groups."""
        self.costs.batch = self.costs.in_groups.batch = 1 << (size.bit_length() - 1)
        self._two_groups = two_groups

    def promises(self, size: int) -> tuple[float, float] | None:
        """Tokens a second that decoding together with others, `size` in all, promises in one group and in two. None
        where it is not known yet, or not in turns."""
        self.batch(size)
        if self._mode is not Mode.IN_TURNS or not self.costs.enough(both=False):
            return None
        rate = self.acceptance.rate
        one, two = (speed(self.costs, rate, self._most, self._least)[0] for speed in (in_turns_speed, groups_speed))
        return one, two

    def begin_round(self) -> Mode:
        """Choose the mode of the next round; the draft is there and has read its prompt."""
        drafts = self._mode is not Mode.PLAIN and self._rest.begin_round()
        self._now = self._mode if drafts else Mode.PLAIN
        if self._now is Mode.IN_TURNS and self._two_groups:
            self._now = Mode.GROUPS
        if drafts:
            self._lookaheads[self._now].begin_round()
        return self._now

    @property
    def waking(self) -> bool:
        """Whether the draft must first read what was generated while it rested."""
        return self._rest.waking

    def ask(self, waiting: int) -> int:
        """See `Lookahead.ask`."""
        return self._lookaheads[self._now].ask(waiting)

    def wants(self, probs: Sequence[float], coming: float | None) -> bool:
        """See `Lookahead.wants`."""
        wanted = self._lookaheads[self._now].wants(probs, coming, self._pre_verify)
        self._refused = None if wanted or probs or self._now is Mode.PARALLEL else coming
        return wanted

    def saw_target(self, width: int, seconds: float, longest: int = 0) -> None:
        """A target forward over `width` tokens of each request, at most `longest`, took so many seconds."""
        self._longest, self._target_seconds = longest or width, seconds
        if self._now is not Mode.GROUPS:  # whose steps are measured as a whole, where they are made
            self.costs.saw_target(width, seconds, both=self._now is Mode.PARALLEL)

    def saw_draft(self, seconds: float) -> None:
        """A draft step took so many seconds, as the draft measured it."""
        if self._now.overlaps:
            costs = self.costs.in_groups if self._now is Mode.GROUPS else self.costs
            costs.saw_draft(seconds, both=True)

    def saw_nothing(self) -> None:
        """The draft was asked and had nothing to propose. A draft without a model may have nothing."""

    def saw_verdict(self, accepted: int, probs: Sequence[float]) -> None:
        """The first `accepted` of the checked tokens were accepted; probs: the draft's probability of each."""
        self.acceptance.saw(accepted, probs)
        if self._refused is not None:  # else a draft of which nothing is checked would never be judged
            self.acceptance.saw(self.acceptance.chance([self._refused]), [self._refused])
        self._rest.saw(accepted, len(probs))
        self._pre_verify = accepted < len(probs) or not probs

    def end_round(self, tokens: int, seconds: float) -> None:
        """The round that began last brought so many tokens in so many seconds."""
        catching_up = self._rest.waking
        self._rest.end_round(tokens, seconds)
        drafted = self._longest - 1 + (self._refused is not None)
        if self._now is Mode.IN_TURNS and drafted and not catching_up:
            # All that a drafted token costs the round, messages included.
            self.costs.saw_draft(max(0.0, seconds - self._target_seconds) / drafted, both=False)
        self._refused = None
        if self._now is not Mode.PLAIN and not catching_up:
            self._lookaheads[self._now].end_round(tokens, seconds)


class AutoSchedule(Schedule):
    """Chooses between plain decoding, in turns and parallel, again in each round, by the speeds that costs and
    acceptance promise. In two groups it decodes in turns.

    beside: whether the draft can work at the same time as the target; if not, it reads its prompt when it is first
    asked. costs, prior, most: see Schedule.
    """

    _OPTIMISM = 1.05  # of the formula for parallel, beside that for in turns: it knows no token that waits
    _TRIALS = 0.015  # share of the target's time that trials of a draft which is not worth it may take
    _LONGEST_REST = 128  # rounds
    _has_drafted = _has_rested = False

    def __init__(
        self,
        beside: bool,
        gamma: int | str = "auto",
        costs: Costs | None = None,
        prior: float = UNKNOWN,
        most: int = LARGEST,
    ) -> None:
        super().__init__("ar", gamma, costs, prior, most)
        self._beside = beside
        self._left, self._longer, self._behind = 0, 1, False
        self._batch = 1
        self._asking, self._had_nothing = 0.0, False  # seconds of the draft in this round; whether they were in vain
        self._in_vain: deque[float] = deque(maxlen=5)  # seconds of rounds in which it had nothing

    def batch(self, size: int, two_groups: bool = False) -> None:
        """See Schedule."""
        super().batch(size, two_groups)
        if self.costs.batch != self._batch:  # what the draft rested for may hold no longer
            self._batch, self._left, self._longer = self.costs.batch, 0, 1

    def begin_round(self) -> Mode:
        """See Schedule."""
        before, self._now = self._now, Mode.GROUPS if self._two_groups else self._choose()
        self._asking = 0.0
        if self._now is not Mode.PLAIN:
            self._lookaheads[self._now].begin_round()
        self._behind = before is Mode.PLAIN
        self._has_drafted |= self._now is not Mode.PLAIN
        return self._now

    @property
    def waking(self) -> bool:
        """See Schedule."""
        return self._behind and self._now is not Mode.PLAIN

    def saw_draft(self, seconds: float) -> None:
        """See Schedule."""
        super().saw_draft(seconds)
        self._asking += seconds

    def saw_nothing(self) -> None:
        """See Schedule. It is asked again once the target has worked so long that the time is a small share of it."""
        if self._now is Mode.IN_TURNS and (alone := sum(self.costs.target(False))):
            self._in_vain.append(self._asking)
            self._left, self._had_nothing = int(median(self._in_vain) / alone / self._TRIALS), True

    def speeds(self) -> dict[Mode, float]:
        """Tokens a second that each way promises, as far as costs are known."""
        speeds = {Mode.PLAIN: plain_speed(self.costs)}
        rate = self.acceptance.rate
        if self.costs.draft(False):
            speeds[Mode.IN_TURNS] = in_turns_speed(self.costs, rate, self._most, self._least)[0]
            if self._beside:
                speeds[Mode.PARALLEL] = parallel_speed(self.costs, rate, self._most)[0]
        return speeds

    def promises(self, size: int) -> tuple[float, float] | None:
        """See Schedule."""
        self.batch(size)
        if not self._beside or not all(map(self.costs.enough, (False, True))):
            return None
        one = max(self._comparable().values())
        return one, groups_speed(self.costs, self.acceptance.rate, self._most, self._least)[0]

    def _comparable(self) -> dict[Mode, float]:
        speeds = self.speeds()
        if self._beside:
            speeds[Mode.PARALLEL] /= self._OPTIMISM
        return speeds

    def _choose(self) -> Mode:
        if self._left:
            self._left -= 1
            return Mode.PLAIN
        for mode in (Mode.PARALLEL, Mode.IN_TURNS) if self._beside else (Mode.IN_TURNS,):
            if not self.costs.enough(both=mode is Mode.PARALLEL):
                return mode
        speeds = self._comparable()
        best = max(speeds, key=lambda mode: speeds[mode])
        had_nothing, self._had_nothing = self._had_nothing, False
        if best is not Mode.PLAIN:
            self._longer = 1
            return best
        if had_nothing:  # the trial goes on until there is something to check
            return Mode.IN_TURNS
        loses = speeds[Mode.PLAIN] / speeds[Mode.IN_TURNS] - 1  # rounds of the target, in a trial
        if not self._beside and not self._has_drafted:
            loses += (self.costs.prompts[-1][1] if self.costs.prompts else 0.0) * speeds[Mode.PLAIN]
        self._left = min(self._LONGEST_REST, int(self._longer * loses / self._TRIALS))
        self._longer *= 2
        tries, self._has_rested = self._has_rested and self._now is Mode.PLAIN, True
        return Mode.IN_TURNS if tries else Mode.PLAIN
