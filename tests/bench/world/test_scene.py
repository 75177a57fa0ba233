"""Scenes: what every clip promises."""

from hippo.bench.world.scene import make_scene

SCENES = [make_scene(seed) for seed in range(300)]


def test_a_seed_fixes_everything():
    assert make_scene(7) == make_scene(7) != make_scene(8)


def test_promises():
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4}
    assert all(4 <= scene.duration <= 16 for scene in SCENES)
    kinds = {event.kind for scene in SCENES for event in scene.events}
    assert kinds == {"move", "turn", "meet", "appear", "vanish", "recolour", "grow", "shrink"}


def test_events_are_in_order_and_change_what_they_say():
    for scene in SCENES:
        assert [e.start for e in scene.events] == sorted(e.start for e in scene.events)
        for event in scene.events:
            before, after = event.before, event.after
            if event.kind in ("move", "turn", "meet"):
                axis, sign = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}[event.detail]
                assert (getattr(after, axis) - getattr(before, axis)) * sign > 0.25
            elif event.kind == "recolour":
                assert before.colour != after.colour == event.detail
            elif event.kind in ("grow", "shrink"):
                assert (after.radius > before.radius) == (event.kind == "grow")
            else:
                assert (before.visible, after.visible) == (event.kind == "vanish", event.kind == "appear")


def test_two_objects_never_look_the_same():
    for scene in SCENES:
        names = [(thing.first.colour, thing.shape) for thing in scene.things]
        assert len(set(names)) == len(names)
