"""What a model family must tell the rest of the package. Nothing outside this folder knows any family by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hippo.errors import HippoError


@dataclass(frozen=True)
class VideoGrid:
    """How the video tokens of a prompt lie in time and space; a frame is one temporal step of the model's grid."""

    frames: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """frames x rows x columns."""
        return self.frames * self.rows * self.columns


NO_VIDEO = VideoGrid(0, 0, 0)


@dataclass(frozen=True)
class Prompt:
    """One request as a language model receives it.

    input_ids: (L,) token ids, placeholders included.
    video_at: (V,) where the video's tokens stand in the prompt, ordered by frame, row, column. Tokens that belong to
        the video but to no cell (LLaVA-OneVision's newline) are not among them and are never pruned; nor are images.
    grid: the video's grid, V = grid.tokens; NO_VIDEO if there is none.
    positions: (axes, L) rotary positions: 1 axis, or 3 for M-RoPE (time, height, width).
    next_position: (axes,) position of the first generated token; each further token adds one on every axis.
    """

    input_ids: Tensor
    video_at: Tensor
    grid: VideoGrid
    positions: Tensor
    next_position: Tensor

    @property
    def question_at(self) -> Tensor:
        """(T,) prompt indices of the text after the video, or of the last token alone where there is none."""
        after = torch.arange(int(self.video_at[-1]) + 1, len(self.input_ids), device=self.input_ids.device)
        after = after[self.input_ids[after] != self.input_ids[self.video_at[-1]]]
        return after if len(after) else torch.tensor([len(self.input_ids) - 1], device=self.input_ids.device)

    def keep(self, kept: Tensor) -> Tensor:
        """Prompt indices that stay when only the video tokens `kept` (indices into 0..V-1) do, in order, on the CPU."""
        stays = torch.ones(len(self.input_ids), dtype=torch.bool)
        stays[self.video_at.cpu()] = False
        stays[self.video_at.cpu()[kept.cpu()]] = True
        return stays.nonzero()[:, 0]


def require_one_request(inputs: Mapping[str, Any]) -> Tensor:
    """(1, L) input ids of a batch of one without padding. Raises HippoError."""
    input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if len(input_ids) != 1:
        raise HippoError(f"a batch of {len(input_ids)} requests", "pass one request at a time")
    if mask is not None and not bool(mask.all()):
        raise HippoError("the prompt is padded", "pass it without padding")
    return input_ids


def require_one_video(videos: int) -> None:
    """Raises HippoError if a request holds more than one."""
    if videos > 1:
        raise HippoError(f"the request holds {videos} videos", "pass one video a request")


def require_video_tokens(there: int, expected: int) -> None:
    """Raises HippoError if the prompt has another number of the video's tokens than the video."""
    if there != expected:
        raise HippoError(
            f"{there} video tokens in the prompt, {expected} in the video", "use the model's own processor"
        )


def embedded(
    model: Any, inputs: Mapping[str, Any], images: Callable[[], Sequence[Tensor]], video: Callable[[], Tensor]
) -> Tensor:
    """(L, D) embeddings of a prompt, with the features of its images and its video in their places.

    images, video: return them, (n, D) an image and (V, D); only called if the inputs hold such pixels.
    """
    input_ids, config = inputs["input_ids"][0], model.config
    embeds = model.get_input_embeddings()(input_ids)
    if inputs.get("pixel_values") is not None:
        here = (input_ids == config.image_token_id)[:, None]
        embeds = embeds.masked_scatter(here, torch.cat(list(images())).to(embeds))
    if inputs.get("pixel_values_videos") is not None:
        embeds = embeds.masked_scatter((input_ids == config.video_token_id)[:, None], video().to(embeds))
    return embeds


class Family(Protocol):
    """One video-LLM family: all that is special about it. `inputs` is what its processor returned, batch of one."""

    model_types: tuple[str, ...]

    def place(self, model: Any, inputs: Mapping[str, Any]) -> Prompt:
        """Where everything stands, without running the model. Raises HippoError for inputs it cannot serve."""

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """(L, D) input embeddings of the whole prompt, the video's projected tokens in their places."""

    def language_model(self, model: Any) -> nn.Module:
        """The text stack: inputs_embeds, position_ids, attention_mask, past_key_values -> last_hidden_state."""
