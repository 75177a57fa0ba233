"""The draft's process: loads the draft model and proposes tokens until its pipe closes.

Started by `hippo.draft.process`, forked or in a fresh interpreter; not meant to be run by hand.
"""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hippo.checkpoints import Checkpoint, load_model
from hippo.draft.eyes import eyes_of
from hippo.draft.messages import (
    Begin,
    End,
    Failed,
    Keep,
    Loaded,
    Propose,
    Read,
    Ready,
    Settle,
    Token,
    put,
    take,
    unpacked,
)
from hippo.errors import HippoError, out_of_memory
from hippo.families import Embeds, Prompt, family_of
from hippo.forward import CachedModel, fused
from hippo.keep import carry


class Worker:
    """Serves one request after another. Between two draft steps (on a GPU, between two runs of a few) it always looks
    at its pipe, so a rejection is heard at once and the steps it made pointless are not run."""

    def __init__(self, pipe: Connection, model: Any) -> None:
        self._pipe = pipe
        self._model = model
        self._family = family_of(model)
        self._device = next(model.parameters()).device
        fused(self._family.language_model(model))  # now rather than in the first answer
        self._epoch = self._began = 0
        self._forget()

    def _forget(self) -> None:
        self._prompt: Prompt | None = None
        self._embeds: Embeds | None = None
        self._cached: CachedModel | None = None
        self._tokens: list[int] = []  # generated and proposed
        self._fed = 0  # of them, in the KV cache
        self._wanted = 0
        self._limit = 0
        self._seconds = 0.0

    def serve(self) -> None:
        """Run until the other end of the pipe closes."""
        while True:
            while not self._wanted or self._pipe.poll():
                self._hear(take(self._pipe))
            self._step()

    def _hear(self, message: Any) -> None:
        match message:
            case Begin():
                self._begin(message)
            case Keep():
                self._keep(message)
            case Read():
                self._read(message)
            case Settle(stands, tokens):
                self._epoch += 1
                self._wanted = 0
                if self._cached is not None and self._fed > stands:
                    self._cached.rollback(self._fed - stands)
                    self._fed = stands
                self._tokens[stands:] = tokens
            case Propose(number):
                self._wanted += number
            case End():
                self._forget()

    def _turn(self, limit: int) -> None:
        self._forget()
        self._epoch += 1
        self._began, self._limit = self._epoch, limit

    @torch.inference_mode()
    def _begin(self, begin: Begin) -> None:
        self._turn(begin.limit)
        began = time.perf_counter()
        inputs = unpacked(begin.inputs, self._device)
        try:
            self._prompt = self._family.place(self._model, inputs)
            self._embeds = self._family.embed(self._model, inputs)
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise HippoError(
                f"it cannot use the inputs ({type(error).__name__}: {reason})",
                "give it those of its own processor, as draft_inputs",
            ) from error
        self._seconds = time.perf_counter() - began

    def _keep(self, keep: Keep) -> None:
        assert self._prompt is not None and self._embeds is not None
        prompt, embeds = self._prompt, self._embeds
        self._embeds = None
        warning, known, videos = "", len(prompt.grids), len(keep.grids)
        if known == videos:
            kept = carry(torch.tensor(keep.kept, dtype=torch.long), keep.grids, prompt.grids)
        else:
            kept = torch.arange(len(prompt.video_at))
            warning = f"the draft's prompt holds {known} videos and the target's {videos}: it keeps all of its tokens"
        stays = prompt.keep(kept).to(self._device)
        # Kept tokens keep their places: the positions are those of the whole prompt.
        self._prefill(embeds[stays], prompt.positions[:, stays], prompt.next_position, warning)

    @torch.inference_mode()
    def _read(self, read: Read) -> None:
        self._turn(read.limit)
        told = unpacked(read.prompt, self._device)
        lookup = self._model.get_input_embeddings()
        embeds = lookup(told["ids"].clamp(max=lookup.weight.shape[0] - 1))
        embeds[told["at"]] = told["rows"].to(embeds)
        self._prefill(Embeds(embeds), told["positions"], told["next_position"])

    def _prefill(self, embeds: Embeds, positions: Tensor, next_position: Tensor, warning: str = "") -> None:
        began = time.perf_counter()
        self._cached = CachedModel.of(self._family, self._model)
        self._cached.prefill_few(embeds, positions, next_position)
        put(self._pipe, Ready(self._began, self._seconds + time.perf_counter() - began, warning))

    def _step(self) -> None:
        began = time.perf_counter()
        assert self._cached is not None
        size = self._model.get_input_embeddings().weight.shape[0]
        feed = [min(token, size - 1) for token in self._tokens[self._fed :]]
        drafted = self._cached.draft(feed, self._wanted, self._limit)
        self._wanted -= len(drafted)
        self._tokens += [token for token, _ in drafted]
        self._fed = len(self._tokens) - 1
        seconds = (time.perf_counter() - began) / len(drafted)
        for token, sure in drafted:
            put(self._pipe, Token(self._epoch, token, sure, seconds))


def load_draft(source: str | Path | nn.Module, dtype: str, device: str, trust_remote_code: bool = False) -> Any:
    """The draft model of a checkpoint folder, a hub id or a fork's parent, in evaluation mode on its device."""
    if isinstance(source, nn.Module):
        return source.eval()
    from transformers import logging

    logging.disable_progress_bar()
    return load_model(Checkpoint(str(source), device, dtype, trust_remote_code))


def work(
    descriptor: int, source: str | Path | nn.Module, dtype: str, device: str, threads: int, trust_remote_code: bool
) -> int:
    """Load the draft and serve the pipe with this file descriptor until it closes. threads: of torch's, 0 to leave them
    as they are. Returns an exit code."""
    with Connection(descriptor) as pipe:
        if threads:
            torch.set_num_threads(threads)
        try:
            model = load_draft(source, dtype, device, trust_remote_code)
            worker = Worker(pipe, model)
            vocabulary, size = model.get_output_embeddings().out_features, model.get_memory_footprint()
            put(pipe, Loaded(vocabulary, size, eyes_of(family_of(model), model)))
            worker.serve()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return 0
        except Exception as error:
            # The target carries on alone and tells the user why.
            put(pipe, Failed(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
            return 1
    return 0


def main() -> None:
    """`work`, with what a fresh interpreter was given on its command line."""
    _, descriptor, source, dtype, device, trust, threads = sys.argv
    sys.exit(work(int(descriptor), source, dtype, device, int(threads), trust == "trust"))
