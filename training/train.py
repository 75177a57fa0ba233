"""Train the bundled pair on the procedural world. Resumable: run the same command again and it goes on.

    python training/train.py vision target --minutes 8       # the vision tower learns to see: what stands in each cell
    python training/train.py speak target --minutes 60       # the language model learns to say it, video tokens dropped
    python training/train.py grow target --minutes 15        # 8 text layers become 24 and learn on
    python training/train.py speak draft --minutes 30        # the draft begins with the target's eyes and first layers

Each stage reads the newest stage before it and writes runs/<model>.<stage>.pt and, when it ends or is
saved, an ordinary checkpoint in runs/<model>/. Logs go to stdout as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attention import use_training_attention
from data import (
    BOX,
    CAME,
    COLOUR,
    FIRST_TRAINING_SEED,
    KIND,
    KINDS,
    MET,
    RANK,
    SHAPE,
    SLOT,
    TEXTURE,
    THERE,
    TONE,
    Clips,
    Glances,
    Sample,
)
from tiny import SEED_LAYERS, TARGET_LAYERS, grow, make_model, make_processor, save, thin
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from hippo.checkpoints import BUNDLED
from hippo.families import VideoGrid
from hippo.pruning.fusion import fuse, spend
from hippo.pruning.spatial import spatial_score
from hippo.pruning.temporal import temporal_score

RUNS = Path(__file__).parent / "runs"
TINY = BUNDLED / "tiny"
STAGES = ("vision", "speak", "grow")
WAYS = ("left", "right", "upwards", "downwards")
EVENTS_AFTER = 5  # text layers after which video tokens shall know what happens
MET_AFTER = 6  # and whom their object has met: a layer later, when the other's tokens know which object they show
READY = 0.93  # share of directions right from which clips get one more object


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.processor = AutoProcessor.from_pretrained(TINY / "target") if args.bundled else make_processor()
        self.model = make_model(args.model, self.processor)
        width = self.model.config.text_config.hidden_size
        # Linear read-outs that only training uses: a cell's content; its place; how far its object came; which object
        # that is, and the slot and the kind of what it is doing; whom it has met.
        sizes = {"cells": 9 + 7 + 3 + 4 + 3, "place": 8 + 8, "motion": 2, "events": 4 + 8 + len(KINDS), "met": 5}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})
        self.step, self.elapsed = 0, 0.0
        self.objects = torch.ones((), dtype=torch.int64).share_memory_()
        left, right, up, down = self.processor.tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WAYS])
        self.sides, self.ways = {left, right}, {left, right, up, down}
        self._load()

    def _path(self, stage: str) -> Path:
        return RUNS / f"{self.args.model}.{stage}.pt"

    def _load(self) -> None:
        stage = self.args.stage
        earlier = [s for s in STAGES[: STAGES.index(stage)] if self._path(s).exists()]
        state = None
        if self._path(stage).exists():
            state = torch.load(self._path(stage), weights_only=True)
            if stage == "grow":
                self.model = grow(self.model, TARGET_LAYERS)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"], strict=False)
            self.step, self.elapsed = state["step"], state["elapsed"]
            self.objects.fill_(state["objects"])
        elif self.args.model == "draft" and (RUNS / "target.speak.pt").exists():
            before = torch.load(RUNS / "target.speak.pt", weights_only=True)
            target = make_model("target", self.processor)
            target.load_state_dict(before["model"])
            self.heads.load_state_dict(before["heads"], strict=False)
            thin(target, self.model, self._inner_activations(target))
        elif self.args.bundled and "speak" not in earlier:
            self.model = unbundled(self.args.model, self.model, grown=stage == "grow")
            if stage == "speak" and earlier:
                before = torch.load(self._path("vision"), weights_only=True)
                eyes = {k: v for k, v in before["model"].items() if ".visual." in k}
                self.model.load_state_dict(eyes, strict=False)
                self.heads.load_state_dict(before["heads"], strict=False)
        elif earlier:
            before = torch.load(self._path(earlier[-1]), weights_only=True)
            self.model.load_state_dict(before["model"])
            self.heads.load_state_dict(before["heads"], strict=False)
            if stage == "grow":
                self.model = grow(self.model, TARGET_LAYERS)
        if self.device.type == "cpu":
            use_training_attention(self.model)
        self.model.to(self.device).train()
        self.heads.to(self.device)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        if stage == "vision":
            self.model.model.language_model.requires_grad_(False)
        if stage != "vision" and not self.args.thaw:
            self.model.model.visual.requires_grad_(False)
        self.optimizers = self._optimizers()
        saved_optimizers = state["optimizers"] if state and not self.args.restart else []
        for optimizer, saved in zip(self.optimizers, saved_optimizers, strict=bool(saved_optimizers)):
            optimizer.load_state_dict(saved)

    @torch.no_grad()
    def _inner_activations(self, target: Any) -> dict[int, torch.Tensor]:
        """Mean absolute activation of each layer's inner units in the target, on rows as the draft sees them."""
        used: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(target.model.language_model.layers):
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _, inputs, index=index: used.update({index: inputs[0].float().abs().mean(dim=(0, 1))})
            )
        clips = Clips(self.processor, FIRST_TRAINING_SEED, 1.0, 1, (16,), torch.tensor(4))
        draft, self.model = self.model, target.to(self.device)
        self.heads.to(self.device)
        self.speak([clips.sample(FIRST_TRAINING_SEED + i) for i in range(32)])
        self.model = draft
        return used

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside blocks, AdamW for all else; one learning rate serves both."""
        named = [*self.model.named_parameters(), *self.heads.named_parameters()]
        free = [(name, p) for name, p in named if p.requires_grad]
        matrices = [p for name, p in free if p.ndim == 2 and ("layers." in name or "blocks." in name or "mlp" in name)]
        others = [p for _, p in free if all(p is not matrix for matrix in matrices)]
        return [
            torch.optim.Muon(matrices, lr=self.args.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=self.args.rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]

    def save(self) -> None:
        RUNS.mkdir(exist_ok=True)
        path = self._path(self.args.stage)
        state = dict(
            model=self.model.state_dict(),
            heads=self.heads.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            step=self.step,
            elapsed=self.elapsed,
            objects=int(self.objects),
        )
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        if self.args.stage != "vision":
            save(self.model, self.processor, RUNS / self.args.model)

    def run(self) -> None:
        args = self.args
        seeds = FIRST_TRAINING_SEED + STAGES.index(args.stage) * 100_000_000 + self.step * args.batch
        if not args.ramp:
            self.objects.fill_(4)
        if args.stage == "vision":
            clips: IterableDataset = Glances(seeds)
        else:
            frames = (16, 16, 16, 12, 20)
            clips = Clips(self.processor, seeds, args.modal, args.questions, frames, self.objects, args.meetings)
        loader = iter(DataLoader(clips, batch_size=args.batch, collate_fn=list, num_workers=1, prefetch_factor=4))
        began, saved = time.time() - self.elapsed, time.time()
        losses: list[float] = []
        ways: list[float] = []
        first, start = (self.step, self.elapsed) if args.restart else (0, 0.0)
        while self.elapsed < args.minutes * 60:
            share = (self.elapsed - start) / (args.minutes * 60 - start)
            rate = args.rate * min(1.0, (self.step - first + 1) / 100) * _cosine(share)
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            with torch.autocast(self.device.type, torch.bfloat16, enabled=args.bf16):
                loss, notes = (self.see if args.stage == "vision" else self.speak)(next(loader))
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            self.elapsed = time.time() - began
            losses.append(loss.item())
            ways.append(notes.get("ways", 0.0))
            if self.step % args.log == 0:
                line = dict(step=self.step, minutes=round(self.elapsed / 60, 2), loss=sum(losses) / len(losses))
                notes |= dict(ways=sum(ways) / len(ways), objects=int(self.objects))
                print(json.dumps(line | {k: round(v, 4) for k, v in notes.items()}), flush=True)
                if self.objects < 4 and (notes["ways"] > READY or share > args.ramp[self.objects - 1]):
                    self.objects += 1
                losses.clear()
                ways.clear()
            if time.time() - saved > args.save * 60:
                self.save()
                saved = time.time()
        self.save()

    def features(self, batch: list[Sample]) -> list[torch.Tensor]:
        """Projected video tokens of each sample, (V, width)."""
        grid = torch.tensor([s.grid for s in batch], device=self.device)
        patches = torch.cat([s.patches for s in batch]).to(self.device)
        with torch.set_grad_enabled(self.args.stage == "vision" or self.args.thaw):
            return list(self.model.model.get_video_features(patches, grid).pooler_output)

    def see(self, batch: list[Sample]) -> tuple[torch.Tensor, dict[str, float]]:
        return self.cells_loss(torch.cat(self.features(batch)), torch.cat([s.cells for s in batch]).to(self.device))

    def cells_loss(self, tokens: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        colour, shape, tone, texture, box = self.heads["cells"](tokens).float().split([9, 7, 3, 4, 3], dim=-1)
        there = cells[:, THERE] > 0
        weight = torch.where(there, 1.0, 0.15)
        weight = weight / weight.sum()
        total = torch.zeros((), device=self.device)
        for logits, channel in ((colour, COLOUR), (shape, SHAPE), (tone, TONE), (texture, TEXTURE)):
            loss = F.cross_entropy(logits, cells[:, channel].long(), reduction="none")
            total = total + (loss * weight).sum() * (1.0 if channel in (COLOUR, SHAPE) else 0.3)
        total = total + F.smooth_l1_loss(box[there], cells[there, BOX])
        right = {
            "colour": (colour.argmax(-1) == cells[:, COLOUR])[there].float().mean().item(),
            "shape": (shape.argmax(-1) == cells[:, SHAPE])[there].float().mean().item(),
            "texture": (texture.argmax(-1) == cells[:, TEXTURE]).float().mean().item(),
        }
        return total, right

    def place_loss(self, hidden: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Video tokens shall know their row and column early on: rotary positions only tell distances, so each must
        find its place by its distance from the tokens before the video."""
        row, column = self.heads["place"](hidden).float().split(8, dim=-1)
        loss = F.cross_entropy(row, at % 64 // 8) + F.cross_entropy(column, at % 8)
        return loss, (column.argmax(-1) == at % 8).float().mean().item()

    def motion_loss(self, hidden: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Tokens of an object shall know how far it came since the step before."""
        there = cells[:, THERE] > 0
        loss = F.smooth_l1_loss(self.heads["motion"](hidden[there]).float(), cells[there, CAME], beta=0.3)
        return loss, loss.item()

    def events_loss(self, hidden: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """Tokens of an object shall know which it is, and the slot and kind of what it is doing: what a sentence looks
        for. Ground tokens shall know that nothing happens there."""
        rank, slot, kind = self.heads["events"](hidden).float().split([4, 8, len(KINDS)], dim=-1)
        there, doing = cells[:, THERE] > 0, cells[:, KIND] > 0
        weight = torch.where(doing, 1.0, torch.where(there, 0.2, 0.02))
        weight = weight / weight.sum()
        total = F.cross_entropy(rank[there], cells[there, RANK].long())
        notes = {"rank": (rank.argmax(-1) == cells[:, RANK])[there].float().mean().item()}
        for name, logits, channel in (("slot", slot, SLOT), ("kind", kind, KIND)):
            total = total + (F.cross_entropy(logits, cells[:, channel].long(), reduction="none") * weight).sum()
            notes[name] = (logits.argmax(-1) == cells[:, channel])[doing].float().mean().item()
        return total, notes

    def met_loss(self, hidden: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Tokens of an object shall know which other it has met: what "and meets the" looks for."""
        there = cells[:, THERE] > 0
        met, label = self.heads["met"](hidden[there]).float(), cells[there, MET].long()
        weight = torch.where(label > 0, 1.0, 0.2)
        loss = (F.cross_entropy(met, label, reduction="none") * weight).sum() / weight.sum()
        return loss, (met.argmax(-1) == label)[label > 0].float().mean().nan_to_num().item()

    def speak(self, batch: list[Sample]) -> tuple[torch.Tensor, dict[str, float]]:
        """Every text of a clip in one row: all see the prefix with the video, none sees another text."""
        videos = self.features(batch)
        rows = [self._row(sample, video.detach()) for sample, video in zip(batch, videos, strict=True)]
        length = max(len(row["group"]) for row in rows)
        lookup = self.model.model.language_model.embed_tokens
        embeds, positions, groups, labels = [], [], [], []
        for row, video in zip(rows, videos, strict=True):
            pad = length - len(row["group"])
            words = lookup(row["ids"].to(self.device))
            words[row["video"]] = video[row["kept"].to(self.device)].to(words.dtype)
            embeds.append(F.pad(words, (0, 0, 0, pad)))
            positions.append(F.pad(row["positions"], (0, pad)))
            groups.append(F.pad(row["group"], (0, pad), value=-1))
            labels.append(F.pad(row["labels"], (0, pad), value=-100))
        group = torch.stack(groups).to(self.device)
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        same = (group[:, :, None] == group[:, None, :]) | (group[:, None, :] == 0)
        mask = (causal & same)[:, None] | torch.eye(length, dtype=torch.bool, device=self.device)
        out = self.model.model.language_model(
            inputs_embeds=torch.stack(embeds),
            attention_mask={"full_attention": mask},
            position_ids=torch.stack(positions, dim=1).to(self.device),
            use_cache=False,
            output_hidden_states=True,
        )
        label = torch.stack(labels).to(self.device)
        chosen = label != -100
        logits = self.model.lm_head(out.last_hidden_state[chosen]).float()
        loss = F.cross_entropy(logits, label[chosen])
        way = torch.stack([F.pad(row["ways"], (0, length - len(row["ways"]))) for row in rows]).to(self.device)[chosen]
        right = (logits.argmax(-1) == label[chosen]).float()
        notes = {"right": right.mean().item(), "ways": right[way].mean().item(), "length": float(length)}
        if self.args.stage == "speak":
            where = torch.stack([F.pad(row["video"], (0, length - len(row["video"]))) for row in rows]).to(self.device)
            cells = torch.cat([s.cells[row["kept"]] for s, row in zip(batch, rows, strict=True)]).to(self.device)
            at = torch.cat([row["kept"] for row in rows]).to(self.device)
            placed, notes["placed"] = self.place_loss(out.hidden_states[2][where], at)
            moved, notes["moved"] = self.motion_loss(out.hidden_states[EVENTS_AFTER - 1][where], cells)
            happened, seen = self.events_loss(out.hidden_states[EVENTS_AFTER][where], cells)
            notes |= seen
            met, notes["met"] = self.met_loss(out.hidden_states[MET_AFTER][where], cells)
            loss = loss + 0.3 * placed + 0.5 * moved + 0.5 * happened + 0.5 * met
        if self.args.thaw:
            seen, _ = self.cells_loss(torch.cat(videos), torch.cat([s.cells for s in batch]).to(self.device))
            loss = loss + 0.1 * seen
        return loss, notes

    def _row(self, sample: Sample, video: torch.Tensor) -> dict[str, torch.Tensor]:
        token = self.processor.tokenizer.convert_tokens_to_ids
        prefix = self.processor.tokenizer("<|im_start|>user\n<|vision_start|>").input_ids
        kept = self._keep(sample, video)
        ids = prefix + [token("<|video_pad|>")] * len(kept)
        spacing = self.model.config.vision_config.tokens_per_second * sample.seconds
        step, cell = kept // 64, kept % 64
        video = torch.stack([(step * spacing).long(), cell // 8, cell % 8]) + len(prefix)
        positions = [torch.arange(len(prefix)).expand(3, -1), video]
        groups, labels = [torch.zeros(len(ids), dtype=torch.long)], [-100] * len(ids)
        heading = token("Ġto")
        for number, (prompt, answer) in enumerate(sample.texts, start=1):
            count = len(prompt) + len(answer)
            ids = ids + prompt + answer
            labels += [-100] * (len(prompt) - 1) + answer + [-100]
            positions.append((torch.arange(count) + len(prefix) + 8).expand(3, -1))
            groups.append(torch.full((count,), number))
        # Directions of motion: left and right after "to the", where elsewhere they name places.
        ways = [
            label in self.ways and (label not in self.sides or labels[i - 2] == heading)
            for i, label in enumerate(labels)
        ]
        where = torch.zeros(len(ids), dtype=torch.bool)
        where[len(prefix) : len(prefix) + len(kept)] = True
        return dict(
            ids=torch.tensor(ids), video=where, kept=kept, positions=torch.cat(positions, dim=1),
            group=torch.cat(groups), labels=torch.tensor(labels), ways=torch.tensor(ways),
        )  # fmt: skip

    def _keep(self, sample: Sample, features: torch.Tensor) -> torch.Tensor:
        """Which video tokens this row sees, of those with features (V, D). Dropping most of the ground is cheap
        and prepares for pruning; the draft also practises on about a tenth: what changes and has detail, what
        shows an object, or any."""
        rng = random.Random(sample.seed)
        total = len(sample.cells)
        objects = sample.cells[:, THERE] > 0
        dice = rng.random()
        noise = torch.rand(total, generator=torch.Generator().manual_seed(sample.seed))
        if dice < self.args.whole:
            return torch.arange(total)
        if self.args.model == "draft" and dice < self.args.whole + 0.8:
            count = int(total * rng.choice((0.05, 0.1, 0.1, 0.1, 0.15, 0.25)))
            if dice < self.args.whole + 0.5:
                grid = VideoGrid(sample.grid[0], sample.grid[1] // 2, sample.grid[2] // 2)
                telling = fuse(grid, temporal=temporal_score(features, grid), spatial=spatial_score(features, grid))
                return spend(telling.cpu() + rng.choice((0.0, 1.0, 3.0)) * noise, count, grid)
            pull = rng.choice((0.0, 0.5, 1.0, 2.0))
            return (noise + pull * objects).topk(count).indices.sort().values
        return (objects | (noise < rng.uniform(0.02, 0.2))).nonzero()[:, 0]


def unbundled(role: str, shallow: Any, grown: bool) -> Any:
    """The bundled model of a role, in float32, to train on. Unless `grown` the target comes back in SEED_LAYERS: those
    that do something, and some idle ones between; only right while the others are idle."""
    model = AutoModelForImageTextToText.from_pretrained(TINY / role, dtype=torch.float32)
    if role == "draft" or grown:
        return model
    layers = model.model.language_model.layers
    working = [index for index, layer in enumerate(layers) if layer.self_attn.o_proj.weight.any()]
    kept = sorted(working + [index + 1 for index in working[::2]][: SEED_LAYERS - len(working)])
    state = model.state_dict()
    prefix = "model.language_model.layers."
    text = {
        f"{prefix}{new}.{name}": value
        for new, old in enumerate(kept)
        for name, value in layers[old].state_dict().items()
    }
    shallow.load_state_dict({name: value for name, value in state.items() if not name.startswith(prefix)} | text)
    return shallow


def _cosine(share: float) -> float:
    return 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, share)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("model", choices=("target", "draft"))
    parser.add_argument("--minutes", type=float, default=60, help="wall time of the whole stage, resumed parts counted")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--questions", type=int, default=3, help="questions a clip, beside its description")
    parser.add_argument("--modal", type=float, default=0.3, help="share of clips told in the commonest phrasing")
    parser.add_argument("--whole", type=float, default=0.05, help="share of clips shown with every video token")
    parser.add_argument("--meetings", type=float, default=0, help="share of clips chosen for having a meeting")
    parser.add_argument(
        "--ramp", type=float, nargs="*", default=[],
        help="one object first; another once directions are right, at the latest from these shares of --minutes",
    )  # fmt: skip
    parser.add_argument("--thaw", action="store_true", help="train the vision tower while learning to speak")
    parser.add_argument("--restart", action="store_true", help="begin the learning rate's schedule anew on resuming")
    parser.add_argument("--bundled", action="store_true", help="start from the bundled pair where there is no run yet")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=int, default=20)
    parser.add_argument("--save", type=float, default=3, help="minutes between checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    sys.exit(main())
