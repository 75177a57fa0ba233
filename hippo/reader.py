"""From a request to the models' inputs. Needs processors and the target's configuration, and no weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hippo import tensor_parallel
from hippo.checkpoints import load_config, load_processor, own_processor, resolve
from hippo.errors import HippoError, out_of_memory_explained
from hippo.families import require_family
from hippo.inputs import Budget, MediaMemory, Messages, prepare, prepare_text, read_fitting, room_for
from hippo.quiet import quiet
from hippo.request import Read, Request


class Reader:
    """Reads and processes the videos of requests, in any number of threads.

    processor: the target's. draft_processor: the draft's own, if the target's does not serve both. config, dtype,
    device: the target's; they say how many video tokens the free memory holds. cache_memory: bytes for what later
    requests on the same video use again, 0 for none; None: a tenth of the free memory.
    """

    def __init__(
        self,
        processor: Any,
        draft_processor: Any,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        cache_memory: int | None = None,
    ) -> None:
        self.processor, self.draft_processor = processor, draft_processor
        self._config, self._dtype, self._device = config, dtype, device
        self._family = require_family(config.model_type)
        self._memory = None if cache_memory == 0 else MediaMemory(cache_memory)

    @classmethod
    def load(
        cls,
        target: str | Path = "tiny",
        draft: str | Path | None = None,
        *,
        dtype: str = "auto",
        cache_memory: int | None = None,
        trust_remote_code: bool = False,
    ) -> Reader:
        """The reader of a pair that is loaded elsewhere. The arguments are those of `hippo.load`. Raises HippoError."""
        draft = None if str(draft) in ("self", "ngram") else draft  # these have the target's inputs
        here, beside = resolve(target, draft, "cpu", dtype, "cpu", trust_remote_code)
        with quiet():
            processor = load_processor(here)
            own = None if beside is None else own_processor(processor, here, beside)
            config = load_config(here)
        return cls(processor, own, config, getattr(torch, here.dtype), torch.device("cpu"), cache_memory)

    def read(
        self, request: Request, progress: Callable[[float], None] | None = None
    ) -> tuple[Messages, dict[str, Any], tuple[str, ...]]:
        """Messages read, the processor's output for them, and what the user should know; see `read_fitting`."""
        if request.prompt is not None:
            return (), prepare_text(self.processor, request.prompt), ()
        config = self._config
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        budget = Budget(
            request.max_video_tokens,
            None if context is None else context - 1,
            lambda pixels: tensor_parallel.all_min(room_for(config, self._dtype, self._device, pixels)),
        )

        def read(process: Any = None) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[str, ...]]:
            with request.decoding() as decoder:
                return read_fitting(
                    self.processor,
                    request.messages,
                    lambda inputs: len(self._family.prepare_prompt(config, inputs).video_at),
                    budget,
                    options=request.media,
                    progress=progress,
                    process=process,
                    decoder=decoder,
                )

        with out_of_memory_explained():
            if self._memory is None or request.media.processor_kwargs:
                return read()
            options = (repr(request.media), request.max_video_tokens)
            return self._memory.read(self.processor, request.messages, options, read)

    def prepare(self, request: Request, progress: Callable[[float], None] | None = None) -> Read:
        """The inputs of a request for both models. Raises HippoError."""
        began, params, lost = time.perf_counter(), request.params, ""
        messages, inputs, warnings = self.read(request, progress)
        if request.on_read is not None:
            request.on_read(messages)
        draft_inputs = None
        if self.draft_processor is not None and params.decoder != "ar":
            try:
                text, own = request.prompt, self.draft_processor
                draft_inputs = prepare(own, messages) if text is None else prepare_text(own, text)
            except HippoError as error:
                params = replace(params, decoder="ar")
                lost = f"the draft cannot be asked this ({error.cause})"
        media = None if self._memory is None else self._memory.media_key(inputs)
        return Read(inputs, draft_inputs, params, warnings, time.perf_counter() - began, lost, media)
