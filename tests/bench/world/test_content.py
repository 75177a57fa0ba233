"""Every kind of clip is drawn, is the same for the same seed, and says where it shows something."""

import numpy as np
import pytest

from hippo.bench.world import KINDS, film, write_film
from hippo.bench.world.render import SIDE
from hippo.video import read_video


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_drawn_and_shows_something_where_it_says(kind):
    one, same, other = film(kind, 50003), film(kind, 50003), film(kind, 50004)
    pictures = [one.draw(time) for time in (0.0, 0.5, 1.0)]
    assert all(picture.shape == (SIDE, SIDE, 3) and np.isfinite(picture).all() for picture in pictures)
    assert np.array_equal(pictures[1], same.draw(0.5)) and not np.array_equal(pictures[1], other.draw(0.5))
    assert one.question.startswith("What does the ") and one.kind == kind and one.seed == 50003
    boxes = [box for time in np.linspace(0, 1, 41) for box in one.shown(time)]
    assert boxes and all(left < right and top < bottom for left, top, right, bottom in boxes)


def test_there_are_twelve_kinds():
    assert len(KINDS) == 12 == len(set(KINDS))


def test_a_brief_event_is_brief():
    made = film("brief", 50003)
    share = np.mean([bool(made.shown(time)) for time in np.linspace(0, 1, 201)])
    assert 0.1 < share < 0.15


def test_a_camera_that_pans_moves_what_it_shows():
    made = film("pan", 50002)
    first, last = (made.shown(time)[0] for time in (0.0, 0.04))
    assert first[0] != last[0] and first[1] == pytest.approx(last[1])


def test_a_cut_shows_another_scene():
    made = film("cut", 50002)
    assert np.abs(made.draw(0.49) - made.draw(0.51)).mean() > np.abs(made.draw(0.48) - made.draw(0.49)).mean() + 5


def test_a_written_clip_has_its_length(tmp_path):
    made = film("crowd", 50002)
    write_film(made, tmp_path / "clip.mp4")
    video = read_video(tmp_path / "clip.mp4", frames=8)
    assert video.frames.shape[1:] == (SIDE, SIDE, 3) and video.duration == pytest.approx(made.duration, abs=0.1)
