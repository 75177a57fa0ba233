"""One request from its inputs to its last token: begin the draft, embed, prefill, choose the kept tokens, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor

from hippo import tensor_parallel
from hippo.decode import (
    LARGEST,
    UNKNOWN,
    Answer,
    AutoSchedule,
    Check,
    Pause,
    Rounds,
    Rules,
    Schedule,
    StopRule,
    Verifier,
    alone,
    decode,
    logits_processors,
)
from hippo.device import clock, sharing
from hippo.draft import Drafter
from hippo.errors import BadRequest, is_out_of_memory
from hippo.families import Embeds, Prompt
from hippo.forward import CachedModel, mixed_dtypes_explained
from hippo.inputs import media_key, on_device
from hippo.keeping import Keeping
from hippo.pair import Pair
from hippo.params import SamplingParams
from hippo.prefix_cache import Known, PrefixCache, media_end
from hippo.pruning import recording
from hippo.stats import Stats

Progress = Callable[[str, float], None]
Wanted = Check | Pause | list[int] | None
_FORGETS = 0.05  # share of what is known against a draft, in each answer that did not try it


class Sequence:
    """Owns all state of a request: prompt, KV cache, draft, schedule, answer, counts. Several may be under way.

    Args:
        pair: the models.
        inputs: what the target's processor returned, batch of one.
        params: how to decode.
        stats: filled as the request proceeds.
        decode_text: token ids -> text, needed for stop strings.
        draft_inputs: the same request by the draft's own processor; None if the target's inputs serve both.
        progress: called with a phase and the share of it that is done, where a long prompt is read in parts.
        cache: what requests before have left, and where this one leaves what it read.
        media: what `hippo.inputs.media_key` gives for the inputs, if it is known.
        rules: a caller's own, see `Rules`.
    """

    def __init__(
        self,
        pair: Pair,
        inputs: dict[str, Any],
        params: SamplingParams,
        stats: Stats,
        *,
        decode_text: Callable[[list[int]], str] | None = None,
        draft_inputs: dict[str, Any] | None = None,
        progress: Progress | None = None,
        cache: PrefixCache | None = None,
        media: bytes | None = None,
        rules: Rules | None = None,
    ) -> None:
        if params.stop and decode_text is None:
            raise BadRequest("stop strings need a tokenizer", "pass tokenizer=")
        self.pair, self.params, self.stats = pair, params, stats
        self._inputs, self._draft_inputs, self._progress = inputs, draft_inputs, progress
        self._decode_text, self._cache, self._media, self._rules = decode_text, cache, media, rules
        self.schedule = self._schedule_of(params)
        self._beside = pair.draft is not None and pair.draft.place != "inline"
        self._prunes = params.decoder != "ar" and pair.draft is not None and pair.draft.plugin is None
        self._share: Callable[[bool], None] = lambda beside: None
        self.target: CachedModel | None = None
        self._run: Any = self._story()
        self._closed = False
        self._own_steps = alone(self._run, lambda ids: self.target.extend(ids))  # type: ignore[union-attr]
        self._answer: Answer | None = None
        self.proposed = False  # whether the draft was asked for its next round
        self.part: int | None = None  # tokens of a long prompt that one forward reads; None: many

    @torch.no_grad()
    def step(self) -> list[int] | None:
        """Advance by one step, with forwards of its own: the prefill with the first token, then a round of decoding
        each.

        Returns the committed token ids, the one that ended the answer included; None once there are no more. Raises
        HippoError.
        """
        began = time.perf_counter()
        # The cores are given back between steps: another request may take the next one.
        with self.pair.lock, sharing(self.shares_cores) as self._share:
            if self._closed:
                self._run.close()
                return None
            self.schedule.join(1)
            self.proposed = False
            with mixed_dtypes_explained(self.pair.target):
                tokens = next(self._own_steps, None)
        self.took(time.perf_counter() - began)
        return tokens

    @torch.no_grad()
    def advance(self, logits: Tensor | None = None, share: Callable[[bool], None] | None = None) -> Wanted:
        """Advance until the request wants something, for `hippo.engine`, which holds the pair's lock.

        logits: (n, vocabulary), if it wanted a `Check`. share: see `hippo.device.sharing`. Returns a `Check`, PROPOSED,
        the committed token ids, an empty list after a part of the prompt, or None once there are no more. Raises
        HippoError.
        """
        if self._closed:
            self._run.close()
            return None
        self._share = share or self._share
        with mixed_dtypes_explained(self.pair.target):
            try:
                wanted: Wanted = self._run.send(logits)
            except StopIteration:
                wanted = None
        self.proposed = wanted is Pause.PROPOSED
        return wanted

    @property
    def is_running(self) -> bool:
        """Whether it is being advanced at this moment."""
        return bool(self._run.gi_running)

    @property
    def drafts(self) -> bool:
        """Whether it has a draft, which was not lost."""
        return self.params.decoder != "ar" and self.pair.draft is not None and not self.stats.draft_lost

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self.params.max_new_tokens if self._answer is None else self._answer.room

    def took(self, seconds: float) -> None:
        """Count what a step did, and the time it took."""
        stats = self.stats
        stats.seconds.total += seconds
        if stats.new_tokens:
            stats.seconds.decode += seconds
        if self.target is not None and self._answer is not None:
            stats.method, stats.finish = self.params.name, self._answer.finish
            stats.new_tokens, stats.target_forwards = len(self._answer.tokens), self.target.forwards

    def __iter__(self) -> Iterator[list[int]]:
        """The token ids of each step that is left."""
        while (tokens := self.step()) is not None:
            yield tokens

    def close(self) -> None:
        """End the request. From another thread it waits for the step under way."""
        self._closed = True
        with self.pair.lock:
            if not self.is_running:  # a progress callback closes what is running: the next step then ends it
                self._run.close()
                self._own_steps.close()  # it refers to this object, which would wait for the garbage collector

    def _schedule_of(self, params: SamplingParams) -> Schedule:
        draft = self.pair.draft
        if draft is None or params.decoder == "ar":
            return Schedule("ar", "auto")
        costs, beside = draft.costs, draft.place != "inline"
        most = (self.pair.fixed_width(params) or LARGEST + 1) - 1
        if params.decoder == "auto":
            answer = min(params.max_new_tokens, draft.answer_tokens)
            return AutoSchedule(beside, params.gamma, costs, draft.acceptance, most, answer)
        decoder = params.decoder
        if decoder == "parallel" and not beside:
            other = "" if draft.plugin else "; --draft-worker process is parallel"
            self.stats.warnings.append(f"a draft that works inline works in turns{other}")
            decoder = "serial"
        return Schedule(decoder, params.gamma, costs, draft.acceptance, most)

    def _learn(self) -> None:
        """Keep what this answer measured for the next one."""
        if (draft := self.pair.draft) is None or self.params.decoder == "ar":
            return
        draft.acceptance = self.schedule.acceptance.passed_on(draft.acceptance)
        if self.schedule.acceptance.is_guess:
            # Texts differ: a draft that had no chance in this answer gets one again after some more.
            draft.acceptance += _FORGETS * max(0.0, UNKNOWN - draft.acceptance)
        draft.learn(self.stats, len(self._answer.tokens) if self._answer is not None and self._answer.done else 0)

    @property
    def shares_cores(self) -> bool:
        """Whether the draft may work on the cores that the target uses."""
        return self.params.decoder != "ar" and self.pair.target.device.type == "cpu"

    def _story(self) -> Rounds:
        drafter, media, read = self._drafter(), self._media or b"", None
        try:
            here = on_device(self._inputs, self.pair.target.device)
            prompt = self.pair.prepare_prompt(here)
            # Vision towers start many small operations: in two threads of one process they wait for each other.
            after = self.pair.draft is not None and self.pair.draft.place == "thread"
            if not after:
                self._begin(drafter)
            spare = self.params.max_new_tokens + LARGEST + 1
            target = CachedModel.of(
                self.pair.family, self.pair.target, spare=spare, fixed_width=self.pair.fixed_width(self.params)
            )
            known = None
            if self._cache is not None:
                media = media or media_key(self._inputs)
                known = self._cache.find(prompt, media, self.pair.target.get_input_embeddings())
            beside = self._beside and not (after or drafter.shared_vision or drafter.lost)
            embeds = self._embed(here, known, beside)
            if after:
                self._begin(drafter)
            logits = yield from self._prefill(embeds, prompt, known, target, drafter)
            if self._cache is not None:
                read = embeds[: media_end(prompt, embeds, self.pair.target.get_input_embeddings())]
                self._keep(prompt, [], media, read, target)  # requests on the same video may come next
            answer = self.answer(prompt)
            first = answer.commit(answer.verify(logits[None], []))
            drafter.commit(0, first)
            self.target, self._answer = target, answer
            yield first
            yield from decode(answer, target, drafter, self.schedule, self.stats, lambda beside: self._share(beside))
        finally:
            drafter.end()
            self._learn()
            if self._answer is not None and read is not None:
                self._keep(prompt, self._answer.tokens, media, read, target)

    def _keep(self, prompt: Prompt, answer: list[int], media: bytes, read: Embeds, target: CachedModel) -> None:
        """Leave what was read to later requests, if memory holds it."""
        assert self._cache is not None
        try:
            self._cache.put(prompt, answer, media, read, target)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._cache.clear()

    def _drafter(self) -> Drafter:
        if self.params.decoder == "ar":
            return Drafter(None, self.stats, on_step=self.schedule.saw_draft)
        draft = self.pair.draft
        late = self.params.decoder == "auto" and draft is not None and draft.place == "inline"
        drafter = self.pair.drafter(self.stats, self.schedule.saw_draft, self._draft_inputs is not None, late)
        penalty = self.params.repetition_penalty
        if penalty is None:
            penalty = self.pair.target.generation_config.repetition_penalty
        drafter.expect(penalty or 1.0, self.params.max_new_tokens)
        return drafter

    def _begin(self, drafter: Drafter) -> None:
        """Let the draft encode the video, if its vision tower is its own."""
        if not drafter.shared_vision:
            drafter.begin(self._inputs if self._draft_inputs is None else self._draft_inputs)

    def _embed(self, inputs: dict[str, Any], known: Known | None, beside: bool) -> Embeds:
        """The vision tower and the text's embeddings, as far as they are not known. beside: whether the draft's vision
        tower works at the same time."""
        if known is not None and known.embeds is not None:
            return known.embeds
        began = clock(self.pair.target.device)
        self._share(beside)
        embeds = self.pair.family.embed(self.pair.target, inputs)
        self._share(False)
        ended = clock(self.pair.target.device)
        self.stats.seconds.vision = ended - began
        self.stats.trace.did("target", "vision", ended, ended - began, 0)
        return embeds

    def _prefill(
        self, embeds: Embeds, prompt: Prompt, known: Known | None, target: CachedModel, drafter: Drafter
    ) -> Generator[list[int], None, Tensor]:
        """Prefill, and the choice of the draft's tokens. Yields between the parts of a long prompt. Returns the
        prefill's logits, (vocabulary,)."""
        device, stats = self.pair.target.device, self.stats
        begin = 0 if known is None else known.count
        keeping = Keeping(self.pair, self.params, self._prunes, prompt, embeds, drafter, stats, self._inputs, begin)
        before = None if known is None else (known.keys_and_values, begin)
        parts = target.reading(embeds, prompt, self._progress, self.part, before)
        done, read = False, begin
        while not done:
            began = clock(device)
            with recording(*keeping.recorders):
                logits = next(parts)
            done = target.length == len(embeds)
            if done:
                keeping.finish()
            ended = clock(device)
            stats.seconds.prefill += ended - began
            stats.trace.did("target", "prefill", ended, ended - began, target.length - read)
            read = target.length
            if not done:
                yield []
        stats.seconds.scoring = keeping.seconds
        stats.seconds.prefill -= keeping.seconds
        stats.prompt_tokens, stats.video_tokens = len(prompt.input_ids), len(prompt.video_at)
        stats.cached_tokens, stats.kv_cache_mib = begin, target.size / 2**20
        return logits

    def answer(self, prompt: Prompt) -> Answer:
        """An empty answer, with its verify rule and stop rule."""
        params, target = tensor_parallel.broadcast(self.params.seeded()), self.pair.target
        if self._rules is not None:
            processors, ends, eos = self._rules
        else:
            processors, ends = logits_processors(target, params, prompt.input_ids), None
            eos = target.generation_config.eos_token_id
            eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
        verifier = Verifier(params, processors, prompt.input_ids)
        stop = StopRule(eos, params.max_new_tokens, params.stop, self._decode_text, ends)
        return Answer(verifier, stop, self.stats, params.logprobs)
