"""Training batches: scenes drawn on the fly, their patches, their cells' labels and several texts about each."""

from __future__ import annotations

import io
import itertools
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from hippo.bench.world import Scene, ask, describe, make_scene, render
from hippo.bench.world.language import DESCRIBE_PROMPTS
from hippo.bench.world.render import SIDE
from hippo.bench.world.scene import COLOURS, DIRECTIONS, SHAPES, TEXTURES, TONES, Event

FIRST_TRAINING_SEED = 1_000_000  # held-out seeds are those below
ANOTHER = 1_000_000_000  # from a seed to the next one tried in its place
CELL = 28  # pixels a side of one merged video token
COLOUR_NAMES = list(COLOURS)
KINDS = ("none", *DIRECTIONS, "appear", "vanish", "recolour", "grow", "shrink")  # what an object is doing
# Columns of the labels of a cell, see label_cells.
COLOUR, SHAPE, TONE, TEXTURE, BOX, CAME, THERE, RANK, SLOT, KIND, MET = (
    0,
    1,
    2,
    3,
    slice(4, 7),
    slice(7, 9),
    9,
    10,
    11,
    12,
    13,
)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Modal(random.Random):
    """Always the commonest phrasing: what greedy decoding of a model trained on all phrasings says."""

    def choices(self, population, weights=None, **_):  # type: ignore[no-untyped-def,override]
        return [population[max(range(len(population)), key=lambda i: weights[i])]]


@dataclass
class Sample:
    """One clip: patches (P, 1176); cells (V, 14) labels; grid (steps, rows, columns) of patches; seconds per grid
    step; texts as (prompt ids, answer ids)."""

    patches: torch.Tensor
    cells: torch.Tensor
    grid: tuple[int, int, int]
    seconds: float
    texts: list[tuple[list[int], list[int]]]
    seed: int


def patchify(frames: np.ndarray) -> torch.Tensor:
    """Frames (F, S, S, 3) uint8, F even, to the Qwen2.5-VL processor's patch rows (F/2 (S/14)^2, 1176)."""
    count, side, _, _ = frames.shape
    pairs = frames.reshape(count // 2, -1).take(_patch_order(side), axis=1)
    rows = np.multiply(pairs.reshape(-1, 3, 2 * 14 * 14), 1 / (255 * STD[:, None]), dtype=np.float32)
    rows -= MEAN[:, None] / STD[:, None]
    return torch.from_numpy(rows.reshape(-1, 3 * 2 * 14 * 14))


@lru_cache
def _patch_order(side: int) -> np.ndarray:
    """Where each value of the patch rows of a pair of frames (2, S, S, 3) stands in that pair."""
    half = side // CELL
    index = np.arange(2 * side * side * 3).reshape(2, half, 2, 14, half, 2, 14, 3)
    return index.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(-1)


def label_cells(scene: Scene, times: list[float], side: int, left: int = 0, top: int = 0) -> torch.Tensor:
    """What stands in each cell of each grid step: (V, 14) of colour, shape, tone, texture classes (0 is none for the
    first two); the object's centre relative to the cell, its radius, and how far it came since the step before, all in
    cells; 1 where an object is; which object of the scene; the slot of its event at that time (0: none), and the
    kind of that event, a class of KINDS; one more than the number of the object it has met (0: none), for both of them.
    The step after an object vanished, its cells still have its slot and kind.
    The picture is the square of `side` pixels at (left, top) of a frame of SIDE pixels."""
    steps, half = len(times) // 2, side // CELL
    cells = torch.zeros(steps, half, half, 14)
    cells[..., TONE], cells[..., TEXTURE] = TONES.index(scene.tone), TEXTURES.index(scene.texture)
    centres = torch.arange(half) * CELL + CELL / 2
    best = torch.full((steps, half, half), 1e9)
    slots = sorted({event.start for event in scene.events})
    for step in range(steps):
        since, until = times[2 * step - 1] if step else times[0], times[2 * step + 1]
        for rank, thing in enumerate(scene.things):
            look, before = thing.look(until), thing.look(since)
            event = _event_at(thing.events, since, until)
            if not look.visible and event is None:
                continue
            dx = (look.x * SIDE - left - centres)[None, :].expand(half, half)
            dy = (look.y * SIDE - top - centres)[:, None].expand(half, half)
            distance = (dx**2 + dy**2).sqrt()
            inside = (distance < look.radius + 0.3 * CELL) & (distance < best[step])
            if event:
                kind = event.detail if event.detail in DIRECTIONS else event.kind
                cells[step, inside, SLOT], cells[step, inside, KIND] = slots.index(event.start) + 1, KINDS.index(kind)
            if not look.visible:
                continue
            best[step][inside] = distance[inside]
            came = ((look.x - before.x) * SIDE / CELL, (look.y - before.y) * SIDE / CELL)
            box = (dx / CELL, dy / CELL, torch.full_like(dx, look.radius / CELL))
            cells[step, inside, BOX] = torch.stack(box, dim=-1)[inside]
            cells[step, inside, CAME] = torch.tensor(came)
            met = _met(scene, rank, until)
            values = (COLOUR_NAMES.index(look.colour) + 1, SHAPES.index(thing.shape) + 1, 1, rank, met)
            for channel, value in zip((COLOUR, SHAPE, THERE, RANK, MET), values, strict=True):
                cells[step, inside, channel] = value
            if event is None:
                cells[step, inside, SLOT] = cells[step, inside, KIND] = 0
    return cells.flatten(0, 2)


def _met(scene: Scene, rank: int, time: float) -> int:
    """One more than the number of the object that object `rank` has met, or nearly, by `time`; 0: none. Nobody meets
    twice."""
    for event in scene.events:
        there = event.start + 0.7 * (event.end - event.start)
        if event.other is not None and rank in (event.object, event.other) and time > there:
            return 1 + (event.other if rank == event.object else event.object)
    return 0


def _event_at(events: list[Event], since: float, until: float) -> Event | None:
    """The event of an object that shows most between two times: gradual ones from a quarter of their length on, sudden
    ones by the moment they happen."""
    best, most = None, 0.25
    for event in events:
        if event.kind in ("appear", "vanish", "recolour"):
            shown = 1.0 if since < (event.start + event.end) / 2 <= until else 0.0
        else:
            shown = (min(until, event.end) - max(since, event.start)) / (event.end - event.start)
        if shown > most:
            best, most = event, shown
    return best


def worn(frames: np.ndarray, rng: random.Random) -> np.ndarray:
    """What a lossy codec does to frames, on every second clip: JPEG with half-resolution colour."""
    if rng.random() < 0.5:
        return frames
    quality, out = rng.randint(70, 95), np.empty_like(frames)
    for index, frame in enumerate(frames):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "jpeg", quality=quality, subsampling=2)
        out[index] = Image.open(buffer)
    return out


