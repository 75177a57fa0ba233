"""A long clip through the whole pipeline: what memory it takes above the models' weights, and where the time goes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from hippo.bench.memory import peak
from hippo.bench.world import make_scene
from hippo.bench.world.render import SIDE, render
from hippo.checkpoints import resolve
from hippo.video import write_video

FIRST_SEED = 60000
_RATE = 2  # frames a second that are written


def long_clip(
    target: str, draft: str | None, seconds: int, fps: float, tokens: int, progress: Callable[[str, float], None]
) -> list[dict[str, Any]]:
    """Rows, one for `hippo` and one for `ar`: what `hippo caption` says of scenes of the world that follow each other
    for so many seconds, its peak memory in bytes, and how much of it is not weights (in memory, twice the files of a
    pair in bfloat16 that runs in float32). After `ar`, the same process asks transformers' generate(), whose memory is
    in the peak and whose words are `expected`."""
    points = resolve(target, draft, "cpu", "auto", "auto")
    files = [file for point in points if point is not None for file in Path(point.source).glob("*.safetensors")]
    weights = 2 * sum(file.stat().st_size for file in files)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clip, said = Path(folder) / "long.mp4", Path(folder) / "said.json"
        progress("drawing the clip", 0.0)
        write_video(_images(seconds), clip, Fraction(_RATE), (SIDE, SIDE))
        models = ["--target", target, *(["--draft", draft] if draft else [])]
        for method, beside, share in (("hippo", [], 0.1), ("ar", ["--compare"], 0.4)):
            progress(method, share)
            asked = ["--fps", f"{fps:g}", "--max-new-tokens", str(tokens), "--method", method, "--json"]
            most = peak(["-m", "hippo", "caption", str(clip), *models, *asked, *beside], said)
            answer = json.loads(said.read_text())
            rows.append(
                {
                    "method": method,
                    "clip_seconds": seconds,
                    "video_tokens": answer["stats"]["video_tokens"],
                    "kept_tokens": answer["stats"]["kept_tokens"],
                    "kv_cache_mib": answer["stats"]["kv_cache_mib"],
                    "seconds": answer["stats"]["seconds"],
                    "token_ids": answer["token_ids"],
                    "expected": answer["baseline"]["token_ids"] if beside else None,
                    "peak_memory": most,
                    "above_weights": None if most is None else most - weights,
                }
            )
    return rows


def _images(seconds: int) -> Iterator[np.ndarray]:
    """Frames of (SIDE, SIDE, 3), one scene after another."""
    left, seed = seconds * _RATE, FIRST_SEED
    while left:
        scene = make_scene(seed)
        count = min(left, int(scene.duration * _RATE))
        for index in range(count):
            yield render(scene, [index / _RATE / scene.duration])[0]
        left, seed = left - count, seed + 1
