"""The draft's side: it loads the draft model, then proposes tokens for several requests until its transport closes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hippo.checkpoints import Checkpoint, load_model
from hippo.device import bytes_per_token
from hippo.draft import messages
from hippo.draft.proposer import Plugin, ProposerWorker
from hippo.draft.shared_vision import vision_fingerprint
from hippo.draft.transport import Transport
from hippo.errors import is_out_of_memory
from hippo.families import Embeds, Prompt, VideoGrid, family_of
from hippo.forward import CachedModel, Repetition, extend_together, likeliest
from hippo.forward.quantize import quantize
from hippo.pruning import remap_grid


class DraftRequest:
    """What the draft knows of one request. tokens: generated and proposed, the first `fed` of them in the KV cache.
    wanted: tokens still to propose. epoch: commits seen. seconds: of vision tower and prefill. limit, penalty, answer:
    see `messages.Begin`."""

    def __init__(self, model: Any, limit: int, penalty: float = 1.0, answer: int = messages.ANSWER) -> None:
        self._model, self._family, self.limit, self._penalty = model, family_of(model), limit, penalty
        self._answer = answer
        self._repetition: Repetition | None = None  # of the prompt
        self._device = next(model.parameters()).device
        self._prompt: Prompt | None = None
        self._embeds: Embeds | None = None
        self.cached: CachedModel | None = None
        self._tokens: list[int] = []
        self._fed = self.wanted = self.epoch = 0
        self.seconds, self.warning = 0.0, ""

    def begin(self, inputs: dict[str, Any]) -> None:
        """Encode the video."""
        inputs = self._here(inputs)
        self._prompt = self._family.prepare_prompt(self._model.config, inputs)
        self._embeds = self._family.embed(self._model, inputs)

    def prefill(self, kept: Tensor, grids: tuple[VideoGrid, ...]) -> None:
        """Read the prompt with the tokens that are kept of the target's grids."""
        assert self._prompt is not None and self._embeds is not None
        prompt, embeds, self._embeds = self._prompt, self._embeds, None
        known, videos = len(prompt.grids), len(grids)
        if known == videos:
            kept = remap_grid(kept.cpu(), grids, prompt.grids)
        else:
            kept = torch.arange(len(prompt.video_at))
            self.warning = f"the draft's prompt holds {known} videos and the target's {videos}: all its tokens are kept"
        stays = prompt.keep(kept).to(self._device)
        # Kept tokens keep their positions in the whole prompt.
        self._penalise(prompt.input_ids)
        self._read(embeds[stays], prompt.positions[:, stays], prompt.next_position)

    def read(self, prompt: dict[str, Tensor]) -> None:
        """Read a prompt whose video the target has encoded."""
        prompt, lookup = self._here(prompt), self._model.get_input_embeddings()
        embeds = lookup(prompt["ids"].clamp(max=lookup.weight.shape[0] - 1))
        embeds[prompt["at"]] = prompt["rows"].to(embeds)
        self._penalise(prompt["ids"])
        self._read(Embeds(embeds), prompt["positions"], prompt["next_position"])

    def _penalise(self, ids: Tensor) -> None:
        if self._penalty != 1:
            vocabulary = self._model.get_output_embeddings().out_features
            nothing = Repetition(
                torch.zeros(vocabulary, dtype=torch.bool, device=self._device),
                torch.tensor(self._penalty, device=self._device),
            )
            self._repetition = nothing.followed_by(ids[ids < self.limit])

    @property
    def repetition(self) -> Repetition | None:
        """Of the prompt and all tokens so far; None if there is no penalty."""
        if self._repetition is None:
            return None
        ids = [token for token in self._tokens if token < self.limit]
        return self._repetition.followed_by(torch.tensor(ids, dtype=torch.long, device=self._device))

    def _here(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {key: value.to(self._device) if isinstance(value, Tensor) else value for key, value in inputs.items()}

    def _read(self, embeds: Embeds, positions: Tensor, next_position: Tensor) -> None:
        self.cached = CachedModel.of(self._family, self._model, spare=self._answer, drafts=True)
        self.cached.prefill_few(embeds, positions, next_position)

    def commit(self, length: int, tokens: list[int]) -> None:
        """See Commit."""
        self.epoch += 1
        self.wanted = 0
        if self.cached is not None and self._fed > length:
            self.cached.rollback(self._fed - length)
            self._fed = length
        self._tokens[length:] = tokens

    def feed(self) -> list[int]:
        """The tokens that the model reads before it proposes the next one."""
        size = self._model.get_input_embeddings().weight.shape[0]
        return [min(token, size - 1) for token in self._tokens[self._fed :]]

    def take(self, drafted: list[tuple[int, float]]) -> None:
        """The model has read `feed()` and proposes these tokens."""
        self.wanted -= len(drafted)
        self._tokens += [token for token, _ in drafted]
        self._fed = len(self._tokens) - 1


class Worker:
    """Serves several requests: a draft step is one forward for all that want tokens. Before every step it takes in what
    has arrived, so that the steps which a rejection made pointless are not run."""

    def __init__(self, transport: Transport, model: Any) -> None:
        self._transport, self._model = transport, model
        self._requests: dict[int, DraftRequest] = {}

    def serve(self) -> None:
        """Run until the other end closes, which raises ConnectionError."""
        while True:
            record = self._transport.receive(0 if any(request.wanted for request in self._requests.values()) else None)
            if record is not None:
                self.take_in(record)
            else:
                self.step()

    def step(self) -> bool:
        """A draft step of all requests that want tokens. Returns whether there was one."""
        wanting = {id: request for id, request in self._requests.items() if request.wanted}
        if not wanting:
            return False
        began = time.perf_counter()
        drafted = draft_together(list(wanting.values()))
        seconds = (time.perf_counter() - began) / max(map(len, drafted))
        for (id, request), proposals in zip(wanting.items(), drafted, strict=True):
            request.take(proposals)
            for place, (token, prob) in enumerate(proposals, 1):
                ended = began + place * seconds
                self._transport.send(messages.Token(id, request.epoch, token, prob, seconds, ended))
        return True

    def take_in(self, record: Any) -> None:
        """Do what a record says."""
        if isinstance(record, messages.Begin | messages.ReadPrompt):
            self._requests[record.request] = DraftRequest(self._model, record.limit, record.penalty, record.answer)
        request = self._requests.get(record.request)
        if request is None:  # it has failed
            return
        match record:
            case messages.Begin(_, inputs):
                self._prepare(record.request, lambda: request.begin(inputs))
            case messages.Prefill(_, kept, grids):
                self._prepare(record.request, lambda: request.prefill(kept, grids))
            case messages.ReadPrompt(_, prompt):
                self._prepare(record.request, lambda: request.read(prompt))
            case messages.Commit(_, length, tokens):
                request.commit(length, tokens)
            case messages.Propose(_, number):
                request.wanted += number
            case messages.End(id):
                del self._requests[id]

    @torch.inference_mode()
    def _prepare(self, id: int, part: Callable[[], None]) -> None:
        """Run a part of what comes before a request's first proposal. If it fails, only this request is lost."""
        began, request = time.perf_counter(), self._requests[id]
        try:
            part()
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):  # other requests would fail too
                raise
            del self._requests[id]
            reason = f"the draft cannot use the inputs ({_line(error)}): give it its own processor's, as draft_inputs"
            self._transport.send(messages.Failed(id, reason))
            return
        ended = time.perf_counter()
        request.seconds += ended - began
        if request.cached is not None:
            tokens = request.cached.length
            self._transport.send(messages.Ready(id, request.seconds, request.warning, began, ended, tokens))