class Clips(IterableDataset):
    """Endless samples. modal: share of texts in the commonest phrasing; questions: how many a clip; objects: the most
    objects a clip may hold, a shared tensor so that the trainer can raise it. With one object whatever stands out
    is the right thing to look at, so looking is learned in minutes; with many from the start it is not. meetings: the
    share of clips that are chosen for having a meeting, which one clip in seven has by itself."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        processor,
        first_seed: int,
        modal: float,
        questions: int,
        frames: tuple[int, ...],
        objects: torch.Tensor,
        meetings: float = 0.0,
    ):
        self.objects, self.meetings = objects, meetings
        self.tokenizer = processor.tokenizer
        self.first_seed, self.modal, self.questions, self.frames = first_seed, modal, questions, frames

    def __iter__(self):  # type: ignore[no-untyped-def]
        for count in itertools.count():
            most = int(self.objects)
            if most == 4:  # the world's own mixture, and as many clips with several objects
                yield self.sample(self.first_seed + count, None if count % 2 else 4, 1 if count % 2 else 2)
            else:
                yield self.sample(self.first_seed + count, most)

    def sample(self, seed: int, most: int | None = None, least: int = 1) -> Sample:
        """The sample of a seed; least, most: how many objects."""
        rng = random.Random(f"train-{seed}")
        scene = make_scene(seed, None if most is None else rng.randint(least, most))
        if most != 1 and rng.random() < self.meetings:
            while not any(event.kind == "meet" for event in scene.events):
                seed += ANOTHER
                scene = make_scene(seed, None if most is None else rng.randint(max(2, least), most))
        count = rng.choice(self.frames)
        jitter = rng.random()
        times = [min(1.0, (i + jitter) / (count - 1 + jitter * 0.999)) for i in range(count)]
        if rng.random() < 0.5:
            times = [(i + 0.5) / count for i in range(count)]
        frames = worn(render(scene, times), rng)
        voice = Modal(seed) if rng.random() < self.modal else rng
        texts = [(rng.choice(DESCRIBE_PROMPTS), describe(scene, voice))]
        for _ in range(self.questions):
            state = rng.getrandbits(32)
            question, answer = ask(scene, random.Random(state))
            if isinstance(voice, Modal):
                answer = ask(scene, Modal(state))[1]
            texts.append((question, answer))
        ids = [(self._prompt(prompt), [*self._ids(answer), self.tokenizer.eos_token_id]) for prompt, answer in texts]
        spacing = 2 * scene.duration / count
        return Sample(patchify(frames), label_cells(scene, times, SIDE), (count // 2, 16, 16), spacing, ids, seed)

    def _prompt(self, prompt: str) -> list[int]:
        return self._ids(f"<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n")

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids


class Glances(IterableDataset):
    """Endless single moments, cut to a quarter of the frame around an object: many more objects a patch than clips."""

    def __init__(self, first_seed: int, side: int = 84, moments: int = 6) -> None:
        self.first_seed, self.side, self.moments = first_seed, side, moments

    def __iter__(self):  # type: ignore[no-untyped-def]
        seed = self.first_seed
        while True:
            yield from self.samples(seed)
            seed += 1

    def samples(self, seed: int) -> list[Sample]:
        rng = random.Random(f"glance-{seed}")
        scene = make_scene(seed)
        starts = [rng.random() for _ in range(self.moments)]
        times = [time for start in starts for time in (start, min(1.0, start + rng.choice((0.0, 1 / 24, 1 / 16))))]
        frames = render(scene, times)
        return [self._glance(scene, times[i : i + 2], frames[i : i + 2], rng) for i in range(0, len(times), 2)]

    def _glance(self, scene: Scene, times: list[float], frames: np.ndarray, rng: random.Random) -> Sample:
        look = rng.choice([thing.look(times[0]) for thing in scene.things])
        left, top = (
            max(0, min(SIDE - self.side, round(centre * SIDE - self.side / 2 + rng.uniform(-40, 40))))
            for centre in (look.x, look.y)
        )
        cut = np.ascontiguousarray(frames[:, top : top + self.side, left : left + self.side])
        half = self.side // 14
        cells = label_cells(scene, times, self.side, left, top)
        return Sample(patchify(worn(cut, rng)), cells, (1, half, half), 0.0, [], scene.seed)
