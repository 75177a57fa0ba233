"""Kept tokens on another grid."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hippo.families import VideoGrid
from hippo.pruning import remap_grid


@st.composite
def grids(draw, sparse=True):
    """A grid, at times with cells without a token; as the processors have it, never in its first frame."""
    frames, rows, columns = draw(st.tuples(*[st.integers(1, 6)] * 3))
    first, later = rows * columns, (frames - 1) * rows * columns
    if not (sparse and draw(st.booleans())):
        return VideoGrid(frames, rows, columns)
    has_token = torch.tensor([True] * first + draw(st.lists(st.booleans(), min_size=later, max_size=later)))
    return VideoGrid(frames, rows, columns, has_token.nonzero()[:, 0])


@st.composite
def videos(draw, count=2):
    """(kept, ours, theirs): some tokens of some videos, and two grids of each video."""
    ours, theirs = (draw(st.lists(grids(), min_size=count, max_size=count)) for _ in range(2))
    everything = range(sum(grid.tokens for grid in ours))
    return torch.tensor(sorted(draw(st.sets(st.sampled_from(everything)))), dtype=torch.long), ours, theirs


def places(grid, tokens):
    """(K, 2, 3) where in a video from 0 to 1 on each axis the cells of some tokens begin and end."""
    shape = torch.tensor([grid.frames, grid.rows, grid.columns])
    corner = torch.stack(torch.unravel_index(grid.cells[tokens], tuple(shape.tolist())), dim=-1)
    return torch.stack([corner / shape, (corner + 1) / shape], dim=1)


@given(videos())
def test_on_the_same_grids_nothing_changes(drawn):
    kept, ours, _ = drawn
    assert torch.equal(remap_grid(kept, ours, ours), kept)


@given(videos())
def test_what_is_carried_is_sorted_unique_and_there(drawn):
    kept, ours, theirs = drawn
    carried = remap_grid(kept, ours, theirs)
    assert carried.dtype == torch.long and (carried.diff() > 0).all()
    assert not len(carried) or 0 <= carried[0] <= carried[-1] < sum(grid.tokens for grid in theirs)
    assert (len(carried) > 0) == (len(kept) > 0)


@given(videos())
def test_each_video_is_carried_by_itself(drawn):
    kept, ours, theirs = drawn
    first, their_first = ours[0].tokens, theirs[0].tokens
    one = remap_grid(kept[kept < first], ours[:1], theirs[:1])
    two = remap_grid(kept[kept >= first] - first, ours[1:], theirs[1:])
    assert torch.equal(remap_grid(kept, ours, theirs), torch.cat([one, two + their_first]))


@given(grids(), grids(sparse=False), st.data())
def test_every_kept_place_is_covered_and_no_far_one(ours, theirs, data):
    kept = torch.tensor(sorted(data.draw(st.sets(st.sampled_from(range(ours.tokens))))), dtype=torch.long)
    (begin, end), (their_begin, their_end) = (
        places(grid, tokens).unbind(1) for grid, tokens in ((ours, kept), (theirs, remap_grid(kept, [ours], [theirs])))
    )
    middle = ((begin + end) / 2)[:, None]
    holds = ((their_begin - 1e-6 <= middle) & (middle <= their_end + 1e-6)).all(-1)
    overlaps = ((their_begin < end[:, None]) & (begin[:, None] < their_end)).all(-1)
    assert holds.any(1).all() and overlaps.any(0).all()


def test_a_finer_grid_keeps_all_that_lies_in_a_kept_cell():
    assert remap_grid(torch.tensor([1]), [VideoGrid(1, 1, 2)], [VideoGrid(2, 2, 4)]).tolist() == [
        2,
        3,
        6,
        7,
        10,
        11,
        14,
        15,
    ]


def test_a_coarser_grid_keeps_what_holds_a_kept_cell():
    assert remap_grid(torch.tensor([0, 15]), [VideoGrid(1, 4, 4)], [VideoGrid(1, 2, 2)]).tolist() == [0, 3]


def test_a_cell_without_a_token_stands_for_the_token_it_shows():
    still = VideoGrid(3, 1, 2, torch.tensor([0, 1, 3]))  # the left half never changes, the right half once
    assert remap_grid(torch.tensor([4, 5]), [VideoGrid(3, 1, 2)], [still]).tolist() == [0, 2]
    assert remap_grid(torch.tensor([2]), [still], [VideoGrid(3, 1, 2)]).tolist() == [3], "not what it goes on to show"
