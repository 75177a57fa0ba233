"""The model of lmms-eval: its requests, several at a time, and what they cost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from inspect import signature
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from hippo.errors import BadRequest, HippoError, unknown
from hippo.inputs import MediaKeys, Messages, parts_of, split_options
from hippo.llm import load
from hippo.params import SamplingParams
from hippo.quiet import quiet
from hippo.request import Output, Request

_DECODING = ("method", "decoder", "pruner", "keep_ratio", "keep_at_most", "gamma", "verify_width")
_LOADING = tuple(name for name in signature(load).parameters if name not in ("target", "draft", "start_draft"))
_MEDIA = ("frames", "fps", "max_video_tokens")
_OWN = ("pretrained", "draft", "system_prompt", "max_new_tokens", "seed")
_KNOWN = (*_OWN, *_DECODING, *_LOADING, *_MEDIA, *MediaKeys.__annotations__)
_BATCHES = ("batch_size", "max_batch_size")  # lmms-eval always gives them; max_running is ours
_UNSTATED = ["\n\n"]  # `until` of tasks that state none


class Hippo(lmms):
    """A target and its draft for lmms-eval: `--model hippo`.

    Args:
        pretrained: the target: a checkpoint folder, a hub id, or "tiny", the bundled pair.
        draft: a smaller model with the same tokenizer, or ngram; not needed with method=ar.
        system_prompt: words, or a file that holds them.
        max_new_tokens: of tasks that state none.
        seed: of the first request where a task samples; each further one has the next.
        arguments: `method`, `decoder`, `pruner`, `keep_ratio`, `keep_at_most`, `gamma`, `verify_width` as
            `hippo.SamplingParams` has them; `frames`, `fps`, `max_video_tokens` and all of `hippo.inputs.MediaKeys` as
            `VideoLLM.generate` has them; `device`, `dtype`, `max_running` and all others as `hippo.load` has them, but
            `cache_memory` in MiB.

    Raises:
        HippoError: BadRequest, CheckpointError, OutOfMemory or DraftLost.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        draft: str | None = None,
        system_prompt: str = "",
        max_new_tokens: int = 256,
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in arguments.items() if name not in _BATCHES and value is not None}
        for name in given:
            if name not in _KNOWN:
                raise unknown("model argument", name, _KNOWN)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            cause = "lmms-eval runs in several processes, and a pair is loaded in one"
            raise BadRequest(cause, "start one process with device=all, or one a GPU with --limit and --offset")
        decoding = {name: given.pop(name) for name in _DECODING if name in given}
        self._decoding = decoding | {"max_new_tokens": max_new_tokens, "seed": seed}
        params = SamplingParams.of(**self._decoding)
        if params.decoder != "ar" and draft is None and "drafter" not in given and pretrained != "tiny":
            raise BadRequest("there is no draft model", "name one with draft= (ngram needs none), or use method=ar")
        self._sampling = {name: given.pop(name) for name in _MEDIA if name in given}
        loading = {name: given.pop(name) for name in _LOADING if name in given}
        if "cache_memory" in loading:
            loading["cache_memory"] <<= 20
        self._media, _ = split_options(given)
        Request([], params, media=self._media, **self._sampling)  # refuses what cannot be, before anything is loaded
        self._system = self._resolve_system_prompt(system_prompt)
        self._warned: set[str] = set()
        with quiet():
            self.llm = load(pretrained, draft, start_draft=params.decoder != "ar", **loading)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers, in the order of the requests.

        Tasks follow each other, so that each has a time of its own. Within a task, requests on one video follow each
        other, so that it is read once. A request with a HippoError has an empty answer, and a warning. Raises the
        first of these errors if no request has an answer.
        """
        answers: list[GenerationResult] = [GenerationResult("")] * len(requests)
        costs = {request.task_name: Costs() for request in requests}
        errors: list[HippoError] = []
        with tqdm(total=len(requests), desc="hippo") as bar:
            for task, cost in costs.items():
                began = time.perf_counter()
                mine = [index for index, request in enumerate(requests) if request.task_name == task]
                for index, answer in self._answers(requests, mine):
                    bar.update()
                    where = f"{task}, document {requests[index].doc_id}"
                    if isinstance(answer, Output):
                        cost.add(answer)
                        answers[index] = _result(answer)
                        context, options = requests[index].args[0], requests[index].args[2]
                        self.cache_hook.add_partial("generate_until", (context, options), answer.text)
                        self._warn_once([*answer.warnings, answer.stats.draft_lost], where)
                    elif isinstance(answer, HippoError):
                        logger.warning(f"{where}: {answer}")
                        errors.append(answer)
                        cost.failed += 1
                    else:
                        raise answer
                cost.seconds = time.perf_counter() - began
        if errors and len(errors) == len(requests):
            raise errors[0]
        if errors:
            logger.warning(f"{len(errors)} of {len(requests)} requests failed: their answers are empty")
        _log(costs)
        return answers

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Raises BadRequest."""
        raise BadRequest("hippo writes answers and gives no likelihood of given ones", "choose a generate_until task")

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        """Raises BadRequest."""
        raise BadRequest("hippo does not answer tasks of several rounds here", "choose a generate_until task")

    def clean(self) -> None:
        """End the draft, and free the memory of both models."""
        self.llm.close()
        del self.llm
        super().clean()

    def _answers(self, requests: Sequence[Instance], mine: Sequence[int]) -> Iterator[tuple[int, Output | Exception]]:
        """Indices of requests and their answers, as they end. mine: the indices to answer."""
        first: dict[str, int] = {}
        subjects = {index: first.setdefault(_subject(self._messages(requests[index])), index) for index in mine}
        order = sorted(mine, key=lambda index: subjects[index])
        # Messages are made again: those of image tasks hold the images, which may be too many to keep.
        coming = (
            Request(
                self._messages(requests[index]),
                self._params(requests[index].args[2], index),
                media=self._media,
                **self._sampling,
            )
            for index in order
        )
        with closing(self.llm.as_completed(coming)) as ended:
            for place, answer in ended:
                yield order[place], answer

    def _messages(self, request: Instance) -> Messages:
        _, doc_to_messages, _, doc_id, task, split = request.args
        raw = doc_to_messages(self.task_dict[task][split][doc_id])
        return self._apply_system_prompt(ChatMessages(messages=raw).to_hf_messages(), self._system)

    def _params(self, stated: Mapping[str, Any], index: int) -> SamplingParams:
        """Of one request. stated: the task's `generation_kwargs`, of which num_beams and the like are left out."""
        options = self._decoding | {"seed": self._decoding["seed"] + index}
        if length := stated.get("max_new_tokens"):
            options["max_new_tokens"] = length
        if stated.get("repetition_penalty"):
            options["repetition_penalty"] = float(stated["repetition_penalty"])
        if temperature := stated.get("temperature"):  # do_sample does not count in lmms-eval's other models either
            options["temperature"] = temperature
            options |= {name: stated[name] for name in ("top_k", "top_p", "min_p") if stated.get(name)}
        until = stated.get("until") or []
        if until != _UNSTATED:
            options["stop"] = [until] if isinstance(until, str) else until
        return SamplingParams.of(**options)

    def _warn_once(self, warnings: Sequence[str], where: str) -> None:
        for warning in warnings:
            if warning and warning not in self._warned:
                self._warned.add(warning)
                logger.warning(f"{where}, and maybe others: {warning}")


