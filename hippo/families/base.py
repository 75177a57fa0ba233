"""What a model family provides. Nothing outside this folder knows any family by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hippo.errors import HippoError

_WHOLE = 32768  # patches; up to this many go through the vision tower at once, as in generate()
_PART = 8192  # patches per chunk if there are more
_LABEL = 5  # tokens; the text of a frame's number or time is at least as long, that between an image's tiles is shorter
_DIGITS = 3  # tokens; largest difference in length between the labels of one video's frames


@dataclass(frozen=True)
class VideoGrid:
    """The layout of a video's tokens in time and space; a frame is one temporal step of the model's grid.

    It has P = frames x rows x columns cells, counted in this order. with_token: (V,) int64, sorted, on the CPU, the
    cells that have a token, or None for all. Some families drop the tokens of cells that did not change.
    """

    frames: int
    rows: int
    columns: int
    with_token: Tensor | None = field(default=None, compare=False)  # a tensor has no single truth value

    @property
    def tokens(self) -> int:
        """V, at most the number of cells."""
        return len(self.cells)

    @property
    def cells(self) -> Tensor:
        """(V,) the cell of each token."""
        return torch.arange(self.frames * self.rows * self.columns) if self.with_token is None else self.with_token

    def laid_out(self, values: Tensor) -> Tensor:
        """(frames, rows, columns, ...): the value of each cell, from the tokens' values, (V, ...). A cell without a
        token has the value of the latest token at its place, or of the first token if there is none."""
        if self.with_token is not None:
            token = torch.zeros(self.frames * self.rows * self.columns, dtype=torch.long)
            token[self.with_token] = torch.arange(self.tokens)
            last = token.view(self.frames, -1).cummax(dim=0).values.flatten()
            values = values[last.to(values.device)]
        return values.view(self.frames, self.rows, self.columns, *values.shape[1:])

    def of_tokens(self, values: Tensor) -> Tensor:
        """(V,): the values of the tokens, from those of the cells, (P,)."""
        return values if self.with_token is None else values[self.with_token.to(values.device)]


@dataclass(frozen=True)
class Prompt:
    """One request as a language model receives it.

    input_ids: (L,) token ids, placeholders included.
    video_at: (V,) prompt indices of the videos' tokens, one video after the other, each ordered by frame, row, column.
        Images, and tokens of a video that belong to no cell (LLaVA-OneVision's newline), are not among them and are
        never pruned.
    grids: the grid of each video, V is the sum of their tokens; empty if there is none.
    positions: (axes, L) rotary positions: 1 axis, or 3 for M-RoPE (time, height, width).
    next_position: (axes,) position of the first generated token; each further token adds one on every axis.
    """

    input_ids: Tensor
    video_at: Tensor
    grids: tuple[VideoGrid, ...]
    positions: Tensor
    next_position: Tensor

    @property
    def question_at(self) -> Tensor:
        """(T,) prompt indices of the text after the last video, or of the last token if there is none."""
        after = torch.arange(int(self.video_at.max()) + 1, len(self.input_ids), device=self.input_ids.device)
        after = after[self.input_ids[after] != self.input_ids[self.video_at[-1]]]
        return after if len(after) else torch.tensor([len(self.input_ids) - 1], device=self.input_ids.device)

    def keep(self, kept: Tensor) -> Tensor:
        """Prompt indices that remain when only the video tokens `kept` (indices into 0..V-1) do, sorted, on the CPU."""
        stays = torch.ones(len(self.input_ids), dtype=torch.bool)
        stays[self.video_at.cpu()] = False
        stays[self.video_at.cpu()[kept.cpu()]] = True
        return stays.nonzero()[:, 0]


class Embeds:
    """(L, D) embeddings of a prompt, as its language model receives them. Families whose video tokens also enter deeper
    layers have a subclass."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: Tensor | slice) -> Embeds:
        """The embeddings of some of the prompt's tokens."""
        return Embeds(self.tokens[which])

    def followed_by(self, tokens: Tensor) -> Embeds:
        """These, and the (n, D) embeddings of text after them."""
        return Embeds(torch.cat([self.tokens, tokens]))

    @property
    def arguments(self) -> dict[str, Any]:
        """What the language model's forward takes besides `inputs_embeds`."""
        return {}


def one_request(inputs: Mapping[str, Any], token: int) -> tuple[Tensor, Tensor]:
    """(L,) input ids of a batch of one without padding, and where among them `token` is. Raises HippoError."""
    input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if len(input_ids) != 1:
        raise HippoError(f"a batch of {len(input_ids)} requests", "pass one request at a time")
    if mask is not None and not bool(mask.all()):
        raise HippoError("the prompt is padded", "pass it without padding")
    return input_ids[0], (input_ids[0] == token).nonzero()[:, 0]


def require_video_tokens(there: int, grids: Sequence[VideoGrid], beside: int = 0) -> None:
    """Raises HippoError if the prompt has another number of video tokens than its videos. beside: tokens of each video
    that belong to no cell."""
    expected = sum(grid.tokens + beside for grid in grids)
    if there != expected:
        raise HippoError(
            f"{there} video tokens in the prompt, {expected} in the videos", "use the model's own processor"
        )


def plain_prompt(input_ids: Tensor, video_at: Tensor, grids: tuple[VideoGrid, ...], axes: int = 1) -> Prompt:
    """A prompt whose positions count tokens, the same on each axis. input_ids: (L,)."""
    positions = torch.arange(len(input_ids), device=input_ids.device).expand(axes, -1)
    return Prompt(input_ids, video_at, grids, positions, positions[:, -1] + 1)


def prompt_of_images(inputs: Mapping[str, Any], token: int, count: int, side: int) -> Prompt:
    """The prompt of a family that reads a video as images. The text between images says which of them are frames.

    token: the image token's id. count: images in the pixels, each tile counted, of side x side tokens each. Raises
    HippoError.

    Runs of side x side tokens are frames of one video if a label (a number or a time) separates them and its length is
    that of the shortest label, up to a few digits. All other images are never pruned: single ones, those cut into tiles
    (separated by less text, or one longer run), and one-frame videos. Two cases are ambiguous: images separated by text
    count as a video if no two are closer, and videos with almost no text between them count as one. A wrong guess only
    changes which tokens the draft sees.
    """
    input_ids, images_at = one_request(inputs, token)
    frame, images_at = VideoGrid(1, side, side), images_at.cpu()
    require_video_tokens(len(images_at), [frame] * count)
    runs = images_at.tensor_split((images_at.diff() > 1).nonzero()[:, 0] + 1)
    between = [int(after[0] - before[-1]) - 1 for before, after in pairwise(runs)]
    nearest = min((words for words in between if words >= _LABEL), default=0)
    videos = [[runs[0]]]
    for run, words in zip(runs[1:], between, strict=True):
        if len(run) == len(videos[-1][0]) and _LABEL <= words <= nearest + _DIGITS:
            videos[-1].append(run)
        else:
            videos.append([run])
    videos = [video for video in videos if len(video) > 1 and len(video[0]) == frame.tokens]
    video_at = torch.cat([images_at[:0], *(run for video in videos for run in video)]).to(input_ids.device)
    return plain_prompt(input_ids, video_at, tuple(VideoGrid(len(video), side, side) for video in videos))


def embedded(
    model: Any,
    inputs: Mapping[str, Any],
    images: Callable[[], Sequence[Tensor]],
    videos: Callable[[], Tensor] | None = None,
) -> Embeds:
    """Embeddings of a prompt, with the features of its images and videos inserted.

    images, videos: return the features, (n, D) for each image and (V, D); called only if the inputs hold such pixels.
    videos: None for a family that knows images only.
    """
    input_ids, config = inputs["input_ids"][0], model.config
    embeds = model.get_input_embeddings()(input_ids)
    if inputs.get("pixel_values") is not None:
        here = (input_ids == config.image_token_id)[:, None]
        embeds = embeds.masked_scatter(here, torch.cat(list(images())).to(embeds))
    if videos is not None and inputs.get("pixel_values_videos") is not None:
        embeds = embeds.masked_scatter((input_ids == config.video_token_id)[:, None], videos().to(embeds))
    return Embeds(embeds)


def vision_chunks(frames: int, pixels: tuple[int, int], patch: int) -> list[slice]:
    """The frames that go through a vision tower at a time: all, as in generate(), or fewer to bound memory. pixels:
    (height, width) of a frame; patch: side. Frames do not attend to each other, so only rounding differs."""
    patches = (pixels[0] // patch) * (pixels[1] // patch)
    if frames * patches <= _WHOLE:
        return [slice(0, frames)]
    some = max(1, _PART // patches)
    return [slice(begin, min(begin + some, frames)) for begin in range(0, frames, some)]


def vision_chunks_of_grids(pixels: Tensor, grids: Tensor) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """`vision_chunks` of pixels with shape (patches of all videos, ...). grids: (videos, 3) frames, rows, columns.
    Yields the pixels of each chunk, their grids and the videos that they belong to."""
    if len(pixels) <= _WHOLE:
        yield pixels, grids, slice(None)
        return
    rest = pixels
    for number, (frames, rows, columns) in enumerate(grids.tolist()):
        for some in vision_chunks(frames, (rows, columns), 1):
            grid = grids.new_tensor([[some.stop - some.start, rows, columns]])
            now, rest = rest.tensor_split([int(grid.prod())])
            yield now, grid, slice(number, number + 1)


@dataclass(frozen=True)
class Released:
    """A checkpoint on the model hub. billions: of parameters, counted from its configuration."""

    id: str
    billions: float


@dataclass(frozen=True)
class Card:
    """What `hippo models` says about a family.

    name: as its makers write it. pairs: examples of a target and a draft that share a tokenizer. notes: limits, a
    clause each.
    """

    name: str
    pairs: tuple[tuple[Released, Released], ...]
    notes: tuple[str, ...]


class Family(ABC):
    """What is specific to one video-LLM family. `inputs`: its processor's output, batch of one."""

    model_types: tuple[str, ...]
    card: Card
    # What its processor returns beside the ids and their mask.
    media_inputs: tuple[str, ...] = (
        *("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"),
        "mm_token_type_ids",
    )

    @abstractmethod
    def prepare_prompt(self, config: Any, inputs: Mapping[str, Any]) -> Prompt:
        """Token positions and video grids. Needs the configuration and no weights. Raises HippoError for inputs
        that the family cannot serve."""

    @abstractmethod
    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        """Input embeddings of the whole prompt, with the videos' projected tokens."""

    def language_model(self, model: Any) -> nn.Module:
        """The text stack: inputs_embeds, position_ids, attention_mask, a KV cache and `Embeds.arguments` ->
        last_hidden_state."""
        return model.model.language_model
