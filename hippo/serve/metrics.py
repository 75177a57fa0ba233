"""What Prometheus reads, under vLLM's names with our prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from hippo.request import Output

_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = tuple(float(1 << power) for power in range(18))


def _between(output: Output) -> list[float]:
    return [after - before for before, after in pairwise(sorted({token.seconds for token in output.tokens}))]


def _mean_between(output: Output) -> list[float]:
    seconds = [token.seconds for token in output.tokens]
    return [(seconds[-1] - seconds[0]) / (len(seconds) - 1)] if len(seconds) > 1 else []


def _queued(output: Output) -> list[float]:
    began = min(span.began for span in output.timeline if span.who == "target")
    return [max(0.0, began - output.stats.seconds.video)]


_COUNTERS: dict[str, tuple[str, Callable[[Output], float]]] = {
    "prompt_tokens": ("Tokens of prompts", lambda one: one.stats.prompt_tokens),
    "generation_tokens": ("Tokens of answers", lambda one: len(one.tokens)),
    "prefix_cache_queries": ("Tokens that the prefix cache was asked for", lambda one: one.stats.prompt_tokens),
    "prefix_cache_hits": ("Tokens that the prefix cache had", lambda one: one.stats.cached_tokens),
    "spec_decode_num_drafts": ("Target forwards beside which the draft worked", lambda one: one.stats.draft_rounds),
    "spec_decode_num_draft_tokens": ("Drafted tokens that the target checked", lambda one: one.stats.checked),
    "spec_decode_num_accepted_tokens": ("Drafted tokens that the target accepted", lambda one: one.stats.accepted),
    "draft_lost": ("Answers that the target finished without its draft", lambda one: bool(one.stats.draft_lost)),
}
# Of requests that have a token.
_HISTOGRAMS: dict[str, tuple[str, Sequence[float], Callable[[Output], Sequence[float]]]] = {
    "request_prompt_tokens": ("Tokens of a prompt", _TOKENS, lambda one: [one.stats.prompt_tokens]),
    "request_generation_tokens": ("Tokens of an answer", _TOKENS, lambda one: [len(one.tokens)]),
    "request_read_time_seconds": ("Reading videos and images", _SECONDS, lambda one: [one.stats.seconds.video]),
    "request_queue_time_seconds": ("Until the target begins, without reading", _SECONDS, _queued),
    "request_prefill_time_seconds": (
        "The target's vision tower and prefill",
        _SECONDS,
        lambda one: [one.stats.seconds.vision + one.stats.seconds.prefill],
    ),
    "request_decode_time_seconds": (
        "From the first token to the last",
        _SECONDS,
        lambda one: [one.tokens[-1].seconds - one.tokens[0].seconds],
    ),
    "time_to_first_token_seconds": (
        "From the request to its first token",
        _SECONDS,
        lambda one: [one.tokens[0].seconds],
    ),
    "inter_token_latency_seconds": ("Between the tokens of one step and of the next", _TOKEN_SECONDS, _between),
    "request_time_per_output_token_seconds": ("Between tokens, a request's mean", _TOKEN_SECONDS, _mean_between),
    "e2e_request_latency_seconds": (
        "From the request to its last token",
        _SECONDS,
        lambda one: [one.tokens[-1].seconds],
    ),
}


class Metrics:
    """Of one server. model: the name it serves under. running, waiting: requests now."""

    def __init__(self, model: str, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._model = model
        for name, text, count in (
            ("num_requests_running", "Requests that are being answered", running),
            ("num_requests_waiting", "Requests that wait, or whose video is being read", waiting),
        ):
            Gauge(f"hippo:{name}", text, ["model_name"], registry=self.registry).labels(model).set_function(count)
        self._counters = [(self._counter(name, text).labels(model), of) for name, (text, of) in _COUNTERS.items()]
        self._histograms = [
            (self._histogram(name, text, buckets), of) for name, (text, buckets, of) in _HISTOGRAMS.items()
        ]
        self._accepted = self._counter(
            "spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by their position in the window", "position"
        )
        self._ended = self._counter("request_success", "Requests by how they ended", "finished_reason")
        for reason in ("stop", "length", "abort", "error"):
            self._ended.labels(model, reason)
        self._refused = self._counter("admission_rejections", "Requests that were answered 503").labels(model)

    def refused(self) -> None:
        """A request was not let in."""
        self._refused.inc()

    def ended(self, reason: str, output: Output | None = None) -> None:
        """A request has ended. reason: stop, length, abort or error. output: what it brought."""
        self._ended.labels(self._model, reason).inc()
        if output is None:
            return
        for counter, of in self._counters:
            counter.inc(of(output))
        for position, count in enumerate(output.stats.accepted_at):
            self._accepted.labels(self._model, position).inc(count)
        for histogram, values_of in self._histograms if output.tokens else ():
            for value in values_of(output):
                histogram.observe(value)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"hippo:{name}", text, ["model_name", *labels], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        made = Histogram(f"hippo:{name}", text, ["model_name"], registry=self.registry, buckets=buckets)
        return made.labels(self._model)
