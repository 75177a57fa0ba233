"""A target and its draft, shared by all requests."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hippo import state, tensor_parallel
from hippo.decode import UNKNOWN, Costs
from hippo.device import has_tiles
from hippo.draft import Drafter, DraftWorker, Plugin, vision_fingerprint
from hippo.errors import BadRequest, CheckpointError, DraftLost
from hippo.families import Prompt, family_of
from hippo.forward import CachedModel, fused
from hippo.inputs import on_device
from hippo.params import SamplingParams
from hippo.pruning import Attention, AttentionRecorder, Signals, recording, signals_of
from hippo.stats import Stats

_ANSWER = 100.0  # tokens of an answer, before there was one
_KNOWN = {"acceptance": 1.0, "captured": 1.0, "answer_tokens": 1e6}  # of a draft, and the largest that makes sense
_LATEST = 0.1  # what the latest answer counts for how long the next one will be
# Tokens that are read for about the price of one by a GPU, or a CPU with tile products. Seven drafted tokens are enough
# for nine tenths of what any number would bring, up to an acceptance of 0.9.
_FREE_WIDTH = 8
_LONG = 4096  # tokens of an answer for which a GPU attends to a whole room in each step


def free_width(dtype: torch.dtype, device: str) -> int:
    """The width that "auto" pads target forwards to on a device, 0 for none. It must not depend on anything measured:
    texts of other runs would differ."""
    free = has_tiles() if device == "cpu" else True
    return _FREE_WIDTH if dtype in (torch.bfloat16, torch.float16) and free else 0


class Draft:
    """Where a draft comes from, and its worker, which is started again after it was lost.

    Args:
        source: a checkpoint folder, a hub id, a model in memory, or a plug-in, which works inline.
        timeout: seconds of silence after which the worker is given up.
        place: "process", "thread" or "inline", see `hippo.draft.placement`.
        bits: of its weights: 16, 8 or 4.
        trust_remote_code: whether code that the checkpoint brings may run.
        attention: see `hippo.checkpoints.known_attention`.
        pair: what names both models; with it, what answers measured is kept on disk, see `hippo.state`.
    """

    def __init__(
        self,
        source: str | Path | nn.Module | Plugin,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        timeout: float = 20.0,
        place: str = "process",
        trust_remote_code: bool = False,
        bits: int = 16,
        attention: str = "",
        pair: dict[str, Any] | None = None,
    ) -> None:
        self.source, self.device, self.dtype, self.timeout = source, device, dtype, timeout
        self.plugin = source if isinstance(source, Plugin) else None
        self.place = "inline" if self.plugin else place
        self.trust_remote_code, self.bits = trust_remote_code, bits
        self.attention = attention
        self.has_worked = False
        # What earlier answers measured.
        self.costs, self.acceptance, self.captured, self.answer_tokens = Costs(), UNKNOWN, 1.0, _ANSWER
        self._kept_by = pair and pair | {"bits": bits, "place": place, "threads": torch.get_num_threads()}
        self._recall()
        self.lock = threading.RLock()
        self._worker: DraftWorker | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.plugin.name if self.plugin else str(self.source)

    @property
    def checkpoint(self) -> str:
        """Where its model is. Raises BadRequest if it has none."""
        if self.plugin is not None:
            raise BadRequest(f"drafter {self.name!r} has no model", "name a draft model")
        return str(self.source)

    def worker(self) -> DraftWorker:
        """The worker, started unless it runs. Returns at once; `wait_loaded` waits for its model."""
        if self._worker is None or not self._worker.alive:
            self._worker = DraftWorker(
                self.source,
                self.dtype,
                self.device,
                self.timeout,
                trust_remote_code=self.trust_remote_code,
                place=self.place,
                bits=self.bits,
                attention=self.attention,
            )
        return self._worker

    @property
    def growth(self) -> float:
        """What a token in the draft's KV cache adds to what a draft step reads, over its weights; 0 until it is
        loaded."""
        loaded = None if self._worker is None else self._worker.loaded
        return loaded.token_size / loaded.size if loaded is not None and loaded.size else 0.0

    def learn(self, stats: Stats, tokens: int) -> None:
        """Take what an answer measured, beside costs and acceptance. tokens: of it, 0 if it did not come to its end."""
        prompts = [span for span in stats.trace.timeline if (span.who, span.what) == ("draft", "prefill")]
        if prompts:
            span = prompts[-1]
            self.costs.prompts.append((span.tokens, span.ended - span.began))
        if tokens:
            self.captured = stats.captured
            self.answer_tokens += _LATEST * (tokens - self.answer_tokens)

    def close(self) -> None:
        """End the worker, and keep on disk what was measured."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            if self._kept_by and self.costs.saw_drafts:
                known = {name: getattr(self, name) for name in _KNOWN}
                state.write("pair", self._kept_by, {"costs": self.costs.as_dict()} | known)

    def _recall(self) -> None:
        if self._kept_by and isinstance(kept := state.read("pair", self._kept_by), dict):
            with suppress(KeyError, TypeError, ValueError):
                costs, known = Costs.of_dict(kept["costs"]), {name: float(kept[name]) for name in _KNOWN}
                if all(0 <= known[name] <= most for name, most in _KNOWN.items()):
                    self.costs = costs
                    vars(self).update(known)


