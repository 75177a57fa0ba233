"""The Python API on the bundled pair and on real clips."""

import copy
import dataclasses
import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import hippo
from hippo import llm
from hippo.bench.world import make_scene, render, write_clip
from hippo.cli.demo import CLIP
from hippo.llm import out_of_memory_explained, release
from hippo.params import SamplingParams
from hippo.report.baseline import transformers_generate
from hippo.sequence import Sequence
from hippo.video import read_video
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
    return transformers_generate(llm, SamplingParams.of(**options), video=clip).token_ids


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with two clips, first.mp4 and second.mp4, and photo.jpg, a picture of a third."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copy(CLIP, folder / "first.mp4")
    write_clip(make_scene(90001), folder / "second.mp4")
    Image.fromarray(render(make_scene(90002), [0.5])[0]).save(folder / "photo.jpg")
    return folder


@pytest.mark.usefixtures("patient_targets")
def test_the_demo_clip_in_generates_own_words(tiny):
    expected = words(tiny, CLIP)
    for method in ("ar", "sd", "pearl", "hippo"):
        out = tiny.generate(CLIP, method=method, keep_ratio=0.1)
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
    video = read_video(REAL / name, frames=4)
    out = tiny.generate(video, max_new_tokens=40)
    assert out.token_ids == words(tiny, video, max_new_tokens=40)


def part(kind, value):
    return {"type": kind, kind: value}


def user(*content):
    return {"role": "user", "content": list(content)}


ANSWER = {"role": "assistant", "content": "The orange square becomes blue."}
FIRST, SECOND, PHOTO = part("video", "first.mp4"), part("video", "second.mp4"), part("image", "photo.jpg")
REQUESTS = {  # and how many videos each holds
    "two videos": ({"video": ["first.mp4", "second.mp4"], "prompt": "What differs?"}, 2),
    "an image and a video": ({"video": ["photo.jpg", "first.mp4"], "prompt": "What happens?"}, 1),
    "a video and two images": ({"video": ["first.mp4", "photo.jpg", "photo.jpg"]}, 1),
    "an image": ({"video": "photo.jpg", "prompt": "What is it?"}, 0),
    "text only": ({"prompt": "Say hello."}, 0),
    "a system prompt": (
        {"messages": [{"role": "system", "content": "Say what moves."}, user(FIRST, part("text", "What happens?"))]},
        1,
    ),
    "a second turn": (
        {"messages": [user(FIRST, part("text", "What happens?")), ANSWER, user(part("text", "And then?"))]},
        1,
    ),
    "another video in the second turn": (
        {"messages": [user(part("text", "Look:"), FIRST), ANSWER, user(SECOND, PHOTO, part("text", "And here?"))]},
        2,
    ),
    "text between two videos": (
        {"messages": [user(part("text", "First"), FIRST, part("text", "then"), SECOND, part("text", "Which?"))]},
        2,
    ),
    "nothing after a video": ({"messages": [user(part("text", "Describe this:"), FIRST)]}, 1),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_in_generates_own_words(tiny, sources, monkeypatch, name):
    monkeypatch.chdir(sources)
    request, videos = REQUESTS[name]
    request = request | {"frames": 4}
    expected = transformers_generate(tiny, SamplingParams.of(max_new_tokens=24), **request).token_ids
    for method in ("ar", "sd", "pearl", "hippo"):
        out = tiny.generate(**request, method=method, max_new_tokens=24, keep_ratio=0.25)
        assert out.token_ids == expected and not out.warnings, method
        assert out.stats.video_tokens == videos * 2 * 64
        kept = {"hippo": 0.25, "ar": 0.0}.get(method, 1.0)
        assert method == "ar" or out.stats.kept_tokens == round(kept * out.stats.video_tokens)
    assert "".join(tiny.stream(**request, max_new_tokens=24)) == out.text


def test_the_videos_of_a_request_are_all_looked_at(tiny, sources):
    one, other = sources / "first.mp4", sources / "second.mp4"
    requests = ([one], [other], [one, other], [other, one], [one, one], [other, other])
    texts = {tiny.generate(clips, "What happens?", frames=4, max_new_tokens=60).text for clips in requests}
    assert len(texts) == len(requests)


def test_the_readmes_requests(tiny, sources, monkeypatch):
    monkeypatch.chdir(sources)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    _, section = readme.split("### What a request may hold\n")
    example = section.split("```python\n")[1].split("```")[0]
    asked = []
    exec(example, {"llm": SimpleNamespace(generate=lambda *a, **k: asked.append((a, k)))})
    for positional, named in asked:
        assert tiny.generate(*positional, **named, frames=4, max_new_tokens=4).stats.new_tokens
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "no video to describe"),
        ({"video": CLIP, "messages": [user(FIRST)]}, "messages beside a video or a prompt"),
        ({"prompt": "What?", "messages": [user(FIRST)]}, "messages beside a video or a prompt"),
        ({"messages": []}, "there are no messages"),
        ({"messages": [user(FIRST), ANSWER]}, "the last message is of the assistant"),
        ({"video": []}, "list of videos is empty"),
    ],
)
def test_requests_that_make_no_sense_are_refused(tiny, request_, words):
    for call in (tiny.generate, tiny.inputs, lambda **given: next(tiny.stream(**given))):
        with pytest.raises(hippo.HippoError, match=words) as error:
            call(**request_)
        assert "\n" not in str(error.value)


