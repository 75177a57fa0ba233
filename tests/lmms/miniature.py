"""Miniature data of six benchmarks, from the procedural world, in the folders where lmms-eval looks for the real ones.

    python tests/lmms/miniature.py FOLDER

Then, in FOLDER, with the environment that is printed, `lmms-eval --model hippo --tasks mlvu_dev,lvbench` and the like.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from hippo.bench.world import ask, describe, make_scene, write_clip

MVBENCH = {  # sub-task: the folder of its videos
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
TASKS = ("video_dc499", "videomme", "mvbench", "longvideobench_val_v", "mlvu_dev", "lvbench")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_FIRST_SCENE = 70010


class Question(NamedTuple):
    """About one clip. options: four, of which `right` is the answer's place."""

    clip: str
    text: str
    options: list[str]
    right: int

    @property
    def letter(self) -> str:
        return "ABCD"[self.right]

    @property
    def with_options(self) -> str:
        return "\n".join([self.text, *(f"({letter}) {one}" for letter, one in zip("ABCD", self.options, strict=True))])


def build(folder: Path, clips: int = 2, questions: int = 2, side: int = 224) -> dict[str, str]:
    """Write the data; returns the environment in which lmms-eval finds it, when it runs in `folder`.

    clips: videos of each benchmark. questions: on each of them. side: of the videos, in pixels.
    """
    home = folder / "hf"
    scenes = {f"scene-{number}": make_scene(number) for number in range(_FIRST_SCENE, _FIRST_SCENE + clips)}
    made = folder / "clips"
    made.mkdir(parents=True)
    for name, scene in scenes.items():
        write_clip(scene, made / f"{name}.mp4", side=side)

    def put(under: str) -> None:
        (home / under).mkdir(parents=True)
        for clip in made.iterdir():
            shutil.copy(clip, home / under)

    put("videochatgpt/Test_Videos")
    captions = [
        {"video_name": name, "question": "Describe the video in detail.", "answer": describe(scene, random.Random(0))}
        for name, scene in scenes.items()
    ]
    _write(folder / "lmms-lab/VideoDetailDescription/data/test-0.parquet", captions)

    asked = [question for name in scenes for question in _questions(name, questions)]
    put("videomme/data")
    rows = [
        {
            "videoID": one.clip,
            "question_id": f"{number:03}-1",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "Geography",
            "task_type": "Counting Problem",
            "question": one.text,
            "options": [f"{letter}. {text}" for letter, text in zip("ABCD", one.options, strict=True)],
            "answer": one.letter,
        }
        for number, one in enumerate(asked)
    ]
    _write(folder / "lmms-eval/Video-MME/videomme/test-0.parquet", rows)

    for videos in dict.fromkeys(MVBENCH.values()):
        put(f"mvbench_video/{videos}")
    rows = [
        {
            "video": f"{one.clip}.mp4",
            "question": one.text,
            "candidates": one.options,
            "answer": one.options[one.right],
        }
        for one in asked
    ]
    for name in MVBENCH:
        _write(folder / f"OpenGVLab/MVBench/{name}/train-0.parquet", rows)
    configs = [f"- config_name: {name}\n  data_files: {name}/train-0.parquet\n" for name in MVBENCH]
    (folder / "OpenGVLab/MVBench/README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")

    put("datasets/longvideobench/videos")
    rows = [
        {
            "id": f"{one.clip}_{number}",
            "video_path": f"{one.clip}.mp4",
            "question": one.text,
            "correct_choice": one.right,
            "duration_group": 15,
            "question_category": "T2E",
        }
        | {f"option{place}": text for place, text in enumerate([*one.options, "N/A"])}
        for number, one in enumerate(asked)
    ]
    _write(folder / "longvideobench/LongVideoBench/validation-0.parquet", rows)

    put("mlvu")
    rows = [
        {"video_name": f"{one.clip}.mp4", "question": one.with_options, "answer": one.letter, "task_type": "count"}
        for one in asked
    ]
    _write(folder / "sy1998/MLVU_dev/test-0.parquet", rows)

    put("lvbench")
    rows = [{"video_path": f"{one.clip}.mp4", "question": one.with_options, "answer": one.letter} for one in asked]
    _write(folder / "lmms-eval/LVBench/data/train-0.parquet", rows)
    return {"HF_HOME": str(home.resolve())} | OFFLINE


def _questions(clip: str, count: int) -> list[Question]:
    """Different ones about a clip; the wrong options are true of other clips."""
    number = int(clip.removeprefix("scene-"))
    rng, found = random.Random(number), dict[str, Question]()
    while len(found) < count:
        text, answer = ask(make_scene(number), rng)
        if text in found and len(found) < 8:  # a scene has not many more
            continue
        options = [answer]
        while len(options) < 4:
            other = ask(make_scene(rng.randrange(10**6)), rng)[1]
            if other not in options:
                options.append(other)
        rng.shuffle(options)
        text = text if text not in found else f"{text} ({len(found)})"
        found[text] = Question(clip, text, options, options.index(answer))
    return list(found.values())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Miniature data of six benchmarks for lmms-eval.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--questions", type=int, default=2, help="on each clip")
    parser.add_argument("--side", type=int, default=224, help="of the clips, in pixels")
    given = parser.parse_args()
    environment = build(given.folder, given.clips, given.questions, given.side)
    print(f"cd {given.folder}", *(f"export {name}={value}" for name, value in environment.items()), sep="\n")
