"""What Prometheus reads, under vLLM's names with our prefix."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hippo.request import Output

_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Of one server. model: the name it serves under. running, waiting: requests now."""

    def __init__(self, model: str, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        for name, text, count in (
            ("num_requests_running", "Requests that are being answered", running),
            ("num_requests_waiting", "Requests that wait, or whose video is being read", waiting),
        ):
            Gauge(f"hippo:{name}", text, ["model_name"], registry=self.registry).labels(model).set_function(count)
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self._generated = self._counter("generation_tokens", "Tokens of answers")
        self._queries = self._counter("prefix_cache_queries", "Tokens of prompts that the prefix cache was asked for")
        self._hits = self._counter("prefix_cache_hits", "Tokens of prompts that the prefix cache had")
        self._drafts = self._counter("spec_decode_num_drafts", "Target forwards beside which the draft worked")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Drafted tokens that the target checked")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafted tokens that the target accepted")
        self._lost = self._counter("draft_lost", "Answers that the target finished without its draft")
        self._ended = Counter(
            "hippo:request_success", "Requests by how they ended", ["model_name", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        for reason in ("stop", "length", "abort", "error"):
            self._ended.labels(model, reason)
        self._first = self._histogram("time_to_first_token_seconds", "From the request to its first token", _SECONDS)
        self._between = self._histogram(
            "inter_token_latency_seconds", "Between tokens, a request's mean", _TOKEN_SECONDS
        )
        self._whole = self._histogram("e2e_request_latency_seconds", "From the request to its last token", _SECONDS)

    def ended(self, reason: str, output: Output | None = None) -> None:
        """A request has ended. reason: stop, length, abort or error. output: what it brought."""
        self._ended.labels(self._model, reason).inc()
        if output is None:
            return
        stats, tokens = output.stats, output.tokens
        self._prompt.inc(stats.prompt_tokens)
        self._queries.inc(stats.prompt_tokens)
        self._hits.inc(stats.cached_tokens)
        self._generated.inc(len(tokens))
        self._drafts.inc(stats.draft_rounds)
        self._drafted.inc(stats.checked)
        self._accepted.inc(stats.accepted)
        self._lost.inc(bool(stats.draft_lost))
        if tokens:
            self._first.observe(tokens[0].seconds)
            self._whole.observe(tokens[-1].seconds)
        if len(tokens) > 1:
            self._between.observe((tokens[-1].seconds - tokens[0].seconds) / (len(tokens) - 1))

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"hippo:{name}", text, ["model_name"], registry=self.registry).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(f"hippo:{name}", text, ["model_name"], registry=self.registry, buckets=buckets)
        return made.labels(self._model)