def test_warnings_of_all_videos_are_told(tiny):
    clips = [dataclasses.replace(read_video(CLIP, frames=2), warnings=(name,)) for name in ("one", "two")]
    assert tiny.generate(clips, "What?", max_new_tokens=2).warnings == ("one", "two")


def test_a_limit_of_video_tokens_takes_fewer_frames_of_the_same_clip(tiny):
    out = tiny.generate(CLIP, max_new_tokens=8, max_video_tokens=200)
    assert out.stats.video_tokens == 192 and "6 of 16 frames" in out.warnings[0]
    asked = SamplingParams.of(max_new_tokens=8)
    assert out.token_ids == transformers_generate(tiny, asked, video=CLIP, max_video_tokens=200).token_ids
    assert tiny.generate(CLIP, max_new_tokens=8, frames=6).stats.video_tokens == 192
    with pytest.raises(hippo.HippoError, match="max_video_tokens 0 is not positive"):
        tiny.generate(CLIP, max_video_tokens=0)


@pytest.mark.usefixtures("patient_targets")
def test_stats_hold_everything(tiny):
    stats = tiny.generate(CLIP, max_new_tokens=12, frames=9).stats.as_dict()  # not in the cache
    assert set(FIELDS) <= set(stats) and list(stats["seconds"]) == PHASES
    seconds = stats["seconds"]
    assert all(value > 0 for value in seconds.values())
    assert seconds["total"] >= seconds["video"] + seconds["vision"] + seconds["prefill"] + seconds["decode"]


def test_streaming_gives_the_same_text_and_the_stats(tiny):
    stream = tiny.stream(CLIP, max_new_tokens=30)
    pieces = list(stream)
    assert "".join(pieces) == tiny.generate(CLIP, max_new_tokens=30).text == stream.output.text and len(pieces) > 1
    assert stream.output.stats.new_tokens == 30


def test_a_stream_left_early_frees_the_pair(tiny):
    stream = tiny.stream(CLIP)
    next(stream)
    expected = tiny.generate(CLIP, max_new_tokens=30)  # while the other is under way
    stream.close()
    assert list(stream) == [] and tiny.generate(CLIP, max_new_tokens=30).token_ids == expected.token_ids


def test_a_loop_left_early_needs_no_close(tiny):
    for index, _ in enumerate(tiny.stream(CLIP)):
        if index == 3:
            break
    asked = []
    thread = threading.Thread(target=lambda: asked.append(tiny.generate(CLIP, max_new_tokens=3)))
    thread.start()
    thread.join(60)
    assert asked[0].stats.new_tokens == 3


def test_an_exception_in_on_text_ends_the_answer_only(tiny):
    def fail(piece):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tiny.generate(CLIP, on_text=fail)
    assert tiny.generate(CLIP, max_new_tokens=3).stats.new_tokens == 3


def test_a_stream_begun_in_a_thread_that_has_ended(tiny):
    stream, pieces = tiny.stream(CLIP, max_new_tokens=20), []
    thread = threading.Thread(target=lambda: pieces.append(next(stream)))
    thread.start()
    thread.join()
    assert "".join([*pieces, *stream]) == tiny.generate(CLIP, max_new_tokens=20).text