@torch.inference_mode()
def draft_together(requests: list[DraftRequest]) -> list[list[tuple[int, float]]]:
    """The next token of each request with its probability, or a few tokens where forwards are recorded."""
    parts = [(one.cached, one.feed()) for one in requests if one.cached is not None]
    if len(parts) == 1 or not all(cached.joins() for cached, _ in parts):
        return [
            cached.draft(feed, one.wanted, one.limit, one.repetition)
            for one, (cached, feed) in zip(requests, parts, strict=True)
        ]
    logits = [rows[-1:] for rows in extend_together(parts)]
    best = [likeliest(rows, one.limit, one.repetition) for one, rows in zip(requests, logits, strict=True)]
    ids, probs = (torch.cat(each).tolist() for each in zip(*best, strict=True))
    return [[each] for each in zip(ids, probs, strict=True)]


def load_draft(
    source: str | Path | nn.Module,
    dtype: str,
    device: str,
    trust_remote_code: bool = False,
    bits: int = 16,
    attention: str = "",
) -> Any:
    """The draft model of a checkpoint folder, a hub id or a model in memory, in evaluation mode on its device.

    bits: of its weights, see `hippo.forward.quantize`. attention: see `hippo.checkpoints.known_attention`. A model in
    memory is somebody else's and stays as it is.
    """
    if isinstance(source, nn.Module):
        return source.eval()
    from transformers import logging

    logging.disable_progress_bar()
    model = load_model(Checkpoint(str(source), device, dtype, trust_remote_code, attention))
    quantize(model, bits)
    return model