@dataclass
class Costs:
    """Of one task. answered, failed: requests. tokens: generated. forwards: of the target after the prefill. checked,
    accepted: drafted tokens. cached: prompt tokens that were read before. seconds: from the first request to the last
    answer. decoding: seconds of decoding, added over requests."""

    answered: int = 0
    failed: int = 0
    tokens: int = 0
    forwards: int = 0
    checked: int = 0
    accepted: int = 0
    prompt: int = 0
    cached: int = 0
    seconds: float = 0.0
    decoding: float = 0.0

    def add(self, output: Output) -> None:
        """Count one answer."""
        stats = output.stats
        self.answered += 1
        self.tokens += stats.new_tokens
        self.forwards += stats.target_forwards
        self.checked += stats.checked
        self.accepted += stats.accepted
        self.prompt += stats.prompt_tokens
        self.cached += stats.cached_tokens
        self.decoding += stats.seconds.decode


def _log(costs: Mapping[str, Costs]) -> None:
    """Once for all tasks: lmms-eval averages over calls. The results file has each number as avg_TASK/NAME."""
    tokens, seconds = sum(cost.tokens for cost in costs.values()), sum(cost.seconds for cost in costs.values())
    numbers = {f"{task}/{name}": value for task, cost in costs.items() for name, value in vars(cost).items()}
    log_metrics(seconds, tokens, tokens / max(seconds, 1e-9), numbers)


def _result(answer: Output) -> GenerationResult:
    counts = TokenCounts(input_tokens=answer.stats.prompt_tokens, output_tokens=len(answer.token_ids))
    return GenerationResult(answer.text, counts)


def _subject(messages: Messages) -> str:
    """The same for requests on the same videos, if these are paths or URLs."""
    return repr([video for video in parts_of(messages, "video") if isinstance(video, str)])
