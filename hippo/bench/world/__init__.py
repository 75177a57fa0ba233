"""The procedural world the bundled pair is trained and tested on: scenes, pictures, English, and a scorer."""

from hippo.bench.world.content import KINDS, Box, Film, film, write_film
from hippo.bench.world.language import Statement, ask, describe, facts, read
from hippo.bench.world.render import render, write_clip
from hippo.bench.world.scene import Scene, make_scene
from hippo.bench.world.score import Score, score

__all__ = [
    "KINDS",
    "Box",
    "Film",
    "Scene",
    "Score",
    "Statement",
    "ask",
    "describe",
    "facts",
    "film",
    "make_scene",
    "read",
    "render",
    "score",
    "write_clip",
    "write_film",
]
