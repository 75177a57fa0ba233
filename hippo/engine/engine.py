"""Advances all requests together: reading ahead, prompts in parts, one target forward for all that decode."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch

from hippo.decode import Check
from hippo.device import bytes_per_token, cores, free_memory, sharing, use_threads
from hippo.engine.scheduler import Job, Scheduler, State
from hippo.engine.stream import Stream
from hippo.engine.together import Together
from hippo.errors import BadRequest, Busy, out_of_memory_explained
from hippo.forward import extend_together, unobserved
from hippo.pair import Pair
from hippo.prefix_cache import PrefixCache
from hippo.request import Read, Request
from hippo.sequence import Progress, Sequence
from hippo.text import TextStream

_PART = 512  # tokens of a long prompt that one forward reads while others decode
_SHARE = 0.8  # of the free memory that one more request may take
_POLL = 0.1  # seconds between checks for what was cancelled, while only reading is under way


class Engine:
    """Answers several requests at once with one pair.

    Whoever waits for an answer does the work of all, a step at a time; `start` has a thread do it.

    Args:
        pair: the models.
        tokenizer: of transformers.
        read: makes a request's inputs; called in threads. progress: see `hippo.sequence.Progress`.
        max_running: requests that hold a KV cache at the same time; others wait.
        cache_memory: bytes for what requests on one video share, 0 for none; None: a fifth of what is free.
        readers: threads that read videos ahead; None: one for every four cores.
    """

    def __init__(
        self,
        pair: Pair,
        tokenizer: Any,
        read: Callable[[Request, Progress | None], Read],
        max_running: int = 8,
        cache_memory: int | None = None,
        readers: int | None = None,
    ) -> None:
        if max_running < 1:
            raise BadRequest(f"max_running {max_running} is not positive", "let at least one request run")
        self.pair, self._tokenizer, self._read = pair, tokenizer, read
        self._readers = readers or max(1, cores() // 4)
        self.scheduler = Scheduler(max_running, self._readers, self._fits)
        draft = pair.draft
        self.together = Together(None)
        if draft is not None:
            self.together = Together(draft.costs, draft.place != "inline", answer=lambda: draft.answer_tokens)
        self._pool: ThreadPoolExecutor | None = None
        self.cache = None if cache_memory == 0 else PrefixCache(cache_memory)
        self._changed = threading.Condition()
        self._driver: int | None = None  # the thread that works
        self._thread: threading.Thread | None = None
        self._closed, self._process = False, os.getpid()

    def submit(self, request: Request, progress: Progress | None = None) -> Stream:
        """Take a request in. progress: called with a phase and the share of it that is done, in whatever thread works.
        Raises Busy."""
        if os.getpid() != self._process:
            raise Busy("the models were loaded before this process was forked", "load them in the process that asks")
        job = Job(request, TextStream(self._tokenizer), progress)
        with self._changed:
            self.scheduler.waiting.append(job)
            self._changed.notify_all()
        return Stream(self, job)

    def drive(self, until: Callable[[], bool]) -> None:
        """Work until a condition holds, or wait while another thread works."""
        me = threading.get_ident()
        while True:
            with self._changed:
                if self._driver == me:  # a callback asks, within a step
                    break
                while not until() and self._driver is not None:
                    self._changed.wait()
                if until():
                    return
                self._driver = me
            try:
                self.step()
            finally:
                with self._changed:
                    self._driver = None
                    self._changed.notify_all()
        with unobserved():
            while not until():
                self.step()

    def start(self) -> None:
        """Have a thread work until no request is left. A process with threads cannot fork, so it ends then."""
        with self._changed:
            if self._thread is None and self.scheduler.jobs:
                self._thread = threading.Thread(target=self._work, name="hippo-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End all requests. The engine can be used again."""
        with self._changed:
            self._closed, thread = True, self._thread
        with self.pair.lock:  # between steps, which would have them go on
            for job in self.scheduler.jobs:
                job.end(Busy("the models were closed", "load them again"))
                self.cancel(job)
            self.scheduler.drop_done()
        with self._changed:
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._closed, self._pool = False, None

    def cancel(self, job: Job, wait: bool = False) -> None:
        """End a request at the next step, or now where no step is under way. wait: for the step under way."""
        job.cancelled = True
        if job.state is State.DONE and job.sequence is None:
            return
        if job.reading is not None:
            job.reading.cancel()
        if self.pair.lock.acquire(blocking=wait):
            try:
                self._end(job)
            finally:
                self.pair.lock.release()
        with self._changed:
            self._changed.notify_all()

    def step(self) -> None:
        """Advance every request: one part of one prompt, one round of all that decode. Returns at once if there is
        none, and waits if all are still being read. An answer's first token is not held back by its second."""
        with self.pair.lock:
            self._drop_ended()
            self._read_ahead()
            for job in self.scheduler.admit():
                self._enter(job)
            if (prefilling := self.scheduler.next_prefill()) is not None:
                self._prefill(prefilling)
            decoding = self.scheduler.decoding()
            others = len(self.scheduler.running) - len(decoding)  # whose prompts are read
            if len(decoding) > 1 or (others and decoding and decoding != [prefilling]):
                self._round(decoding, others)
            elif decoding and decoding != [prefilling]:
                self._alone(decoding[0])
            self._drop_ended()
            reading = [job.reading for job in self.scheduler.waiting if job.reading is not None]
            idle = not self.scheduler.running
            if idle and not self.scheduler.waiting and self._pool is not None:
                self._pool.shutdown(wait=False)  # threads would keep a lost draft from being forked again
                self._pool = None
        if idle and reading:
            wait(reading, timeout=_POLL, return_when=FIRST_COMPLETED)

    def _work(self) -> None:
        while True:
            try:
                self.drive(lambda: self._closed or not self.scheduler.jobs)
            except BaseException as error:  # nobody else would hear of it, and all would wait for ever
                for job in self.scheduler.jobs:
                    self._end(job, error)
                self.scheduler.drop_done()
            with self._changed:
                if self._closed or not self.scheduler.jobs:
                    self._thread = None
                    return

    def _drop_ended(self) -> None:
        for job in self.scheduler.jobs:
            if job.cancelled:
                self._end(job)
        self.scheduler.drop_done()

    def _read_ahead(self) -> None:
        to_read = self.scheduler.to_read()
        if len(to_read) == 1 and len(self.scheduler.jobs) == 1:  # nobody is held up, and it has all cores
            (job,) = to_read
            job.state, job.reading = State.READING, Future()
            job.reading.set_running_or_notify_cancel()
            with self._failing(job):
                job.reading.set_result(self._read(job.request, job.progress))
            return
        for job in to_read:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self._readers, "hippo-reader", use_threads, (1, torch.get_num_threads())
                )
            job.state = State.READING
            job.reading = self._pool.submit(self._read, job.request, job.progress)

    def _enter(self, job: Job) -> None:
        assert job.reading is not None
        with self._failing(job):
            read, job.reading = job.reading.result(), None
            job.warnings, job.stats.draft_lost = read.warnings, read.draft_lost
            job.stats.seconds.video = job.stats.seconds.total = read.seconds
            job.sequence = Sequence(
                self.pair,
                read.inputs,
                read.params,
                job.stats,
                decode_text=self._tokenizer.decode,
                draft_inputs=read.draft_inputs,
                progress=job.progress,
                cache=self.cache,
                media=read.media,
            )
            job.state = State.PREFILL

    def _prefill(self, job: Job) -> None:
        """A part of a prompt, or all of it where no other request is held up."""
        sequence = job.sequence
        assert sequence is not None
        sequence.part = _PART if self.scheduler.decoding() else None
        began = time.perf_counter()
        with self._failing(job), self._sharing([sequence]) as share:
            tokens: Any = sequence.advance(share=share)
            sequence.took(time.perf_counter() - began)
            if job.sequence is not sequence:  # a callback has ended it
                sequence.close()
            elif tokens or tokens is None:
                job.state = State.DECODING
                self._commit(job, tokens)

    def _alone(self, job: Job) -> None:
        """A round of the only request that decodes."""
        assert job.sequence is not None
        with self._failing(job):
            self._commit(job, job.sequence.step())

    def _round(self, jobs: list[Job], coming: int) -> None:
        """A round of several requests, or of one of two groups: the draft is asked for all of them before the first
        waits for its tokens, and one forward checks the windows of those whose turn it is. coming: requests that will
        soon decode with them."""
        began, committed = time.perf_counter(), 0
        decoding = {job.sequence: job for job in jobs if job.sequence is not None}
        self.together.begin_step(list(decoding), coming)
        with self._sharing(list(decoding)) as share:
            share(self._ask(decoding))
            due = self.together.due([sequence for sequence, job in decoding.items() if job.sequence is sequence])
            checks = []
            for sequence in due:
                job = decoding[sequence]
                with self._failing(job):
                    wanted = sequence.advance()
                    if isinstance(wanted, Check):
                        checks.append((job, sequence, wanted.ids))
                    else:
                        self._commit(job, None)
            for (job, sequence, _), logits in zip(checks, self._extend(checks), strict=True):
                if logits is not None:
                    with self._failing(job):
                        tokens: Any = sequence.advance(logits)
                        committed += len(tokens or ())
                        sequence.took(time.perf_counter() - began)
                        self._commit(job, tokens)
        seconds = time.perf_counter() - began
        checked = [sequence for _, sequence, _ in checks]
        forward = max((sequence.target.seconds for sequence in checked if sequence.target is not None), default=0.0)
        self.together.end_step(checked, [len(ids) for _, _, ids in checks], forward, seconds, committed)
        for sequence, job in decoding.items():
            if job.sequence is sequence and sequence not in due:
                sequence.took(seconds)

    def _ask(self, decoding: dict[Sequence, Job]) -> bool:
        """Ask the draft for all that wait for neither its tokens nor the target. Returns whether it works beside the
        target."""
        beside = [False]
        for sequence, job in decoding.items():
            sequence.schedule.join(len(decoding), self.together.mode, self.together.rates)
            if not sequence.proposed:
                with self._failing(job):
                    if sequence.advance(share=beside.append) is None:
                        self._commit(job, None)
        return any(beside)

    def _extend(self, checks: list[tuple[Job, Sequence, list[int]]]) -> list[torch.Tensor | None]:
        """The logits of each request. If the forward for all of them fails, each has its own."""
        targets = [(sequence.target, ids) for _, sequence, ids in checks if sequence.target is not None]
        try:
            return list(extend_together(targets)) if targets else []
        except Exception:  # what is wrong with one of them shows again in its own forward
            logits: list[torch.Tensor | None] = []
            for (job, _, ids), (target, _) in zip(checks, targets, strict=True):
                logits.append(None)
                with self._failing(job):
                    logits[-1] = target.extend(ids)
            return logits
        except BaseException:
            for job, _, _ in checks:
                self._end(job, Busy("the answer was interrupted", "ask again"))
            raise

    def _commit(self, job: Job, tokens: list[int] | None) -> None:
        """Hand over what a request committed; None at its end."""
        piece = job.text.finish() if tokens is None else job.text.push(tokens)
        if piece:
            job.pieces.append(piece)
            job.on_change()
        if tokens is None:
            self._end(job)

    def _end(self, job: Job, error: BaseException | None = None) -> None:
        sequence, job.sequence = job.sequence, None
        try:
            if sequence is not None:
                sequence.close()  # its KV cache goes with it
        except Exception as failure:
            error = error or failure
        finally:
            job.end(error)

    @contextmanager
    def _failing(self, job: Job) -> Iterator[None]:
        """What goes wrong inside ends this request alone."""
        try:
            with out_of_memory_explained():
                yield
        except Exception as error:
            self._end(job, error)
        except BaseException:
            self._end(job, Busy("the answer was interrupted", "ask again"))
            raise

    @contextmanager
    def _sharing(self, sequences: list[Sequence]) -> Iterator[Callable[[bool], None]]:
        """As `hippo.device.sharing`, with the threads that read as well as with drafts."""
        reading = any(job.state is State.READING and not job.has_been_read for job in self.scheduler.waiting)
        with sharing(reading or any(sequence.shares_cores for sequence in sequences)) as share:
            share(reading)
            yield lambda beside: share(beside or reading)

    def _fits(self, job: Job) -> bool:
        """Whether memory holds the KV caches of a request that was read, beside those that run."""
        assert job.reading is not None
        if job.reading.exception() is not None:
            return True  # it needs none
        inputs, target = job.reading.result().inputs, self.pair.target
        job.tokens = inputs["input_ids"].shape[-1] + job.request.params.max_new_tokens
        begin = (State.READING, State.PREFILL)  # whose KV cache is not there yet
        entered = sum(other.tokens for other in self.scheduler.running if other.state in begin)
        size = bytes_per_token(target.config, target.dtype) * (job.tokens + entered)
        return size < _SHARE * free_memory(target.device)