class Pair:
    """A target in this process and a draft beside it.

    draft: None if only `ar` is wanted. `lock` is held for a step of a request, never between steps.
    """

    def __init__(self, target: nn.Module, draft: Draft | None) -> None:
        model: Any = target.eval()
        self.target = model
        self.family = family_of(target)
        self.draft = draft
        self.lock = draft.lock if draft is not None else threading.RLock()
        self._on_cpu = model.device.type == "cpu"
        invariant = CachedModel.of(self.family, model).batch_invariant
        self._width = 0 if invariant else free_width(model.dtype, model.device.type)
        if not self._on_cpu and fused(self.family.language_model(model)) is None:
            self._width = 0  # not free: every forward would be transformers' own, and requests would not be joined
        CachedModel.of(self.family, model, fixed_width=self._width).prepare()

    def close(self) -> None:
        """End the draft's worker."""
        if self.draft is not None:
            self.draft.close()

    def require_draft(self) -> Draft:
        """The draft. Raises BadRequest if there is none."""
        if self.draft is None:
            hint = "name one, or drafter='ngram', which needs none, or use method 'ar'"
            raise BadRequest("there is no draft model", hint)
        return self.draft

    def drafter(self, stats: Stats, on_step: Any, own_inputs: bool, late: bool = False) -> Drafter:
        """A draft for one request. own_inputs: it has inputs of its own, so it cannot share what the target saw.
        late: see `Drafter`.

        A draft that is lost while it loads leaves the request to the target. Raises CheckpointError if it cannot be
        loaded at all, BadRequest if there is none.
        """
        draft = self.require_draft()
        if draft.plugin is not None:
            stats.drafter = draft.plugin.name
        if not tensor_parallel.is_leader():
            return Drafter(None, stats, on_step=on_step)
        worker = draft.worker()
        try:
            loaded = worker.wait_loaded()
        except (DraftLost, CheckpointError) as error:
            if isinstance(error, CheckpointError) and not draft.has_worked:
                raise
            worker.close()
            stats.draft_lost = error.cause
            return Drafter(None, stats, on_step=on_step)
        if not draft.has_worked and (times := loaded.size / self.target.get_memory_footprint()) > 1:
            stats.warnings.append(
                f"the draft is larger than the target ({times:.2f} times its bytes): it will hardly save time"
            )
        draft.has_worked = True
        vocabulary = min(loaded.vocabulary, self.target.get_output_embeddings().out_features)
        shared = tensor_parallel.world_size() == 1 and not own_inputs
        shared = shared and draft.plugin is None and loaded.vision == vision_fingerprint(self.family, self.target)
        return worker.drafter(stats, on_step=on_step, limit=vocabulary, shared_vision=shared, late=late)

    def fixed_width(self, params: SamplingParams) -> int:
        """The width that a request's target forwards are padded to, 0 for none; see `SamplingParams.verify_width`."""
        if params.verify_width != "auto":
            return int(params.verify_width)
        return self._width if self._on_cpu or params.max_new_tokens <= _LONG else 0

    def prepare_prompt(self, inputs: dict[str, Any]) -> Prompt:
        """The places and positions of a prompt whose inputs are on the target's device. Raises BadRequest."""
        prompt = self.family.prepare_prompt(self.target.config, inputs)
        limit = getattr(self.target.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(prompt.input_ids) >= limit:
            raise BadRequest(
                f"the prompt has {len(prompt.input_ids)} tokens and the model's context {limit}",
                "use fewer --frames or a shorter prompt",
            )
        return prompt

    def recorder(
        self, prompt: Prompt, attention: Attention, on_ready: Any = lambda: None, begin: int = 0
    ) -> AttentionRecorder:
        """For a prefill of the target with this prompt from its token `begin` on; see `AttentionRecorder`."""
        layers, asked = self.target.config.get_text_config().num_hidden_layers, prompt.question_at
        return AttentionRecorder(asked[asked >= begin], prompt.video_at, attention, layers, on_ready)

    @torch.no_grad()
    def look(self, inputs: dict[str, Any], attention: Attention | None = None) -> tuple[Prompt, list[Signals]]:
        """A prefill only: the prompt, and what pruners judge each video's tokens by.

        Raises BadRequest, also where there is no video.
        """
        here = on_device(inputs, self.target.device)
        prompt = self.prepare_prompt(here)
        if not prompt.grids:
            raise BadRequest("the prompt holds no video that is known as one", "pass one of two frames or more")
        embeds = self.family.embed(self.target, here)
        recorder = self.recorder(prompt, attention or Attention())
        with self.lock, recording(recorder):
            CachedModel.of(self.family, self.target).read(embeds, prompt)
        return prompt, signals_of(prompt, embeds.tokens[prompt.video_at], recorder.scores)
