"""Two models and one request: the story in order. Embed, prefill, keep tokens, decode."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hippo import ranks
from hippo.clock import clock
from hippo.decode import LARGEST, Chooser, Gamma, LedSession, Session, StopRule, decoder_named, logits_processors
from hippo.draft import Drafter, DraftProcess, eyes_of, is_thread, seen
from hippo.errors import HippoError
from hippo.families import Prompt, family_of
from hippo.forward import CachedModel, fused, mixed_dtypes_explained
from hippo.inputs import on_device
from hippo.keep import Listener, Signals, listening, pruner_named, signals_of
from hippo.options import Options
from hippo.report.stats import Stats
from hippo.threads import sharing

Progress = Callable[[str, float], None]


class Pair:
    """A target in this process and a draft in another, ready for requests, one at a time.

    draft: a checkpoint folder, a hub id, a model in memory, or None when only `ar` is wanted.
    draft_timeout: seconds without a sign of life after which the draft is given up. draft_worker: whether the draft
    works in a "process" or a "thread", see `hippo.draft.child`. process: the draft's, if it has been started.
    trust_remote_code: whether code that the draft's checkpoint brings may run.
    """

    def __init__(
        self,
        target: nn.Module,
        draft: str | Path | nn.Module | None,
        *,
        draft_dtype: str = "auto",
        draft_device: str = "cpu",
        draft_timeout: float = 20.0,
        draft_worker: str = "auto",
        process: DraftProcess | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.target: Any = target.eval()
        self.family = family_of(target)
        self._eyes = eyes_of(self.family, target)
        fused(self.family.language_model(target))  # now rather than in the first answer
        self.draft, self._dtype, self._draft_device, self._timeout = draft, draft_dtype, draft_device, draft_timeout
        self._process, self.trust_remote_code = process, trust_remote_code
        self._threaded = is_thread(draft_worker, str(self.target.device), draft_device)
        self._drafted = False
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copied or saved model does not share its original's draft."""
        return type(None), ()

    def start_draft(self) -> DraftProcess:
        """Start the draft's process unless it runs. Returns at once; `wait_loaded` waits for the model."""
        if self.draft is None:
            raise HippoError("there is no draft model", "name one, or use method 'ar'")
        if self._process is None or not self._process.alive:
            options = self._dtype, self._draft_device, self._timeout, self.trust_remote_code, self._threaded
            self._process = DraftProcess(self.draft, *options)
        return self._process

    def close(self) -> None:
        """End the draft's process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    @torch.no_grad()
    def answer(
        self,
        inputs: dict[str, Any],
        options: Options,
        stats: Stats,
        decode: Callable[[list[int]], str] | None = None,
        draft_inputs: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[list[int]]:
        """Answer one request; yield token ids as they are committed, the ending one included. Fills `stats`.

        inputs: what the processor returned, batch of one. decode: token ids -> text, needed only with stop strings.
        draft_inputs: the same request by the draft's own processor; the target's inputs serve both if there are none.
        progress: called with a phase and the share of it that is done, where a long prompt is read in parts.
        """
        if self._owner == threading.get_ident():
            raise HippoError("an answer of this pair is still being streamed", "finish or close it first")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                with mixed_dtypes_explained(self.target):
                    yield from self._answer(inputs, options, stats, decode, draft_inputs, progress)
            finally:
                self._owner = None

    @torch.no_grad()
    def look(self, inputs: dict[str, Any], kind: str = "all") -> tuple[Prompt, list[Signals]]:
        """Only look at one request: where its tokens stand, and what pruners judge each video's tokens by. kind: of
        attention, see `Pruner`. Raises HippoError, also where there is no video."""
        here = on_device(inputs, self.target.device)
        prompt = self.family.place(self.target, here)
        if not prompt.grids:
            raise HippoError("the prompt holds no video that is known as one", "pass one of two frames or more")
        self._check_length(prompt)
        embeds = self.family.embed(self.target, here)
        listener = self.listener(prompt, kind)
        with listening(self.family.language_model(self.target), listener):
            CachedModel.of(self.family, self.target).read(embeds, prompt)
        return prompt, signals_of(prompt, embeds.tokens[prompt.video_at], listener.scores)

    def _answer(
        self,
        inputs: dict[str, Any],
        options: Options,
        stats: Stats,
        decode: Callable[[list[int]], str] | None,
        draft_inputs: dict[str, Any] | None,
        progress: Progress | None,
    ) -> Iterator[list[int]]:
        began = time.perf_counter()
        if options.stop and decode is None:
            raise HippoError("stop strings need a tokenizer", "pass tokenizer=")
        here = on_device(inputs, self.target.device)
        prompt = self.family.place(self.target, here)
        self._check_length(prompt)
        gamma = Gamma(options.gamma, overlapped=options.decoder == "parallel")
        process = self._process_for(stats) if options.decoder != "ar" and ranks.leads() else None
        limit, alike = self._known_of(process)
        drafter = self._drafter(process, stats, gamma.saw_draft, limit, alike and draft_inputs is None)
        with ExitStack() as stack:
            stack.callback(drafter.end)
            if not drafter.alike:
                drafter.begin(inputs if draft_inputs is None else draft_inputs)
            share = stack.enter_context(sharing(process is not None and self.target.device.type == "cpu"))
            target = CachedModel.of(self.family, self.target, spare=options.max_new_tokens + LARGEST + 1)
            logits = self._read(here, prompt, target, drafter, options, stats, share, progress)
            session = self._session(target, prompt, options, gamma, stats, decode, share)
            first = session.start(logits)
            drafter.settle(0, first)
            decoding = time.perf_counter()
            try:
                yield first
                yield from decoder_named(options.decoder)(session, drafter)
            finally:
                stats.method = options.name
                stats.new_tokens = len(session.tokens)
                stats.target_forwards = target.forwards
                stats.finish = session.finish
                stats.seconds.decode = time.perf_counter() - decoding
                stats.seconds.total = time.perf_counter() - began

    def _process_for(self, stats: Stats) -> DraftProcess | None:
        """The draft's process, its model loaded. One that worked once and cannot be started again is only lost."""
        try:
            process = self.start_draft()
            loaded = process.wait_loaded()
        except HippoError as error:
            if not self._drafted:
                raise
            stats.draft_lost = error.cause
            return None
        if not self._drafted and (times := loaded.size / self.target.get_memory_footprint()) > 1:
            size = f"{times:.2f} times its bytes"
            stats.warnings.append(f"the draft is larger than the target ({size}): it will hardly save time")
        self._drafted = True
        return process

    def _read(
        self,
        inputs: dict[str, Any],
        prompt: Prompt,
        target: CachedModel,
        drafter: Drafter,
        options: Options,
        stats: Stats,
        share: Callable[[bool], None],
        progress: Progress | None,
    ) -> Tensor:
        """Vision tower, prefill, and the choice of the draft's tokens. Returns the prefill's logits, (vocabulary,)."""
        pruner, device = pruner_named(options.pruner), self.target.device
        begin = clock(device)
        share(not drafter.alike)  # the draft's vision tower works at the same time
        embeds = self.family.embed(self.target, inputs)
        share(False)
        looked = clock(device)
        scoring = 0.0

        def keep() -> None:
            nonlocal scoring
            began = clock(device)
            attention = ranks.mean(listeners[0].scores) if listeners else None  # each has some of the heads
            videos = signals_of(prompt, embeds.tokens[prompt.video_at], attention)
            kept = pruner.keep_all_of(videos, options.keep_ratio)
            if drafter.alike and not embeds.arguments:
                drafter.read(seen(prompt, embeds, kept, self.target.get_input_embeddings()))
            else:
                if drafter.alike:
                    drafter.begin(inputs)
                drafter.prefill(kept, prompt.grids)
            stats.kept_tokens = len(kept)
            scoring += clock(device) - began

        # The draft reads its prompt as soon as its tokens are chosen, which can be before the target's prefill ends.
        listens = pruner.attention and len(prompt.video_at)
        listeners = [self.listener(prompt, pruner.attention, keep)] if listens else []
        with listening(self.family.language_model(self.target), *listeners):
            if options.decoder != "ar" and not listeners:
                keep()
            logits = target.read(embeds, prompt, progress)
        prefilled = clock(device)
        scoring += sum(listener.seconds for listener in listeners)
        stats.prompt_tokens, stats.video_tokens = len(prompt.input_ids), len(prompt.video_at)
        stats.kv_cache_mib = target.size / 2**20
        stats.seconds.vision = looked - begin
        stats.seconds.prefill, stats.seconds.scoring = prefilled - looked - scoring, scoring
        return logits

    def listener(self, prompt: Prompt, kind: str, on_ready: Callable[[], None] = lambda: None) -> Listener:
        """For a prefill of the target with this prompt; see `Listener`."""
        layers = self.target.config.get_text_config().num_hidden_layers
        return Listener(prompt.question_at, prompt.video_at, kind, layers, on_ready)

    def _session(
        self,
        target: CachedModel,
        prompt: Prompt,
        options: Options,
        gamma: Gamma,
        stats: Stats,
        decode: Callable[[list[int]], str] | None,
        share: Callable[[bool], None],
    ) -> Session:
        chooser, stop = self._chooser(prompt, options), self._stop(options, decode)
        kind = Session if ranks.count() == 1 else LedSession
        return kind(
            target, chooser, stop, gamma, stats, share if options.decoder == "parallel" else lambda beside: None
        )

    def _known_of(self, process: DraftProcess | None) -> tuple[int, bool]:
        """Of a draft: how many ids it may propose, and whether it has the target's eyes and they are all here."""
        if process is None:
            return 0, False
        draft, vocabulary = process.wait_loaded(), self.target.get_output_embeddings().out_features
        return min(draft.vocabulary, vocabulary), draft.eyes == self._eyes and ranks.count() == 1

    def _drafter(
        self,
        process: DraftProcess | None,
        stats: Stats,
        on_step: Callable[[float], None],
        limit: int,
        alike: bool,
    ) -> Drafter:
        return Drafter(process, stats, on_step, limit, alike)

    def _chooser(self, prompt: Prompt, options: Options) -> Chooser:
        sampling = ranks.told(options.sampling.seeded())
        processors = logits_processors(self.target, sampling, prompt.input_ids, options.max_new_tokens)
        return Chooser(sampling, processors, prompt.input_ids)

    def _stop(self, options: Options, decode: Callable[[list[int]], str] | None) -> StopRule:
        eos = self.target.generation_config.eos_token_id
        eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
        return StopRule(eos, options.max_new_tokens, options.stop, decode)

    def _check_length(self, prompt: Prompt) -> None:
        limit = getattr(self.target.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(prompt.input_ids) >= limit:
            raise HippoError(
                f"the prompt has {len(prompt.input_ids)} tokens and the model's context {limit}",
                "use fewer --frames or a shorter prompt",
            )
