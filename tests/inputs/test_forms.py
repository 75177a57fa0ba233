"""Every form of a video in docs/inputs.md: its line runs, and gives the model what the path gives."""

import base64
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, features

import hippo
from hippo.cli.demo import CLIP
from hippo.errors import HippoError
from hippo.inputs import fetch
from hippo.video import read_video
from hippo.video.frames import read_picture

PAGE = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text()
LINES = re.findall(r"\| `(llm\.generate\(.*)` \|", PAGE) + re.findall(r"^(llm\.generate\(.*)$", PAGE, re.MULTILINE)
UNTIMED = ("llm.generate(frames)", "llm.generate(list(frames))", "llm.generate(hippo.Video(frames, fps=5))")


class Handler(BaseHTTPRequestHandler):
    """Serves the demo's clip, and what is no clip."""

    def do_GET(self):
        data, name = CLIP.read_bytes(), self.path.strip("/")
        if name == "nothing.mp4":
            self.send_error(404)
            return
        self.send_response(302 if name in ("round.mp4", "there.mp4") else 200)
        if name in ("round.mp4", "there.mp4"):
            self.send_header("Location", "/round.mp4" if name == "round.mp4" else "/clip.mp4")
        self.send_header("Content-Type", "text/html" if name == "page.html" else "application/octet-stream")
        if name != "endless.mp4":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if name == "text.mp4":
            data = b"no video " * (len(data) // 9 + 1)
        if name == "stops.mp4":
            data = data[:1000]
        if name == "slow.mp4":
            self.server.over.wait(5)
        try:
            while name == "endless.mp4":
                self.wfile.write(data)
            self.wfile.write(data[: len(CLIP.read_bytes())])
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.over, serving.daemon_threads = threading.Event(), True
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.over.set()
        serving.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def names(tiny, server, tmp_path_factory):
    """What the page's lines are about. `llm.generate` gives the inputs."""
    video = read_video(CLIP)
    folder = tmp_path_factory.mktemp("pictures")
    for index, frame in enumerate(video.frames):
        Image.fromarray(frame).save(folder / f"{index:02}.png")
    return {
        "llm": SimpleNamespace(generate=tiny.inputs),
        "path": str(CLIP),
        "url": f"{server}/clip.mp4",
        "data": CLIP.read_bytes(),
        "video": video,
        "frames": video.frames,
        "times": video.timestamps,
        "pictures": [f"file://{path}" for path in sorted(folder.iterdir())],
        "ask": lambda part: [{"role": "user", "content": [part, {"type": "text", "text": hippo_prompt()}]}],
        "base64": base64, "torch": torch, "hippo": hippo, "np": np, "Image": Image, "open": open,
    }  # fmt: skip


def hippo_prompt():
    return "Describe the video in detail."


@pytest.fixture(scope="module")
def plain(tiny):
    return tiny.inputs(CLIP)


def test_the_page_has_lines():
    assert len(LINES) >= 25


@pytest.mark.parametrize("line", LINES)
def test_every_form_gives_what_the_path_gives(names, plain, line):
    inputs = eval(line, dict(names))
    if any(word in line for word in ("video_start", '"fps": 2', "processor_kwargs")):
        return
    assert inputs.keys() == plain.keys()
    for name, value in plain.items():
        if name == "second_per_grid_ts" and (line in UNTIMED or "pictures" in line):
            expected = torch.as_tensor([0.4 if "fps=5" in line else 1.0])
            assert torch.allclose(torch.as_tensor(inputs[name]).float(), expected)
        else:
            same = torch.equal(value, inputs[name]) if isinstance(value, torch.Tensor) else value == inputs[name]
            assert same, (line, name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing.mp4", "answers 404 Not Found"),
        ("round.mp4", "cannot be fetched .*redirect"),
        ("page.html", "is no video but text/html"),
        ("text.mp4", "text.mp4 is not a video"),
        ("stops.mp4", "cannot be fetched"),
        ("slow.mp4", "cannot be fetched .*Timeout"),
        ("endless.mp4", "endless.mp4 has more than 1 MiB"),
        ("clip.mp4", "takes more than 0 s"),
    ],
)
def test_a_url_that_gives_no_video_is_one_line(tiny, server, monkeypatch, name, words):
    monkeypatch.setattr(fetch, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "MAX_BYTES", 1 << 20)
    if name == "clip.mp4":
        monkeypatch.setattr(fetch, "MAX_SECONDS", 0)
    with pytest.raises(HippoError, match=words) as error:
        tiny.inputs(f"{server}/{name}")
    assert "\n" not in str(error.value) and error.value.hint


def test_a_redirect_is_followed_and_progress_is_told(server):
    shares = []
    stored = fetch.fetch(f"{server}/there.mp4", shares.append)
    assert stored.opened().read() == CLIP.read_bytes() and shares[-1] == 1.0 and stored.name == "there.mp4"


def test_nothing_is_fetched_where_that_is_off(tiny, names):
    for request in ({"video": names["url"]}, {"messages": names["ask"]({"type": "video", "url": names["url"]})}):
        with pytest.raises(HippoError, match=r"clip.mp4 is a URL, and fetching is off"):
            tiny.inputs(**request, fetch=False)
    with pytest.raises(HippoError, match=r"127.0.0.1:1/clip.mp4 cannot be fetched"):
        tiny.inputs("http://127.0.0.1:1/clip.mp4")


