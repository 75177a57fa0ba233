"""The command line as a user meets it: what it prints where, its exit codes, its one-line errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hippo.checkpoints import BUNDLED
from hippo.cli import doctor
from hippo.cli.app import app
from hippo.cli.demo import CLIP
from hippo.cli.verify import _show
from hippo.errors import HippoError

TINY = BUNDLED / "tiny"


def hippo(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "hippo", *map(str, arguments)],
        capture_output=True, text=True, timeout=600, check=False, **options,
    )  # fmt: skip


def test_caption_prints_words_on_stdout_and_the_rest_on_stderr():
    done = hippo("caption", CLIP, "--max-new-tokens", 12, "--compare")
    assert done.returncode == 0 and len(done.stdout.split()) > 5 and done.stdout.endswith("\n")
    assert "tokens per target forward" in done.stderr and "identical to AR" in done.stderr
    assert "│" not in done.stdout


def here(*arguments):
    """hippo in this process, where what is tested is not the process itself."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done


def test_json_is_one_object():
    done = here("caption", CLIP, "--max-new-tokens", 12, "--json", "--compare", "--method", "sd")
    result = json.loads(done.stdout)
    assert {"text", "token_ids", "method", "stats", "baseline", "identical", "speedup"} <= set(result)
    assert result["method"] == "sd" and result["identical"] is True and len(result["token_ids"]) == 12
    assert set(result["speedup"]) == {"decode", "end_to_end"}


def test_caption_takes_videos_and_images_and_a_system_prompt(photo):
    arguments = [
        "caption",
        CLIP,
        photo,
        CLIP,
        "--together",
        "-p",
        "What differs?",
        "--system",
        "Be brief.",
        "--frames",
        4,
    ]
    result = json.loads(here(*arguments, "--max-new-tokens", 8, "--json", "--compare").stdout)
    assert result["identical"] is True and result["stats"]["video_tokens"] == 2 * 2 * 64
    assert result["stats"]["kept_tokens"] == 2 * round(0.1 * 2 * 64)
    assert result["videos"] == [str(CLIP), str(photo), str(CLIP)]
    plain = json.loads(here(*arguments[:7], "--frames", 4, "--max-new-tokens", 8, "--json").stdout)
    assert plain["stats"]["prompt_tokens"] < result["stats"]["prompt_tokens"], "the system prompt is in the prompt"


def test_caption_without_a_video_is_an_error():
    for command in ("caption", "verify"):
        done = here(command, "-p", "Say hello.")
        assert done.exit_code == 2 and done.stdout == "" and "Missing argument 'VIDEO" in done.stderr


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (90, 60), "red").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_draft_larger_than_the_target_is_told_on_stderr():
    done = here("caption", CLIP, "--target", TINY / "draft", "--draft", TINY / "target", "--max-new-tokens", 4)
    assert done.exit_code == 0 and "larger" not in done.stdout
    assert "warning: the draft is larger than the target (5." in " ".join(done.stderr.split())


def test_explain_is_for_one_video(photo):
    with pytest.raises(HippoError, match=r"photo.png is a picture, not a video"):
        CliRunner().invoke(app, ["explain", str(photo), "--out", str(photo.parent / "out")], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.mp4"], "nowhere.mp4"),
        ([CLIP, "nowhere.mp4", "--together"], "nowhere.mp4 does not exist"),
        ([__file__], "test_main.py is not a video"),
        ([CLIP, CLIP.parent], r"bundled is a folder, not a video: run hippo caption .*bundled/\*.mp4"),
        ([CLIP, "--keep-ratio", "0"], "keep_ratio 0 is not in"),
        ([CLIP, "--keep-ratio", "1.5"], "keep_ratio 1.5 is not in"),
        ([CLIP, "--gamma", "some"], "gamma 'some'"),
        ([CLIP, "--max-new-tokens", "0"], "max_new_tokens 0"),
        ([CLIP, "--frames", "0"], "frames"),
        ([CLIP, "--frames", "-3"], "frames"),
        ([CLIP, "--fps", "0"], "fps"),
        ([CLIP, "--frames", "4", "--fps", "1"], "fps"),
        ([CLIP, "--method", "magic"], "unknown method 'magic'"),
        ([CLIP, "--decoder", "magic"], "unknown decoder 'magic'"),
        ([CLIP, "--temperature", "-1"], "temperature -1"),
        ([CLIP, "--target", "./nowhere", "--draft", "tiny"], "there is no checkpoint folder ./nowhere"),
        ([CLIP, "--target", str(CLIP.parent)], "no draft model"),
        ([CLIP, "--device", "cuda:77"], "cuda:77"),
        ([CLIP, "--device", "mps"], "mps"),
        ([CLIP, "--stop", ""], "stop string is empty"),
    ],
)
def test_bad_input_is_one_line(arguments, words):
    with pytest.raises(HippoError, match=words) as error:
        CliRunner().invoke(app, ["caption", *map(str, arguments)], catch_exceptions=False)
    assert "\n" not in str(error.value)


