"""Captions as a stage of a Ray Data pipeline, with the columns that Ray's own LLM processors have."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hippo.inputs import split_options
from hippo.llm import load
from hippo.params import SamplingParams
from hippo.request import DEFAULT_PROMPT, Output, Request, messages_from

COLUMNS = ("generated_text", "num_input_tokens", "num_generated_tokens", "time_taken_llm", "__inference_error__")
Batch = Mapping[str, Any]


class Captioner:
    """For `ds.map_batches(hippo.ray.Captioner, fn_constructor_kwargs=...)`. The pair is loaded once in each actor.

    A row has `messages`, turns as OpenAI's API has them, or `video`, `prompt` and `system`, each of which may be left
    out; and perhaps `sampling_params`, options of its own. All columns are kept, and these are added:

        generated_text: the answer, "" after an error.
        num_input_tokens, num_generated_tokens: of the prompt, with its videos, and of the answer.
        time_taken_llm: seconds from reading the videos to the last token. Requests of a batch share them.
        __inference_error__: "" on success.

    Args:
        target, draft: see `hippo.load`.
        prompt, system, frames, fps, max_video_tokens: of rows without; see `hippo.VideoLLM.generate`.
        load_options: the other arguments of `hippo.load`.
        options: of every request, see `hippo.VideoLLM.generate`; `max_tokens` is `max_new_tokens`.

    Raises:
        HippoError: if the pair cannot be loaded, or for an unknown option. What is wrong with a row is in the row.
    """

    def __init__(
        self,
        target: str | Path = "tiny",
        draft: str | Path | None = None,
        *,
        prompt: str = DEFAULT_PROMPT,
        system: str = "",
        frames: int | None = None,
        fps: float | None = None,
        max_video_tokens: int | None = None,
        load_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._prompt, self._system, self._options = prompt, system, options
        self._sampled: dict[str, Any] = {"frames": frames, "fps": fps, "max_video_tokens": max_video_tokens}
        decoder = self._asked({"prompt": "?"}).params.decoder
        self._llm = load(target, draft, **{"start_draft": decoder != "ar"} | dict(load_options or {}))

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """A batch in Ray's default format, columns as arrays."""
        rows = [{name: column[place] for name, column in batch.items()} for place in range(_length(batch))]
        answers, asked = dict[int, Output | Exception](), list[int]()

        def requests() -> Any:
            for place, row in enumerate(rows):
                try:
                    request = self._asked(row)
                except Exception as error:  # a row may hold anything
                    answers[place] = error
                    continue
                asked.append(place)
                yield request

        for index, answer in self._llm.as_completed(requests()):
            answers[asked[index]] = answer
        added = [_columns(answers[place]) for place in range(len(rows))]
        return {**batch, **{name: np.array([row[name] for row in added]) for name in COLUMNS}}

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit parts of it may be gone already
            self._llm.close()

    def _asked(self, row: Mapping[str, Any]) -> Request:
        """A row's request. Raises HippoError."""
        given = {name: value for name, value in _plain(row).items() if value is not None}
        messages = given.get("messages")
        beside = {"prompt": self._prompt, "system": self._system} if messages is None else {}
        beside |= {name: given[name] for name in ("video", "prompt", "system") if name in given}
        turns = messages_from(
            beside.get("video"), beside.get("prompt", DEFAULT_PROMPT), messages, beside.get("system", "")
        )
        media, rest = split_options(self._options | given.get("sampling_params", {}))
        if "max_tokens" in rest:
            rest["max_new_tokens"] = rest.pop("max_tokens")
        return Request(turns, SamplingParams.of(**rest), media=media, **self._sampled)


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values()), ()))


def _columns(answer: Output | Exception) -> dict[str, Any]:
    if isinstance(answer, Output):
        stats = answer.stats
        values = (answer.text, stats.prompt_tokens, len(answer.token_ids), stats.seconds.total, "")
    else:
        values = ("", 0, 0, 0.0, f"{type(answer).__name__}: {answer}")
    return dict(zip(COLUMNS, values, strict=True))


def _plain(value: Any) -> Any:
    """A value as it was before Arrow gave all rows the same keys, and numpy made arrays of lists. Frames stay as they
    are."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        value = value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    return [_plain(one) for one in value] if isinstance(value, list) else value
