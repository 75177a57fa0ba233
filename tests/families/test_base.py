"""A grid whose cells do not all have a token."""

import torch

from hippo.families import VideoGrid

GRID = VideoGrid(3, 1, 4, torch.tensor([0, 1, 2, 3, 5, 8, 9]))


def test_a_cell_without_a_token_shows_what_was_last_shown_there():
    tokens = torch.tensor([10, 11, 12, 13, 21, 30, 31])
    shown = GRID.laid_out(tokens)
    assert shown.tolist() == [[[10, 11, 12, 13]], [[10, 21, 12, 13]], [[30, 31, 12, 13]]]
    assert torch.equal(GRID.of_tokens(shown.flatten()), tokens)
    assert torch.equal(GRID.laid_out(torch.stack([tokens, -tokens], dim=1))[..., 1], -shown)
    assert GRID.tokens == 7 and GRID.cells.tolist() == [0, 1, 2, 3, 5, 8, 9]


def test_in_a_full_grid_every_cell_shows_its_own_token():
    full, tokens = VideoGrid(2, 2, 3), torch.arange(12)
    assert torch.equal(full.laid_out(tokens), tokens.view(2, 2, 3))
    assert torch.equal(full.of_tokens(tokens), tokens) and torch.equal(full.cells, tokens) and full.tokens == 12