def test_an_error_is_one_line_on_stderr_and_exit_code_2(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a video at all")
    done = hippo("caption", text)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("hippo: ")


def test_a_prompt_longer_than_the_context():
    with pytest.raises(HippoError, match="context 32768"):
        arguments = ["caption", str(CLIP), "-p", "one two " * 20_000, "--method", "ar"]
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_clip_cut_off_in_the_middle_is_used_as_far_as_it_goes(tmp_path):
    real = Path(__file__).parents[3] / "shared" / "data" / "city_night.mpg"
    if not real.exists():
        pytest.skip("the real clips are not beside this checkout")
    cut = tmp_path / "cut.mpg"
    cut.write_bytes(real.read_bytes()[: real.stat().st_size // 2])
    done = here("caption", cut, "--max-new-tokens", 4)
    assert done.exit_code == 0 and done.stdout and "warning: cut.mpg" in done.stderr


def shell(redirected, *arguments):
    """hippo in bash with a redirection or a pipe; the exit code is the last line of stdout."""
    command = (
        f"{sys.executable} -W ignore -m hippo {' '.join(map(str, arguments))} {redirected}; echo ${{PIPESTATUS[0]}}"
    )
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600, check=False)


def shells(*calls):
    """`shell` of several calls, two at a time: each spends most of its time on imports."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda call: shell(*call), calls))


LIST, HELP, CAPTION = ["models", "--json"], ["--help"], ["caption", CLIP, "--max-new-tokens", 4, "--method", "ar"]
CLOSED, FULL = (">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")


@pytest.mark.parametrize(("place", "several"), [(CLOSED, [LIST, HELP]), (FULL, [LIST, HELP, CAPTION])])
def test_stdout_that_takes_nothing_is_one_line(place, several):
    redirection, reason = place
    for done in shells(*([redirection, *arguments] for arguments in several)):
        assert (done.stdout, done.stderr) == ("2\n", f"hippo: stdout cannot be written ({reason})\n"), done.args


def test_a_reader_that_leaves_early_ends_it_without_a_word():
    for done in shells(*(["| true", *arguments] for arguments in (LIST, HELP, CAPTION))):
        assert done.stdout == f"{128 + signal.SIGPIPE}\n", done.args
        assert not re.search("Traceback|Error|hippo:", done.stderr), done.args


def test_a_stderr_that_takes_nothing_costs_no_answer():
    assert [done.stdout for done in shells(["2>&-", "models"], ["2>/dev/full", "models"])] == ["0\n", "0\n"]


@pytest.mark.parametrize("when", ["importing", "loading", "answering"])
def test_ctrl_c_leaves_nothing_behind(when):
    # A session of its own, so that the signal reaches the whole group, as Ctrl-C on a terminal does; and the signal as
    # it is there, even if these tests run in the background of a shell, which makes its children deaf to it.
    # With this seed the answer has 1,168 tokens: it does not end before the signal.
    asked = [CLIP, "--temperature", 100, "--seed", 3, "--max-new-tokens", 4000]
    process = subprocess.Popen(
        [sys.executable, "-m", "hippo", "caption", *map(str, asked)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    if when == "answering":
        process.stdout.read(20)
    else:
        time.sleep({"importing": 1, "loading": 4}[when])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children or when != "answering"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert b"interrupted" in errors and b"Traceback" not in errors
    for pid in [process.pid, *map(int, children)]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_doctor():
    done = here("doctor", "--json")
    facts = json.loads(done.stdout)
    assert facts["versions"]["transformers"] and "cpu" in facts["devices"]
    assert facts["video decoders"]["pyav"][0].isdigit() and facts["will use"]["bundled pair"] == "there"
    assert facts["will use"]["CUDA graphs"] == "not used, there is no GPU"


def test_doctor_says_whether_a_gpu_records_forwards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told = doctor._plan(torchcodec=False)["CUDA graphs"]
    assert told.startswith("not used, recording failed (") and "\n" not in told, "there is none"


@pytest.mark.parametrize("others", [[], [CLIP, "--together", "--frames", 4, "--system", "Be brief."]])
def test_verify(others):
    done = here("verify", CLIP, *others, "--max-new-tokens", 20, "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0 and [row["method"] for row in report["methods"]] == ["ar", "sd", "pearl", "hippo"]
    assert all(row["identical"] for row in report["methods"])
    assert {"hippo-video", "python", "torch", "transformers"} <= set(report["versions"]) and report["family"]
    assert report["dtype"] == "float32" and report["device"] == "cpu" and report["quantised"] == ""
    assert Path(report["target"]).is_dir() and Path(report["draft"]).is_dir()
    kept = [row["kept_tokens"] for row in report["methods"]]
    assert kept[:3] == [0, report["video_tokens"], report["video_tokens"]] and 0 < kept[3] < kept[2]


def test_verify_tells_rounding_from_a_bug(capsys):
    found = {"method": "sd", "tokens": 3, "kept_tokens": 2, "identical": False, "at": 1, "theirs": 4, "ours": 5}
    rows = [
        found | {"gap": 0.02, "moved": 0.01, "bound": 0.05, "near_tie": True},
        found | {"gap": 0.9, "moved": 0.01, "bound": 0.05, "near_tie": False},
        found | {"gap": None, "moved": 0.01, "bound": 0.05, "near_tie": False, "draft_lost": "it died"},
    ]
    facts = dict.fromkeys(("family", "target", "draft", "device", "dtype", "quantised", "forwards"), "x")
    _show(facts | {"video": "clip.mp4", "versions": {"torch": "2"}, "video_tokens": 4, "methods": rows})
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "near tie (rounding)" in told and told.count("not a near tie: a bug, please report") == 2
    assert "it died" in told


@pytest.mark.parametrize(
    "command",
    [
        *(["caption", str(CLIP)], ["verify", str(CLIP)], ["explain", str(CLIP), "--out", "out"]),
        *(["batch", str(CLIP), "--out", "out"], ["bench", "speed"], ["bench", "identical"], ["bench", "pruning"]),
        *(["bench", "chat"], ["bench", "throughput"]),
    ],
    ids=" ".join,
)
def test_attention_is_passed_on(monkeypatch, tmp_path, command):
    def load(*_, attn_implementation, **__):
        raise HippoError(f"attention: {attn_implementation}")

    monkeypatch.setattr("hippo.llm.load", load)
    monkeypatch.setattr("hippo.bench.speed.load", load)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HippoError, match="attention: eager"):
        CliRunner().invoke(app, [*command, "--attn-implementation", "eager"], catch_exceptions=False)


def test_a_shape_has_no_other_attention():
    shape = ["bench", "speed", "--models", "shape:qwen2.5-vl-7b", "--acceptance", "0.8"]
    with pytest.raises(HippoError, match="a shape has the attention"):
        CliRunner().invoke(app, [*shape, "--attn-implementation", "eager"], catch_exceptions=False)


@pytest.mark.parametrize("command", ["caption", "verify", "explain"])
@pytest.mark.parametrize("flags", [[], ["--trust-remote-code"]])
def test_code_of_checkpoints_runs_only_if_asked(monkeypatch, tmp_path, command, flags):
    def load(*_, trust_remote_code, **__):
        raise HippoError(f"trusted: {trust_remote_code}")

    monkeypatch.setattr("hippo.llm.load", load)
    out = ["--out", str(tmp_path / "out")] if command == "explain" else []
    with pytest.raises(HippoError, match=f"trusted: {bool(flags)}"):
        CliRunner().invoke(app, [command, str(CLIP), *out, *flags], catch_exceptions=False)


COLLECTS = """
import gc, os
from hippo.bench.memory import held, with_children
from hippo.cli import common

kinds = ("Pss_Anon", "Pss_Shmem")
with common.loaded("tiny", None):
    (draft,) = set(with_children(os.getpid())) - {os.getpid()}
    before = held(draft, kinds)
    gc.collect()
    print((held(draft, kinds) - before) >> 20)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux says what is shared")
def test_a_collection_copies_nothing_that_the_drafts_process_shares():
    done = subprocess.run([sys.executable, "-c", COLLECTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16, "MiB; 47 without a freeze"
