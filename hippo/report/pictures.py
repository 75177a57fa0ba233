"""Pictures of which video tokens are kept, and why: contact sheets, heat maps, frames with the kept tokens lit.

A token's cell is its proportional share of a frame, whatever size the model's processor gave the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hippo.families import VideoGrid

# All in pixels.
WIDTH, TALLEST = 1600, 1000  # of a block of pictures
LARGEST, COMFORTABLE, SMALLEST = 400, 180, 64  # a picture: its longer side at most; its width, if there is room
CELL = 6  # a token's cell, if there is room
MARGIN, GAP, HEADING, LINE, BAR = 16, 6, 34, 16, 28

GROUND, INK, FAINT = (17, 19, 24), (240, 240, 240), (150, 155, 165)
OUTLINE, COUNT = (255, 186, 40), (70, 100, 150)
HEAT = np.array([(60, 20, 110), (150, 30, 110), (225, 65, 60), (250, 150, 20), (252, 255, 150)], np.float32)


@dataclass(frozen=True)
class Layout:
    """How one block's pictures lie: `per_line` in a full line, each `width` x `height` pixels, room for bars or not."""

    count: int
    per_line: int
    width: int
    height: int
    bars: bool = False

    @property
    def step(self) -> int:
        """From one line of pictures to the next: its timestamps, the pictures, their bars."""
        return LINE + self.height + (LINE + BAR if self.bars else 0) + 2 * GAP

    @property
    def block(self) -> int:
        """Height of a block: its heading and its lines."""
        return HEADING + -(-self.count // self.per_line) * self.step + MARGIN

    def corner(self, index: int, block: int = 0) -> tuple[int, int]:
        """(x, y) of a picture's top left pixel on the sheet."""
        line, column = divmod(index, self.per_line)
        top = MARGIN + block * self.block + HEADING
        return MARGIN + column * (self.width + GAP), top + line * self.step + LINE

    @property
    def size(self) -> int:
        """Width of the sheet, never too narrow for its headings."""
        return 2 * MARGIN + max(self.per_line * (self.width + GAP) - GAP, 640)


def arrange(grid: VideoGrid, aspect: float, bars: bool = False) -> Layout:
    """The layout of a grid's steps, of width / height `aspect`: as few lines as leave the cells large enough to see."""
    count, largest = grid.frames, min(LARGEST, LARGEST * aspect)
    wanted = min(max(COMFORTABLE, CELL * grid.columns), largest)
    per_line, width = count, 0.0
    for lines in range(1, count + 1):
        each = -(-count // lines)
        wider = min(WIDTH / each - GAP, largest)
        if width >= SMALLEST and lines * wider / aspect > TALLEST:
            break
        per_line, width = each, wider
        if width >= wanted:
            break
    return Layout(count, per_line, max(1, round(width)), max(1, round(width / aspect)), bars)


def shown(frames: int, steps: int) -> list[int]:
    """For each of a grid's steps, the last of the sampled frames that it covers."""
    each = -(-frames // steps)
    return [min(each * (step + 1), frames) - 1 for step in range(steps)]


def cells_of(kept: np.ndarray, grid: VideoGrid) -> np.ndarray:
    """(frames, rows, columns) bool: whether a token is among the indices `kept`, (K,)."""
    cells = np.zeros((grid.frames, grid.rows, grid.columns), bool)
    cells.flat[grid.cells.numpy()[kept]] = True
    return cells


def lit(picture: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """A picture, (H, W, 3) uint8, with its kept cells as they are and outlined, the others grey and dark.

    cells: (rows, columns) bool. The outline lies around the kept cells, not on them. Returns (H, W, 3) uint8.
    """
    kept = _stretched(cells, picture)
    result = np.where(kept[..., None], picture, _grey(picture) * 0.45).astype(np.uint8)
    thickness = max(1, min(picture.shape[0] // len(cells), picture.shape[1] // len(cells[0])) // 24)
    near = kept
    for _ in range(thickness):
        wide = np.pad(near, 1)
        near = wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    result[near & ~kept] = OUTLINE
    return result


def heated(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture, (H, W, 3) uint8, in grey under the colours of `heat`, (rows, columns) in 0..1: none to strong."""
    share = _stretched(heat, picture)
    cover = 0.85 * np.sqrt(share)[..., None]
    return (_coloured(share) * cover + _grey(picture) * 0.6 * (1 - cover)).astype(np.uint8)


def kept_sheet(
    frames: Sequence[np.ndarray], times: Sequence[float], grid: VideoGrid, kept: Mapping[str, np.ndarray]
) -> Image.Image:
    """A contact sheet with a block per pruner: every step of the grid, its kept tokens lit, and a bar for their number.

    frames: one for each step, (H, W, 3) uint8 RGB; times: their seconds. kept: a pruner's name -> (K,)
    indices. Bars have one scale on the whole sheet.
    """
    layout, sheet, draw, small = _started(frames, grid, len(kept), bars=True)
    cells = {name: cells_of(indices, grid) for name, indices in kept.items()}
    most = max(1, *(int(one.sum((1, 2)).max()) for one in cells.values()))
    for block, (name, one) in enumerate(cells.items()):
        _heading(draw, layout, block, name, f"{one.sum()} of {grid.tokens} video tokens kept")
        pictures = [lit(picture, where) for picture, where in zip(small, one, strict=True)]
        _paste(sheet, draw, layout, block, pictures, times)
        for step, count in enumerate(one.sum((1, 2))):
            _bar(draw, layout, layout.corner(step, block), int(count), most)
    return sheet


def score_sheet(
    frames: Sequence[np.ndarray], times: Sequence[float], grid: VideoGrid, scores: Mapping[str, np.ndarray]
) -> Image.Image:
    """A contact sheet with a block per score: every step of the grid as a heat map.

    frames, times: as for `kept_sheet`. scores: a label -> (P,) numbers, one for each cell. Colours are ranks over the
    clip, so that low scores can be told apart too; a note says how far the median is from them.
    """
    layout, sheet, draw, small = _started(frames, grid, len(scores))
    for block, (label, score) in enumerate(scores.items()):
        score = np.nan_to_num(score, posinf=0.0, neginf=0.0)
        heat = np.searchsorted(np.sort(score), score) / max(1, len(score) - 1)
        heat = heat.reshape(grid.frames, grid.rows, grid.columns)
        low, middle, high = np.quantile(score, (0.01, 0.5, 0.99))
        note = f"the median is {(middle - low) / max(high - low, 1e-12):.0%} of the way from low to high; by rank: low"
        right = _heading(draw, layout, block, label, note)
        scale = Image.fromarray(_coloured(np.tile(np.linspace(0, 1, 120), (12, 1))).astype(np.uint8))
        top = layout.corner(0, block)[1] - LINE - HEADING
        sheet.paste(scale, (right + 8, top + 10))
        draw.text((right + 136, top + 22), "high", FAINT, ImageFont.load_default(14), anchor="ls")
        _paste(sheet, draw, layout, block, [heated(*pair) for pair in zip(small, heat, strict=True)], times)
    return sheet


def _stretched(values: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Each pixel's value, (H, W), from its cell's, (rows, columns)."""
    down, right = ((np.arange(n) * m // n) for n, m in zip(picture.shape, values.shape, strict=False))
    return values[down[:, None], right]


def _grey(picture: np.ndarray) -> np.ndarray:
    return (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def _coloured(heat: np.ndarray) -> np.ndarray:
    """(H, W) in 0..1 to (H, W, 3) float in 0..255."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(heat, stops, channel) for channel in HEAT.T], axis=-1)


def _started(
    frames: Sequence[np.ndarray], grid: VideoGrid, blocks: int, bars: bool = False
) -> tuple[Layout, Image.Image, ImageDraw.ImageDraw, list[np.ndarray]]:
    """The layout, an empty sheet for `blocks` blocks, what draws on it, and the frames in the layout's size."""
    height, width = frames[0].shape[:2]
    layout = arrange(grid, width / height, bars)
    sheet = Image.new("RGB", (layout.size, MARGIN + blocks * layout.block), GROUND)
    size = (layout.width, layout.height)
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames]
    return layout, sheet, ImageDraw.Draw(sheet), small


def _heading(draw: ImageDraw.ImageDraw, layout: Layout, block: int, name: str, note: str) -> int:
    """Write a block's name and a note beside it; returns where they end."""
    x, y = layout.corner(0, block)
    y -= LINE + HEADING - 22
    draw.text((x, y), name, INK, ImageFont.load_default(20), anchor="ls")
    x += round(draw.textlength(name, ImageFont.load_default(20))) + 14
    draw.text((x, y), note, FAINT, ImageFont.load_default(14), anchor="ls")
    return x + round(draw.textlength(note, ImageFont.load_default(14)))


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    layout: Layout,
    block: int,
    pictures: Sequence[np.ndarray],
    times: Sequence[float],
) -> None:
    for index, (picture, time) in enumerate(zip(pictures, times, strict=True)):
        x, y = layout.corner(index, block)
        draw.text((x, y - 4), f"{time:.1f} s", FAINT, ImageFont.load_default(12), anchor="ls")
        sheet.paste(Image.fromarray(picture), (x, y))


def _bar(draw: ImageDraw.ImageDraw, layout: Layout, corner: tuple[int, int], count: int, most: int) -> None:
    x, base = corner[0], corner[1] + layout.height + LINE + BAR
    top = base - round(BAR * count / most)
    draw.rectangle((x, top, x + layout.width - 1, base), COUNT if count else FAINT)
    draw.text(
        (x + layout.width / 2, top - 3), str(count), INK if count else FAINT, ImageFont.load_default(12), anchor="ms"
    )