def test_close_from_another_thread_while_one_iterates(tiny):
    stream, pieces = tiny.stream(CLIP), []
    thread = threading.Thread(target=lambda: pieces.extend(stream))
    thread.start()
    while not pieces and thread.is_alive():
        time.sleep(0.001)
    stream.close()
    thread.join(60)
    assert not thread.is_alive() and stream.output.stats.finish in ("", "eos")
    assert tiny.generate(CLIP, max_new_tokens=3).stats.new_tokens == 3


def test_close_from_a_progress_callback_ends_the_stream(tiny):
    stream = tiny.stream(CLIP, frames=7, progress=lambda phase, share: stream.close())  # not in the cache
    assert list(stream) == []


def test_a_dropped_stream_frees_what_it_holds(tiny):
    stream = tiny.stream(CLIP)
    next(stream)
    held = weakref.ref(stream._job.sequence._run)
    del stream
    gc.collect()
    assert held() is None


SCRIPTS = {
    "a stream that is alive at the end": (
        f"import hippo\nllm = hippo.load('tiny')\nstream = llm.stream({str(CLIP)!r})\nnext(stream)\n"
    ),
    "an error, and no main guard": (
        "import hippo, sys\n"
        "llm = hippo.load('tiny')\n"
        f"out = llm.generate({str(CLIP)!r}, max_new_tokens=5)\n"
        "print(llm.pair.draft.worker().pid, len(out.token_ids), flush=True)\n"
        "raise SystemExit(1 / 0)\n"
    ),
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """What each of the scripts did. They run at the same time: most of it is imports."""

    def run(text):
        script = tmp_path_factory.mktemp("scripts") / "script.py"
        script.write_text(text)
        return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, check=False)

    with ThreadPoolExecutor(len(SCRIPTS)) as pool:
        return dict(zip(SCRIPTS, pool.map(run, SCRIPTS.values()), strict=True))


def test_a_stream_alive_at_interpreter_exit_prints_nothing(scripts):
    done = scripts["a stream that is alive at the end"]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_request_object_says_the_same(tiny):
    request = hippo.Request(
        [user(part("video", CLIP), part("text", "What happens?"))], hippo.SamplingParams(max_new_tokens=9)
    )
    assert tiny.generate(request).token_ids == tiny.generate(CLIP, "What happens?", max_new_tokens=9).token_ids


def test_a_system_prompt_in_words(tiny):
    turns = [{"role": "system", "content": "Say what moves."}, user(part("video", CLIP), part("text", "What happens?"))]
    asked = tiny.generate(CLIP, "What happens?", system="Say what moves.", max_new_tokens=9)
    assert asked.token_ids == tiny.generate(messages=turns, max_new_tokens=9).token_ids


def test_an_unknown_option_names_the_nearest(tiny):
    with pytest.raises(hippo.BadRequest, match="did you mean frames"):
        tiny.generate(CLIP, frams=3)
    with pytest.raises(hippo.BadRequest, match="did you mean tokenizer"):
        hippo.generate(None, None, {}, tokeniser=None)


def test_it_cannot_be_pickled_or_copied(tiny):
    for copy_ in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            copy_(tiny)


def test_the_public_names():
    assert set(hippo.__all__) <= set(dir(hippo)) and all(getattr(hippo, name) for name in hippo.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = hippo.nothing


def test_bfloat16_inputs(tiny):
    inputs = tiny.inputs(CLIP)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].bfloat16()
    stats = hippo.Stats()
    tokens = [t for chunk in Sequence(tiny.pair, inputs, SamplingParams(max_new_tokens=8), stats) for t in chunk]
    assert len(tokens) == 8 and not stats.draft_lost


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
    process = llm._drafts[target][1].worker().pid
    assert hippo.generate(target, small, request, max_new_tokens=24).token_ids == out.token_ids
    assert llm._drafts[target][1].worker().pid == process, "the draft is copied once"
    assert not any("hippo" in name for name in target.__dict__), "nothing is hung on the user's model"
    release(target)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_running_out_of_memory_is_one_clear_error():
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 9 bytes")):
        with pytest.raises(hippo.HippoError, match="not enough memory"), out_of_memory_explained():
            raise error
    with pytest.raises(RuntimeError, match="else"), out_of_memory_explained():
        raise RuntimeError("something else")


def test_a_script_without_a_main_guard_leaves_nothing_behind(scripts):
    """The draft's process must not run the user's script again, and must end with it, whatever ends it."""
    done = scripts["an error, and no main guard"]
    pid, tokens = done.stdout.split()
    assert tokens == "5" and "ZeroDivisionError" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
