"""Drafters without a model: n-grams, and those that users plug in."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

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


class ProposerWorker:
    """As `hippo.draft.worker.Worker`, with plug-ins in place of a model. What goes wrong in one ends the drafts of its
    request alone."""

    loaded = messages.Loaded(_ANY, 0, "")

    def __init__(self, send: Callable[[Any], None], plugin: Plugin) -> None:
        self._send, self._plugin = send, plugin
        self._requests: dict[int, _Drafting] = {}

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
        proposer = self._plugin.make()
        proposer.commit(prompt)
        ended = time.perf_counter()
        self._requests[id] = _Drafting(proposer, limit)
        self._send(messages.Ready(id, ended - began, "", began, ended, len(prompt)))

    def _propose(self, id: int, request: _Drafting, count: int) -> None:
        began = time.perf_counter()
        # Only now: a drafter that rests takes no time.
        if new := request.text[request.known : request.committed]:
            request.proposer.commit(new)
            request.known = request.committed
        tokens = self._checked(request.proposer.propose(count), count, request.limit)
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
