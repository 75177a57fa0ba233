"""The Python API on the bundled pair and on real clips."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hippo
from hippo.cli.demo import CLIP
from hippo.llm import DEFAULT_PROMPT, out_of_memory_explained, pair_of
from hippo.options import make_options
from hippo.report.baseline import transformers_generate
from hippo.video import read_video
from hippo.world import make_scene, write_clip
from tests.drafts import draft
from tests.models import generated, inputs, model

REAL = Path(__file__).parents[2] / "shared" / "data"
FIELDS = [
    "new_tokens",
    "target_forwards",
    "draft_forwards",
    "checked",
    "accepted",
    "acceptance_rate",
    "tokens_per_target_forward",
    "run_between_rejections",
    "gamma",
    "video_tokens",
    "kept_tokens",
    "draft_lost",
]
PHASES = ["video", "vision", "prefill", "scoring", "draft_prefill", "decode", "total"]


def words(llm, clip, **options):
    return transformers_generate(llm, str(clip), DEFAULT_PROMPT, make_options(**options)).token_ids


def test_the_demo_clip_in_generates_own_words(tiny):
    expected = words(tiny, CLIP)
    for method in ("ar", "sd", "pearl", "hippo"):
        out = tiny.generate(CLIP, method=method)
        assert out.token_ids == expected, method
        assert out.text == tiny.processor.tokenizer.decode(expected, skip_special_tokens=True)
    assert out.stats.video_tokens >= 500 and out.stats.kept_tokens == round(0.1 * out.stats.video_tokens)
    assert out.stats.tokens_per_target_forward > 1.5


@pytest.mark.parametrize("seed", [90001, 90020])
def test_held_out_clips(tiny, tmp_path, seed):
    write_clip(make_scene(seed), tmp_path / "clip.mp4")
    assert tiny.generate(tmp_path / "clip.mp4").token_ids == words(tiny, tmp_path / "clip.mp4")


@pytest.mark.parametrize("name", ["big_buck_bunny_trailer.mp4", "city_night.mpg"])
def test_real_clips(tiny, name):
    if not (REAL / name).exists():
        pytest.skip("the real clips are not beside this checkout")
    out = tiny.generate(REAL / name, max_new_tokens=40)
    assert out.token_ids == words(tiny, REAL / name, max_new_tokens=40)


def test_stats_hold_everything(tiny):
    stats = tiny.generate(CLIP, max_new_tokens=12).stats.as_dict()
    assert set(FIELDS) <= set(stats) and list(stats["seconds"]) == PHASES
    seconds = stats["seconds"]
    assert all(value > 0 for value in seconds.values())
    assert seconds["total"] >= seconds["video"] + seconds["vision"] + seconds["prefill"] + seconds["decode"]


def test_streaming_gives_the_same_text_and_the_stats(tiny):
    stream = tiny.stream(CLIP, max_new_tokens=30)
    pieces = list(stream)
    assert "".join(pieces) == tiny.generate(CLIP, max_new_tokens=30).text == stream.output.text and len(pieces) > 3
    assert stream.output.stats.new_tokens == 30


def test_a_stream_left_early_frees_the_pair(tiny):
    stream = tiny.stream(CLIP)
    next(stream)
    with pytest.raises(hippo.HippoError, match="still being streamed"):
        tiny.generate(CLIP)
    stream.close()
    assert tiny.generate(CLIP, max_new_tokens=3).stats.new_tokens == 3


def test_bfloat16_inputs(tiny):
    inputs = tiny.inputs(CLIP)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].bfloat16()
    target, small = tiny.pair.target, tiny.pair.draft
    stats = hippo.Stats()
    tokens = [t for chunk in tiny.pair.answer(inputs, make_options(max_new_tokens=8), stats) for t in chunk]
    assert len(tokens) == 8 and not stats.draft_lost and target is not small


def test_markers_in_the_prompt_are_refused(tiny):
    with pytest.raises(hippo.HippoError, match="video_pad"):
        tiny.generate(CLIP, "What is <|video_pad|>?")


def test_a_stop_string(tiny):
    out = tiny.generate(CLIP, stop=["First"])
    assert out.text.endswith("First") and out.stats.finish == "stop"
    assert out.token_ids == words(tiny, CLIP, stop=["First"])


def test_sampling_is_repeatable(tiny):
    options = {"temperature": 1.0, "max_new_tokens": 40}
    texts = [tiny.generate(CLIP, method=method, seed=1, **options).text for method in ("ar", "hippo")]
    assert texts[0] == texts[1] != tiny.generate(CLIP, seed=2, **options).text


def test_more_frames_and_a_rate(tiny):
    assert tiny.generate(CLIP, frames=4, max_new_tokens=3).stats.video_tokens == 2 * 64
    seen = int(read_video(CLIP, frames=1).duration) + 1  # at 0 s, 1 s, ...
    assert tiny.generate(CLIP, fps=1, max_new_tokens=3).stats.video_tokens == -(-seen // 2) * 64


def test_models_in_memory():
    request, target, small = inputs("qwen2_5_vl"), model("qwen2_5_vl"), draft("other")
    out = hippo.generate(target, small, request, method="hippo", max_new_tokens=24, keep_ratio=0.5)
    assert out.token_ids == generated(target, request) and out.text == "" and not out.warnings
    process = pair_of(target, small).start_draft().pid
    assert hippo.generate(target, small, request, max_new_tokens=24).token_ids == out.token_ids
    assert pair_of(target, small).start_draft().pid == process, "the draft is copied once"
    pair_of(target, None)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_running_out_of_memory_is_one_clear_error():
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 9 bytes")):
        with pytest.raises(hippo.HippoError, match="not enough memory"), out_of_memory_explained():
            raise error
    with pytest.raises(RuntimeError, match="else"), out_of_memory_explained():
        raise RuntimeError("something else")


def test_a_script_without_a_main_guard_leaves_nothing_behind(tmp_path):
    """The draft's process must not run the user's script again, and must end with it, whatever ends it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import hippo, sys\n"
        "llm = hippo.load('tiny')\n"
        f"print(llm.pair.start_draft().pid, len(llm.generate({str(CLIP)!r}, max_new_tokens=5).token_ids), flush=True)\n"
        "raise SystemExit(1 / 0)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    pid, tokens = done.stdout.split()
    assert tokens == "5" and "ZeroDivisionError" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
