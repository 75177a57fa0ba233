"""Kept video tokens on another model's grid. A draft with a processor of its own divides a video differently: into
other patches, other time steps, or by another family's rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hippo.families import VideoGrid


def remap_grid(kept: Tensor, ours: Sequence[VideoGrid], theirs: Sequence[VideoGrid]) -> Tensor:
    """The tokens that show what the kept ones show, by their share of the video's time, height and width.

    kept: (K,) indices into the tokens of all videos on `ours`. theirs: another model's grids of the same videos, in the
    same order. Returns indices into the tokens of all videos on `theirs`, sorted, (K',) int64; on equal grids `kept`.

    A cell is kept if the cell at its centre was, or if it contains the centre of one that was; of a cell without a
    token, the token that it shows (see `VideoGrid.laid_out`).
    """
    carried, first, their_first = [kept[:0]], 0, 0
    for grid, other in zip(ours, theirs, strict=True):
        of_video = kept[(kept >= first) & (kept < first + grid.tokens)] - first
        carried.append(_remap(of_video, grid, other) + their_first)
        first, their_first = first + grid.tokens, their_first + other.tokens
    return torch.cat(carried)


def _remap(kept: Tensor, ours: VideoGrid, theirs: VideoGrid) -> Tensor:
    cells = torch.zeros(ours.frames, ours.rows, ours.columns, dtype=torch.bool)
    cells.view(-1)[ours.cells[kept]] = True
    axes = ((ours.frames, theirs.frames), (ours.rows, theirs.rows), (ours.columns, theirs.columns))
    frames, rows, columns = (_at_centres(their, our) for our, their in axes)
    wanted = cells[frames][:, rows][:, :, columns]
    centres = (_at_centres(our, their)[at] for (our, their), at in zip(axes, cells.nonzero().T, strict=True))
    wanted[tuple(centres)] = True
    return theirs.laid_out(torch.arange(theirs.tokens))[wanted].unique()


def _at_centres(count: int, other: int) -> Tensor:
    """(count,) which of `other` equal parts of a length holds the centre of each of `count` equal parts."""
    return (2 * torch.arange(count) + 1) * other // (2 * count)
