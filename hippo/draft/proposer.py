"""Drafters without a model: n-grams, and those that users plug in."""

from __future__ import annotations

import operator
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

import torch

from hippo import plugins
from hippo.draft import messages
from hippo.draft.ngram import NGram
from hippo.errors import BadRequest, DraftLost, HippoError

DRAFTERS = {"ngram": NGram}
_ANY = 1 << 62  # a vocabulary that sets no limit


class Proposer(Protocol):
    """What drafts for one request. Its methods are called by one thread at a time, in the target's process."""

    def commit(self, tokens: list[int]) -> None:
        """These tokens follow in the text, whether they were proposed or not. The first call has the prompt's ids, the
        places of videos and images among them; later ones have the answer's."""

    def propose(self, count: int) -> list[int]:
        """At most `count` token ids, at least 1, that may follow all that was committed; none where it knows none."""


class Plugin(NamedTuple):
    """make: returns a new `Proposer`, one for each request."""

    name: str
    make: Callable[[], Any]


def plugin_of(drafter: str | Callable[[], Proposer]) -> Plugin:
    """The drafter that a name stands for, or a class, or a function that returns a `Proposer`. One is made to try it.
    Raises BadRequest."""
    if isinstance(drafter, str):
        name, make = drafter, DRAFTERS.get(drafter) or plugins.load("drafter", drafter, tuple(DRAFTERS))
    else:
        name, make = plugins.name_of(drafter), drafter
    if not callable(make):
        raise BadRequest(
            f"drafter {name!r} is an object, and every request needs its own",
            "pass its class, or a function that makes one",
        )
    try:
        made = make()
    except HippoError:
        raise
    except Exception as error:
        raise BadRequest(
            f"drafter {name!r} cannot be made ({plugins.said(error)})", "it is called without arguments"
        ) from error
    for method in ("commit", "propose"):
        if not callable(getattr(made, method, None)):
            raise BadRequest(f"drafter {name!r} has no method {method}", "see hippo.draft.Proposer")
    return Plugin(name, make)


class _Drafting:
    """One request. text: tokens generated and proposed, the first `committed` of them accepted, the first `known` of
    them passed on to the proposer. epoch: commits seen."""

    def __init__(self, proposer: Proposer, limit: int) -> None:
        self.proposer, self.limit = proposer, limit
        self.text: list[int] = []
        self.committed = self.known = self.epoch = 0


class _Limited:
    """Calls users' code in a thread, and goes on without it after `seconds`. Nothing can end a thread in Python: one
    that never returns is left behind, and the next call gets another."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] | None = None
        self._results: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def __call__(self, call: Callable[..., Any], *given: Any) -> Any:
        """What the call returns or raises. Raises TimeoutError."""
        if self._calls is None:
            self._calls, self._results = SimpleQueue(), SimpleQueue()
            threading.Thread(
                target=_serve, args=(self._calls, self._results), name="hippo-drafter", daemon=True
            ).start()
            self._end = weakref.finalize(self, self._calls.put, None)
        self._calls.put((call, given))
        try:
            result, error = self._results.get(timeout=self._seconds)
        except Empty:
            self.close()
            raise TimeoutError(f"no answer in {self._seconds:g} s") from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread, once it has returned. It ends with this object too."""
        if self._calls is not None:
            self._end()
            self._calls = None


@torch.no_grad()  # which is of a thread
def _serve(calls: SimpleQueue[Any], results: SimpleQueue[Any]) -> None:
    while (wanted := calls.get()) is not None:
        call, given = wanted
        try:
            results.put((call(*given), None))
        except Exception as error:
            results.put((None, error))


class ProposerWorker:
    """As `hippo.draft.worker.Worker`, with plug-ins in place of a model. What goes wrong in one ends the drafts of its
    request alone. timeout: seconds that a call of a plug-in may take; our own drafters are called directly."""

    loaded = messages.Loaded(_ANY, 0, "")

    def __init__(self, send: Callable[[Any], None], plugin: Plugin, timeout: float) -> None:
        self._send, self._plugin = send, plugin
        self._requests: dict[int, _Drafting] = {}
        self._limited = None if plugin.make in DRAFTERS.values() else _Limited(timeout)

    def close(self) -> None:
        """There are no more records."""
        if self._limited is not None:
            self._limited.close()

    def _call(self, call: Callable[..., Any], *given: Any) -> Any:
        return call(*given) if self._limited is None else self._limited(call, *given)

    def step(self) -> bool:
        """There is nothing to do between records."""
        return False

    def take_in(self, record: Any) -> None:
        """Do what a record says."""
        if not isinstance(record, messages.Begin) and record.request not in self._requests:  # it has failed
            return
        try:
            match record:
                case messages.Begin(id, inputs, limit):
                    self._begin(id, inputs["input_ids"][0].tolist(), limit)
                case messages.Commit(id, length, tokens):
                    request = self._requests[id]
                    request.text[length:] = tokens
                    request.committed, request.epoch = len(request.text), request.epoch + 1
                case messages.Propose(id, count):
                    self._propose(id, self._requests[id], count)
                case messages.End(id):
                    del self._requests[id]
        except Exception as error:
            self._requests.pop(record.request, None)
            reason = str(error) if isinstance(error, HippoError) else f"{self._named} failed ({plugins.said(error)})"
            self._send(messages.Failed(record.request, reason))

    @property
    def _named(self) -> str:
        return f"drafter {self._plugin.name!r}"

    def _begin(self, id: int, prompt: list[int], limit: int) -> None:
        began = time.perf_counter()
        proposer = self._call(self._plugin.make)
        self._call(proposer.commit, prompt)
        ended = time.perf_counter()
        self._requests[id] = _Drafting(proposer, limit)
        self._send(messages.Ready(id, ended - began, "", began, ended, len(prompt)))

    def _propose(self, id: int, request: _Drafting, count: int) -> None:
        began = time.perf_counter()
        # Only now: a drafter that rests takes no time.
        if new := request.text[request.known : request.committed]:
            self._call(request.proposer.commit, new)
            request.known = request.committed
        tokens = self._checked(self._call(request.proposer.propose, count), count, request.limit)
        ended = time.perf_counter()
        seconds = (ended - began) / max(1, len(tokens))
        request.text += tokens
        for token in tokens:
            # The probability of a token that is proposed for certain: how often it is right is measured.
            self._send(messages.Token(id, request.epoch, token, 1.0, seconds, ended))
        if len(tokens) < count:
            self._send(messages.NoMore(id, request.epoch, 0.0 if tokens else seconds))

    def _checked(self, proposed: Any, count: int, limit: int) -> list[int]:
        """What a plug-in proposed, as ints. Raises DraftLost that names it."""
        try:
            tokens = [operator.index(token) for token in proposed if not isinstance(token, bool)]
            whole = len(tokens) == len(proposed)
        except TypeError:
            whole = False
        if not whole:
            raise DraftLost(f"{self._named} proposed {str(proposed)[:60]!r}, which is no list of token ids")
        if len(tokens) > count:
            raise DraftLost(f"{self._named} proposed {len(tokens)} tokens and {count} were asked for")
        for token in tokens:
            if not 0 <= token < limit:
                raise DraftLost(f"{self._named} proposed token {token}, which is not in the vocabulary of {limit}")
        return tokens
