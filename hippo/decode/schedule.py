"""What one request decides in each round: its way of decoding, how far to draft, which drafted tokens to check."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hippo.decode.choice import Choice, Mode
from hippo.decode.costs import LARGEST, UNKNOWN, Acceptance, Costs
from hippo.decode.policies import AlwaysDraft, FixedGamma, InGroups, InTurns, Lookahead, Rest, Threshold


class Schedule:
    """The policies of one request with one way of decoding, and what they measure.

    decoder: "ar", "serial" or "parallel". gamma: tokens at a time, or "auto". costs, prior: what earlier requests
    measured. most: drafted tokens that a target forward takes. gammas: from and to. mode: of the round that began last.
    drafted, asking: the tokens that were drafted for it in turns, and the seconds of each of the draft's steps.
    """

    follows = False  # whether it decodes in the way that is chosen for several requests together
    unread = False  # whether the draft would first have to read its prompt
    behind = 0  # tokens that were generated since it drafted last, or since the answer began

    def __init__(
        self, decoder: str, gamma: int | str, costs: Costs | None = None, prior: float = UNKNOWN, most: int = LARGEST
    ) -> None:
        self.costs, self.acceptance, self.gammas = costs or Costs(), Acceptance(prior), (1, most)
        self._own = {"ar": Mode.PLAIN, "serial": Mode.IN_TURNS, "parallel": Mode.PARALLEL}.get(decoder, Mode.PLAIN)
        self._lookaheads: dict[Mode, Lookahead] = {
            Mode.IN_TURNS: InTurns(self.costs, self.acceptance, most),
            Mode.PARALLEL: Threshold(self.costs, self.acceptance),
            Mode.GROUPS: InGroups(self.costs, self.acceptance, most),
        }
        self._rest: AlwaysDraft = Rest(self.costs, self._own is Mode.PARALLEL)
        if isinstance(gamma, int):
            self.gammas = min(gamma, most), min(gamma, most)
            self._lookaheads = {mode: FixedGamma(gamma, mode is Mode.PARALLEL) for mode in self._lookaheads}
            self._rest = AlwaysDraft()
        self.mode, self._pre_verify = Mode.PLAIN, True
        self._together: Mode | None = None
        self._rates: Sequence[float] = ()
        self.drafted, self.asking = 0, list[float]()
        self._longest, self._target_seconds = 1, 0.0
        self._refused: float | None = None  # probability of a drafted token that was not worth checking

    @property
    def in_turns(self) -> bool:
        """Whether it may decode in turns, and so in two groups."""
        return self.follows or self._own is Mode.IN_TURNS

    def join(self, size: int, mode: Mode | None = None, rates: Sequence[float] = ()) -> None:
        """How many requests decode together from now on. Of several: the way that was chosen for them, and the
        acceptance of each; whoever chose then measures what forwards cost."""
        self.costs.serve(size)
        self._together, self._rates = mode, rates

    def begin_round(self) -> Mode:
        """Choose the mode of the next round; the draft is there and has read its prompt."""
        self.asking.clear()
        drafts = self._own is not Mode.PLAIN and self._rest.begin_round()
        self.mode = self._own if drafts else Mode.PLAIN
        if self.mode is Mode.IN_TURNS and self._together is Mode.GROUPS:
            self.mode = Mode.GROUPS
        self._begin_drafting()
        return self.mode

    def idle(self) -> Mode:
        """A round in which the draft is not there: it still reads its prompt, or was lost."""
        self.mode, self.drafted = Mode.PLAIN, 0
        self.asking.clear()
        return self.mode

    @property
    def waking(self) -> bool:
        """Whether the draft must first read what was generated while it rested."""
        return self._rest.waking and self.mode is not Mode.PLAIN

    def ask(self, waiting: int) -> int:
        """See `Lookahead.ask`."""
        return self._lookaheads[self.mode].ask(waiting)

    def wants(self, probs: Sequence[float], coming: float | None) -> bool:
        """See `Lookahead.wants`."""
        wanted = self._lookaheads[self.mode].wants(probs, coming, self._pre_verify)
        self._refused = None if wanted or probs or self.mode is Mode.PARALLEL else coming
        return wanted

    def saw_target(self, width: int, seconds: float, longest: int = 0) -> None:
        """A target forward over `width` tokens of each request, at most `longest`, took so many seconds."""
        self._longest, self._target_seconds = longest or width, seconds
        if self._together is None:
            self.costs.saw_target(width, seconds, both=self.mode is Mode.PARALLEL)

    def saw_draft(self, seconds: float) -> None:
        """A draft step took so many seconds, as the draft measured it."""
        self.asking.append(seconds)
        if self.mode.overlaps:
            costs = self.costs.in_groups if self.mode is Mode.GROUPS else self.costs
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
        catching_up = self.waking
        self._rest.end_round(tokens, seconds)
        self.drafted = max(self._longest - 1, int(self._refused is not None)) if self.mode is Mode.IN_TURNS else 0
        if self.drafted and self._together is None:
            if not catching_up:  # all that a drafted token costs the round, messages included
                self.costs.saw_draft(max(0.0, seconds - self._target_seconds) / self.drafted, both=False)
            elif steps := self.asking[1:]:  # the first catches up
                self.costs.saw_draft(min(steps), both=False)
        self._refused = None
        self.behind = self.behind + tokens if self.mode is Mode.PLAIN else 0
        if self.mode is not Mode.PLAIN and not catching_up:
            self._lookaheads[self.mode].end_round(tokens, seconds)

    def _begin_drafting(self) -> None:
        if self.mode is not Mode.PLAIN:
            self._lookaheads[self.mode].begin_round(self._rates or [self.acceptance.rate])


class AutoSchedule(Schedule):
    """Chooses between plain decoding, in turns and parallel, again in each round, or takes what was chosen for several
    requests together. See `Choice`.

    beside: whether the draft can work at the same time as the target; if not, it reads its prompt when it is first
    asked. costs, prior, most: see Schedule. answer: how many tokens an answer has.
    """

    follows = True

    def __init__(
        self,
        beside: bool,
        gamma: int | str = "auto",
        costs: Costs | None = None,
        prior: float = UNKNOWN,
        most: int = LARGEST,
        answer: float = math.inf,
    ) -> None:
        super().__init__("ar", gamma, costs, prior, most)
        self._answer = answer
        self.choice, self.ways = Choice(self.costs), ways_of(beside)
        self.unread, self._behind = not beside, False

    def begin_round(self) -> Mode:
        """See Schedule."""
        self._behind = self.mode is Mode.PLAIN
        self.asking.clear()
        rates, prompts = [self.acceptance.rate], self.costs.prompts
        reading = prompts[-1][1] if self.unread and prompts else 0.0
        spread = reading / max(1.0, self._answer - self.behind)
        self.mode = self._together or self.choice.choose(rates, self.ways, self.gammas, reading, spread)
        self.unread &= self.mode is Mode.PLAIN
        self._begin_drafting()
        return self.mode

    @property
    def waking(self) -> bool:
        """See Schedule."""
        return self._behind and self.mode is not Mode.PLAIN

    def saw_nothing(self) -> None:
        """See Schedule."""
        if self.mode is Mode.IN_TURNS and self._together is None:
            self.choice.saw_nothing(sum(self.asking))


def ways_of(beside: bool) -> tuple[Mode, ...]:
    """The ways of decoding with a draft that can work at the same time as the target, or cannot."""
    return (Mode.PLAIN, Mode.IN_TURNS, Mode.PARALLEL) if beside else (Mode.PLAIN, Mode.IN_TURNS)