def prepared(
    source: str | Path | nn.Module, dtype: str, device: str, trust: bool, bits: int, attention: str = ""
) -> tuple[Any, messages.Loaded]:
    """The draft model, ready to draft, and what the target must know of it."""
    model = load_draft(source, dtype, device, trust, bits, attention)
    family = family_of(model)
    CachedModel.of(family, model, drafts=True).prepare()
    vocabulary, size = model.get_output_embeddings().out_features, model.get_memory_footprint()
    token = bytes_per_token(model.config, model.dtype)
    return model, messages.Loaded(vocabulary, size, vision_fingerprint(family, model), token)


def work(
    transport: Transport,
    source: str | Path | nn.Module,
    dtype: str,
    device: str,
    threads: int,
    trust: bool,
    bits: int,
    attention: str = "",
) -> int:
    """Load the draft and serve until the transport closes. threads: of torch, 0 to leave them. Returns an exit code."""
    if threads:
        torch.set_num_threads(threads)
    try:
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(device)  # of this thread: what names no device would go to the first GPU
        with messages.heartbeat(transport.send):
            model, loaded = prepared(source, dtype, device, trust, bits, attention)
        transport.send(loaded)
        Worker(transport, model).serve()
    except ConnectionError:
        return 0
    except Exception as error:
        with suppress(ConnectionError):
            transport.send(messages.Failed(0, _line(error)))
        return 1
    finally:
        transport.close()
    return 0


class Inline:
    """The draft's side within the target's thread: it takes a step when its next record is waited for. Both models
    then have all cores and none of them waits for the other's messages, but they cannot work at the same time.

    It is both ends of a transport, and a child that ends when it is closed. timeout: see `ProposerWorker`.
    """

    def __init__(
        self,
        source: str | Path | nn.Module | Plugin,
        dtype: str,
        device: str,
        trust: bool,
        bits: int,
        attention: str = "",
        timeout: float = 20.0,
    ) -> None:
        self.pid = os.getpid()
        self._outbox: deque[Any] = deque()
        self._worker: Worker | ProposerWorker | None = None
        self._code: int | None = None
        if isinstance(source, Plugin):
            self._worker = ProposerWorker(self._outbox.append, source, timeout)
            self._outbox.append(self._worker.loaded)
            return
        try:
            model, loaded = prepared(source, dtype, device, trust, bits, attention)
        except Exception as error:
            self._outbox.append(messages.Failed(0, _line(error)))
            return
        self._worker = Worker(SimpleNamespace(send=self._outbox.append), model)  # type: ignore[arg-type]
        self._outbox.append(loaded)

    def send(self, record: Any) -> None:
        """See Transport."""
        self._guarded(lambda worker: worker.take_in(record))

    def receive(self, timeout: float | None) -> Any | None:
        """See Transport. With a timeout of 0 no step is taken."""
        while not self._outbox and timeout != 0:
            if not self._guarded(lambda worker: worker.step()):
                break
        return self._outbox.popleft() if self._outbox else None

    def close(self) -> None:
        """See Transport."""
        if isinstance(self._worker, ProposerWorker):
            self._worker.close()
        self._worker, self._code = None, 0

    def poll(self) -> int | None:
        """The exit code, or None while it is open."""
        return self._code

    def kill(self) -> None:
        """See `close`."""
        self.close()

    def _guarded(self, act: Callable[[Worker | ProposerWorker], Any]) -> Any:
        if self._code is not None or self._worker is None:
            raise ConnectionError("closed")
        try:
            return act(self._worker)
        except Exception as error:  # as if a process had failed: the target goes on alone
            self._outbox.append(messages.Failed(0, _line(error)))
            return True


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