FRAMES = np.zeros((4, 56, 56, 3), np.uint8)
NAN = np.full((2, 56, 56, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (FRAMES[..., :2], "has the shape"),
        (FRAMES[0, ..., 0], "shape"),
        (FRAMES[None], "has the shape"),
        (np.zeros((8, 56, 56)), r"an image has the shape \(8, 56, 56\): .*gray frames of a video as \(T, H, W, 1\)"),
        ("", "the path is empty"),
        ("s3://bucket/clip.mp4", "s3:// is not fetched"),
        ("A" * 5000, r"'A{20}'\.\.\. is no path .*: give bytes, or a data: URL"),
        ([Image.fromarray(np.full((56, 56), 999, np.int32))], "has values from 999 to 999"),
        (FRAMES[:0], "no pixels"),
        (NAN, "has values from nan"),
        (FRAMES.astype(np.float32) - 1, "has values from -1"),
        (FRAMES.astype(np.float32) + 256, "has values from 256"),
        (FRAMES.astype(np.int64) + 256, "has values from 256"),
        (FRAMES.astype(bool), "values of type bool"),
        (FRAMES.astype(np.complex64), "values of type complex64"),
        ([FRAMES[0], FRAMES[0, :28]], "mixes frames"),
        ([Image.new("RGB", (56, 56)), Image.new("RGB", (28, 56))], "mixes frames"),
        ((FRAMES, {"fps": 0}), "metadata has fps 0"),
        ((FRAMES, {"fps": 2, "frames_indices": [1, 2]}), "4 frames have 2 timestamps"),
        ((FRAMES, {"fps": 2, "frames_indices": [1, 2, 1, 3]}), "not in order"),
        (b"", "is empty"),
        (b"no video at all", "is not a video"),
        ("data:video/mp4;base64,@", "cannot be decoded|is empty"),
        ("file:///nowhere.mp4", "nowhere.mp4 does not exist"),
        (7, "a int is neither"),
    ],
)
def test_what_is_no_video_is_one_line(tiny, source, words):
    with pytest.raises(HippoError, match=words) as error:
        tiny.inputs(source)
    assert "\n" not in str(error.value) and error.value.hint


def test_a_file_that_is_open_as_text(tiny):
    with open(CLIP) as file, pytest.raises(HippoError, match=r"demo.mp4 is open as text"):
        tiny.inputs(file)


def test_a_file_that_is_open_for_writing_only(tiny, tmp_path):
    with open(tmp_path / "new.mp4", "wb") as file, pytest.raises(HippoError, match=r"new.mp4 is not open for reading"):
        tiny.inputs(file)


def test_a_path_in_the_home_folder(tiny, plain, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    for path in ("~/clip.mp4", Path("~/clip.mp4")):
        assert torch.equal(tiny.inputs(path)["pixel_values_videos"], plain["pixel_values_videos"])
    with pytest.raises(HippoError, match=rf"{tmp_path}/gone.mp4 does not exist"):
        tiny.inputs("~/gone.mp4")


@pytest.mark.parametrize("scale, dtype", [(257, np.uint16), (1, np.int32), (1, np.float32), (1 / 255, np.float32)])
def test_pictures_of_more_than_8_bits_are_not_cut_off(tmp_path, scale, dtype):
    gray = np.random.default_rng(0).integers(0, 256, (3, 56, 56), np.uint8)
    gray[1] = gray[1] > 99  # its own range says nothing
    pictures = [Image.fromarray((frame.astype(np.float64) * scale).astype(dtype)) for frame in gray]
    assert (hippo.Video(pictures).frames == gray[..., None]).all()
    pictures[0].save(tmp_path / "gray.tiff")
    assert (np.asarray(read_picture(tmp_path / "gray.tiff")) == gray[0, ..., None]).all()


def test_avif_is_a_picture_or_a_video_by_its_content(tiny, names, tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    first, *others = (Image.fromarray(frame) for frame in names["frames"][:4])
    first.save(tmp_path / "still.avif")
    first.save(tmp_path / "moving.avif", save_all=True, append_images=others, duration=100)
    assert tiny.inputs(tmp_path / "still.avif")["image_grid_thw"].tolist() == [[1, 16, 16]]
    assert tiny.inputs(tmp_path / "moving.avif")["video_grid_thw"].tolist() == [[2, 16, 16]]


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_and_alpha_are_made_rgb(channels):
    frames = np.random.default_rng(0).integers(0, 255, (2, 56, 56, channels), np.uint8)
    assert (hippo.Video(frames).frames == frames[..., :3]).all()


def test_frames_of_any_size_get_an_answer_or_a_line(tiny):
    assert tiny.inputs(np.zeros((1, 1, 1, 3), np.uint8))["video_grid_thw"].tolist() == [[1, 4, 4]]
    large = np.zeros((1, 4000, 8000, 3), np.uint8)
    assert tiny.inputs(large, max_pixels=100_000)["video_grid_thw"].prod() * 196 <= 2 * 100_000
