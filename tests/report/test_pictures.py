"""Contact sheets and heat maps: the right cells at the right pixels, at any size."""

import numpy as np
import pytest
import torch

from hippo.families import VideoGrid
from hippo.report.pictures import COUNT, OUTLINE, arrange, cells_of, heated, kept_sheet, lit, score_sheet, shown

GRID = VideoGrid(6, 4, 5)


def clip(frames, height, width):
    """Frames of one bright colour."""
    return np.full((frames, height, width, 3), (220, 200, 120), np.uint8)


def middle(layout, index, row, column, grid, block=0):
    """(x, y) of the middle of a cell on a sheet."""
    x, y = layout.corner(index, block)
    return x + int((column + 0.5) * layout.width / grid.columns), y + int((row + 0.5) * layout.height / grid.rows)


@pytest.mark.parametrize(("frames", "steps", "expected"), [(4, 4, [0, 1, 2, 3]), (4, 2, [1, 3]), (5, 3, [1, 3, 4])])
def test_a_step_shows_the_last_frame_it_covers(frames, steps, expected):
    assert shown(frames, steps) == expected


def test_tokens_lie_by_frame_row_and_column():
    assert np.argwhere(cells_of(np.array([7, 119]), GRID)).tolist() == [[0, 1, 2], [5, 3, 4]]


def test_a_token_lies_in_its_own_cell_where_others_have_none():
    holes = VideoGrid(2, 1, 3, torch.tensor([0, 1, 2, 4]))
    assert np.argwhere(cells_of(np.array([1, 3]), holes)).tolist() == [[0, 0, 1], [1, 0, 1]]


def test_a_score_is_hot_where_its_token_is():
    score = np.zeros(GRID.tokens)
    score[2 * 20 + 7] = 1
    sheet = np.asarray(score_sheet(clip(6, 90, 160), range(6), GRID, {"some": score})).astype(int)
    layout = arrange(GRID, 160 / 90)
    hot, cold = (middle(layout, 2, row, column, GRID) for row, column in ((1, 2), (2, 1)))
    assert sheet[hot[1], hot[0]].sum() > sheet[cold[1], cold[0]].sum() + 100


@pytest.mark.parametrize("size", [(40, 50), (83, 131), (9, 200)])
def test_kept_cells_stay_as_they_are_and_the_others_darken(size):
    picture = clip(1, *size)[0]
    cells = np.zeros((4, 5), bool)
    cells[1, 3] = cells[3, 0] = True
    result = lit(picture, cells)
    inside = cells[np.arange(size[0]) * 4 // size[0]][:, np.arange(size[1]) * 5 // size[1]]
    assert (result[inside] == picture[inside]).all()
    outlined = (result == OUTLINE).all(-1)
    assert outlined.any() and not (outlined & inside).any()
    dropped = result[~inside & ~outlined]
    assert dropped.max() < 110 and np.ptp(dropped, axis=-1).max() == 0


def test_all_kept_is_the_picture_itself_and_none_kept_has_no_outline():
    picture = clip(1, 40, 50)[0]
    assert (lit(picture, np.ones((4, 5), bool)) == picture).all()
    assert not (lit(picture, np.zeros((4, 5), bool)) == OUTLINE).all(-1).any()


def test_every_kept_token_is_lit_in_its_own_place_of_its_own_block():
    rng = np.random.default_rng(0)
    kept = {name: np.sort(rng.permutation(GRID.tokens)[:17]) for name in ("one", "other")}
    sheet = np.asarray(kept_sheet(clip(6, 90, 160), range(6), GRID, kept)).astype(int)
    layout = arrange(GRID, 160 / 90, bars=True)
    for block, indices in enumerate(kept.values()):
        for (step, row, column), bright in np.ndenumerate(cells_of(indices, GRID)):
            x, y = middle(layout, step, row, column, GRID, block)
            assert (sheet[y, x].sum() > 500) == bright


def test_a_bar_is_as_high_as_its_frame_has_tokens():
    counts = [0, 5, 10, 20, 1, 0]
    kept = np.concatenate([np.arange(count) + 20 * step for step, count in enumerate(counts)])
    sheet = np.asarray(kept_sheet(clip(6, 90, 160), range(6), GRID, {"one": kept}))
    layout = arrange(GRID, 160 / 90, bars=True)
    heights = []
    for step in range(6):
        x, y = layout.corner(step)
        below = sheet[y + layout.height : y + layout.step - 1, x + 2]
        heights.append(int((below == COUNT).all(-1).sum()))
    assert heights[0] == heights[5] == 0 and 0 < heights[4] < heights[1]
    assert heights[3] - 1 == pytest.approx(2 * (heights[2] - 1)) == pytest.approx(4 * (heights[1] - 1))


@pytest.mark.parametrize("steps", [1, 2, 4, 11, 64, 128])
@pytest.mark.parametrize("size", [(224, 224), (720, 1280), (1280, 720), (100, 900)])
def test_pictures_are_large_enough_and_fit_their_sheet(steps, size):
    grid, aspect = VideoGrid(steps, 4, 4), size[1] / size[0]
    layout = arrange(grid, aspect, bars=True)
    assert layout.width / layout.height == pytest.approx(aspect, rel=0.05)
    assert 64 <= layout.width <= 400 and layout.height <= 400 and layout.size < 1700 and layout.block < 2200
    corners = [layout.corner(step, block) for block in (0, 1) for step in range(steps)]
    assert len(set(corners)) == 2 * steps
    assert all(x + layout.width < layout.size and y + layout.height < 2 * layout.block for x, y in corners)


@pytest.mark.parametrize("steps", [4, 128])
def test_the_sheet_holds_every_block(steps):
    grid = VideoGrid(steps, 3, 3)
    kept = {"one": np.arange(5), "all": np.arange(grid.tokens), "nothing": np.arange(0)}
    sheet = kept_sheet(clip(steps, 72, 128), range(steps), grid, kept)
    layout = arrange(grid, 128 / 72, bars=True)
    assert sheet.width == layout.size and 3 * layout.block <= sheet.height < 3 * layout.block + 50


def test_a_hot_cell_is_brighter_than_a_cold_one():
    heat = np.zeros((4, 5))
    heat[2, 1] = 1.0
    result = heated(clip(1, 40, 50)[0], heat).astype(int)
    assert result[25, 15].sum() > result[5, 5].sum() + 150
    assert np.ptp(result[5, 5]) == 0  # where there is no heat the picture is grey


@pytest.mark.parametrize("odd", [np.zeros(120), np.full(120, np.nan), np.r_[np.inf, np.zeros(119)]])
def test_scores_that_say_nothing_still_make_a_picture(odd):
    sheet = np.asarray(score_sheet(clip(6, 90, 160), range(6), GRID, {"some": np.arange(120.0), "odd": odd})).astype(
        int
    )
    layout = arrange(GRID, 160 / 90)
    cold, hot = (middle(layout, step, *cell, GRID) for step, cell in ((0, (0, 0)), (5, (3, 4))))
    assert sheet[hot[1], hot[0]].sum() > sheet[cold[1], cold[0]].sum() + 100
