"""Damaged clips: each gives frames or a HippoError, within 10 s and 2 GiB.

Run as a script: python -m tests.video.fuzz --count 1400 --seed 0
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import local
from typing import Any

from hippo.errors import HippoError
from hippo.video import is_picture, read_video

from .clips import write_clip

SECONDS, BYTES = 10, 2 << 30
LOAD_SECONDS = 120  # that a reader may take to start
CODECS = {".ts": "libx264", ".flv": "flv1", ".nut": "mpeg4", ".avi": "libx264", ".gif": "gif"}
NAMES = ("a.mp4", "a.mkv", "a.webm", "a.avi", "a.ts", "a.flv", "a.mpg", "a.gif", "a.nut", "sound.mp4", "sound.mkv",
         "sound.ts", "b.avi", "fragments.mp4")  # fmt: skip


def make_clips(folder: Path) -> list[Path]:
    """One small clip of each kind."""
    clips = []
    for name in NAMES:
        suffix = Path(name).suffix
        codec = "mpeg4" if name == "a.avi" else CODECS.get(suffix)
        layout = {"movflags": "frag_keyframe+empty_moov"} if "fragments" in name else None
        sound, rate = (2.0 if "sound" in name else 0.0), 25 if suffix == ".mpg" else 10
        options: dict[str, Any] = {"options": {} if suffix == ".gif" else {"g": "8"}, "container_options": layout}
        clips.append(write_clip(folder / name, count=30, rate=rate, codec=codec, sound=sound, **options))
    return clips


def mutate(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """A file's bytes with flipped bits, cut off, or with zeroed or swapped blocks; and which of these."""
    kind, changed = dice.choice(["flip", "cut", "zero", "swap"]), bytearray(data)
    if kind == "cut":
        return kind, data[: dice.randrange(1, len(data))]
    # Half of all damage is where the headers are.
    reach = len(data) if dice.random() < 0.5 else min(len(data), 1024)
    for _ in range(dice.choice([1, 2, 5, 30])):
        at, other = dice.randrange(reach), dice.randrange(len(data))
        size = min(dice.choice([4, 16, 64, 512]), len(data) - max(at, other))
        if kind == "flip":
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == "zero":
            changed[at : at + size] = bytes(size)
        elif abs(at - other) >= size:
            changed[at : at + size], changed[other : other + size] = (
                changed[other : other + size],
                changed[at : at + size],
            )
    return kind, bytes(changed)


def damaged(clips: list[Path], folder: Path, seed: int) -> tuple[str, Path]:
    """What damage a seed stands for, and the damaged file."""
    dice = random.Random(seed)
    clip = dice.choice(clips)
    kind, data = mutate(clip.read_bytes(), dice)
    path = folder / f"{seed}{clip.suffix}"
    path.write_bytes(data)
    return f"{kind} of {clip.name}", path


def read(path: Path) -> str:
    """What reading a file comes to: "frames", "refused", or what went wrong."""
    try:
        sampling: dict[str, Any] = {"fps": 4.0} if int(path.stem) % 3 == 0 else {"frames": 8}
        if is_picture(path):
            return "refused"
        return "frames" if len(read_video(path, **sampling).frames) else "FAILED: no frames"
    except HippoError as error:
        return f"refused: {error}" if "\n" not in str(error) else f"FAILED: two lines: {error}"
    except BaseException:
        return f"FAILED: {traceback.format_exc()}"


def serve(pipe: Any) -> None:
    """Read the files whose paths come through a pipe, and say so if one takes BYTES more than the imports did."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what FFmpeg says about damage
    lines = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    # FFmpeg asks for all that a header declares, and touches little of it: the limit is above what is measured.
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2 * BYTES, used + 2 * BYTES))
    began = peak_bytes()
    pipe.send("ready")
    while (path := pipe.recv()) is not None:
        outcome = read(path)
        pipe.send(outcome if peak_bytes() - began < BYTES else f"FAILED: took more than {BYTES} bytes")


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Reader:
    """A process that reads files, started anew after a file that ends or stops it."""

    def __init__(self) -> None:
        self.process: Any = None

    def read(self, path: Path) -> str:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
            if not self.pipe.poll(LOAD_SECONDS) or self.pipe.recv() != "ready":
                raise RuntimeError("a reader does not start")
        try:
            self.pipe.send(path)
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            outcome = f"FAILED: took more than {SECONDS} s"
        except (EOFError, OSError):
            self.process.join()
            outcome = f"FAILED: ended with code {self.process.exitcode}"
        self.process.kill()
        self.process = None
        return outcome


def fuzz(count: int, seed: int, workers: int = 2) -> Iterator[tuple[int, str, str]]:
    """(seed, damage, outcome) of each of `count` damaged files."""
    readers = local()

    def one(clips: list[Path], folder: Path, seed: int) -> tuple[int, str, str]:
        if not hasattr(readers, "reader"):
            readers.reader = Reader()
        damage, path = damaged(clips, folder, seed)
        outcome = readers.reader.read(path)
        path.unlink()
        return seed, damage, outcome

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        clips = make_clips(Path(folder))
        yield from pool.map(partial(one, clips, Path(folder)), range(seed, seed + count))


def main() -> int:
    """Fuzz from the command line; prints the seed of each failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, outcomes = time.perf_counter(), Counter[str]()
    for seed, damage, outcome in fuzz(options.count, options.seed):
        outcomes[outcome.split(":")[0]] += 1
        if outcome.startswith("FAILED"):
            print(f"seed {seed}, {damage}: {outcome}", flush=True)
    print(f"{dict(outcomes)} in {time.perf_counter() - began:.0f} s")
    return 1 if outcomes["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
