"""Decoding in another process: the same frames and errors, and what happens when that process is lost."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from fractions import Fraction
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hippo.errors import BadRequest, MediaError
from hippo.video import Decoder, Sampling, Stored, Video, write_video
from hippo.video.process import Workers
from tests.video.clips import cut, numbered_image, write_clip

LIMIT = 1 << 30
SAMPLING = Sampling(7)


@pytest.fixture(scope="module")
def workers():
    made = Workers(LIMIT, 60)
    yield made
    made.close()


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4")


def animation(path, **options):
    first, *rest = [Image.fromarray(numbered_image(number)) for number in range(9)]
    first.save(path, save_all=True, append_images=rest, duration=100, **options)
    return path


def large(path, side):
    """A clip or picture with many pixels and few bytes."""
    Image.new("RGB", (side, side)).save(path, save_all=True, append_images=[Image.new("RGB", (side, side), 9)])
    return path


def everything(decoder, path, sampling=SAMPLING, most=None):
    """All that a decoder says of a clip; or its error."""
    try:
        clip = decoder.clip(path, sampling)
        video = decoder.sample(clip, sampling, most)
        named = {field.name: getattr(video, field.name) for field in fields(Video)}
        return clip.size, clip.estimate(sampling), named.pop("frames"), named
    except (BadRequest, MediaError) as error:
        return type(error), str(error)


def same(ours, theirs):
    if len(ours) == 2 or len(theirs) == 2:
        return ours == theirs
    return np.array_equal(ours[2], theirs[2]) and (*ours[:2], ours[3]) == (*theirs[:2], theirs[3])


def pids(workers):
    return {process._child.pid for process in workers._all if process.alive}


@pytest.mark.parametrize("name", ["a.mp4", "b.webm", "c.avi", "d.gif", "e.webp", "f.png", "damaged.mkv", "none.mp4"])
def test_clips_are_the_same_bit_for_bit(workers, tmp_path, name):
    path = tmp_path / name
    if path.suffix in (".gif", ".webp", ".png"):
        animation(path)
    elif name != "none.mp4":
        write_clip(path, count=60)
    if name == "damaged.mkv":
        cut(path, 0.6)
    sources = [path] if name == "none.mp4" else [path, Stored(BytesIO(path.read_bytes()), "the video")]
    for source in sources:
        for most in (None, 3):
            with workers.decoding() as there:
                assert same(everything(there, source, most=most), everything(Decoder(), source, most=most))


@pytest.mark.parametrize("name", ["a.png", "turned.jpg", "gray.webp", "moving.gif", "text.png", "none.png"])
def test_pictures_are_the_same_bit_for_bit(workers, tmp_path, name):
    path = tmp_path / name
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 44, 3), np.uint8))
    if name == "moving.gif":
        animation(path)
    elif name == "text.png":
        path.write_text("no picture")
    elif name != "none.png":
        turned = Image.Exif()
        turned[0x0112] = 6
        (image.convert("L") if name == "gray.webp" else image).save(path, exif=turned if "turned" in name else b"")

    def read(decoder, source):
        try:
            picture = decoder.picture(source)
            return picture.mode, picture.size, picture.tobytes()
        except (BadRequest, MediaError) as error:
            return type(error), str(error)

    for source in [path] if name == "none.png" else [path, Stored(BytesIO(path.read_bytes()), "the image")]:
        with workers.decoding() as there:
            assert read(there, source) == read(Decoder(), source)


def test_one_process_serves_a_request_and_then_the_next(workers, clip):
    with workers.decoding() as one:
        kept = one.clip(clip, SAMPLING)
        with workers.decoding() as other:
            other.clip(clip, SAMPLING)
            with workers.decoding() as third:
                third.clip(clip, SAMPLING)
                assert len(pids(workers)) == 3
        assert kept.estimate(SAMPLING) == 7, "its clips are its own"
        assert kept.estimate(Sampling(3)) == len(one.sample(kept, Sampling(3)).frames) == 3
    left = pids(workers)
    assert len(left) == 2
    with workers.decoding() as one, workers.decoding() as other, workers.decoding():  # the last reads nothing
        assert one.clip(clip, SAMPLING).estimate(SAMPLING) == other.clip(clip, SAMPLING).estimate(SAMPLING) == 7
        assert pids(workers) == left


@pytest.fixture(scope="module")
def small():
    """Little more than the process itself needs."""
    made = Workers(110 << 20, 60)
    yield made
    made.close()


@pytest.mark.parametrize("name", ["bomb.png", "bomb.gif", "bomb.webp"])
def test_what_needs_more_memory_than_allowed_is_refused(small, tmp_path, clip, name):
    path = large(tmp_path / name, 3000)
    # libwebp does not say that it was memory.
    words = "bomb.webp is a damaged animation" if "webp" in name else f"{name} needs more than 110 MiB to be decoded: "
    with small.decoding() as there, pytest.raises(MediaError, match=f"^{re.escape(words)}"):
        there.sample(there.clip(path, SAMPLING), SAMPLING)
    with small.decoding() as there:
        assert same(everything(there, clip), everything(Decoder(), clip))


def test_a_large_picture_is_refused(small, tmp_path):
    path = tmp_path / "bomb.jpg"
    Image.new("RGB", (6000, 6000)).save(path)
    with small.decoding() as there, pytest.raises(MediaError, match=r"110 MiB|out of memory"):
        there.picture(path)


def test_too_little_memory_never_changes_frames(tmp_path):
    images = [np.kron(numbered_image(number), np.ones((20, 20, 1), np.uint8)) for number in range(20)]
    path = tmp_path / "clip.mp4"
    write_video(images, path, Fraction(10), (64 * 20, 48 * 20))
    expected, refused = everything(Decoder(), path), 0
    for limit in (84, 92, 100, 300):
        workers = Workers(limit << 20, 60)
        with workers.decoding() as there:
            seen = everything(there, path)
        workers.close()
        refused += seen[0] is MediaError
        assert seen[0] is MediaError or same(seen, expected)
    assert seen[0] is not MediaError and refused


def test_frames_that_are_handed_over_do_not_count(small, tmp_path):
    path = tmp_path / "wide.mp4"
    write_video([np.full((480, 640, 3), number, np.uint8) for number in range(130)], path, Fraction(10), (640, 480))
    with small.decoding() as there:
        video = there.sample(there.clip(path, Sampling(130)), Sampling(130))
    assert video.frames.nbytes > 110 << 20 and not video.warnings
    assert np.array_equal(video.frames, everything(Decoder(), path, Sampling(130))[2])


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_fails_its_request_alone(workers, clip, sent):
    with workers.decoding() as other, workers.decoding() as there:
        beside, opened = other.clip(clip, SAMPLING), there.clip(clip, SAMPLING)
        pid = there.process._child.pid
        os.kill(pid, signal.SIGSTOP)  # so that it dies with the call under way
        threading.Timer(0.1, os.kill, (pid, sent)).start()
        threading.Timer(0.2, os.kill, (pid, signal.SIGCONT)).start() if sent != signal.SIGKILL else None
        words = rf"^clip\.mp4 ends the process that decodes it \({sent.name}\): convert it to H\.264 first$"
        with pytest.raises(MediaError, match=words):
            there.sample(opened, SAMPLING)
        assert len(other.sample(beside, SAMPLING).frames) == 7
    assert pid not in pids(workers)
    with workers.decoding() as there:
        assert same(everything(there, clip), everything(Decoder(), clip))


def test_an_idle_process_that_died_is_not_used(clip):
    workers = Workers(LIMIT, 60)
    workers.start()
    (process,) = workers._idle
    os.kill(process._child.pid, signal.SIGKILL)
    process._child.wait()
    with workers.decoding() as there:
        assert len(everything(there, clip)) == 4
    workers.close()
    assert not pids(workers)


def test_decoding_that_takes_too_long_is_ended(clip):
    workers = Workers(LIMIT, 60)
    with workers.decoding() as there:
        opened = there.clip(clip, SAMPLING)
        process = there.process
        process._channel.settimeout(0.2)
        os.kill(process._child.pid, signal.SIGSTOP)
        with pytest.raises(MediaError, match=r"takes more than 60 s to decode: cut it, or ask for fewer frames"):
            there.sample(opened, SAMPLING)
        assert not process.alive
    assert not pids(workers)


def test_closing_ends_those_at_work(clip):
    workers = Workers(LIMIT, 60)
    with workers.decoding() as there:
        opened = there.clip(clip, SAMPLING)
        os.kill(there.process._child.pid, signal.SIGSTOP)
        threading.Timer(0.1, workers.close).start()
        with pytest.raises(MediaError, match="SIGKILL"):
            there.sample(opened, SAMPLING)
    assert not pids(workers)


OWNER = """
import sys, time
from pathlib import Path
from hippo.video import Sampling
from hippo.video.process import Workers
assert "torch" not in sys.modules, "a process that decodes would import it too"
workers = Workers(1 << 30, 60)
workers.start()
with workers.decoding() as there:
    there.clip(Path(sys.argv[1]), Sampling())
    print(there.process._child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_owner(clip, sent):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(clip)], stdout=subprocess.PIPE, text=True)
    with owner:
        pid = int(owner.stdout.readline())
        owner.send_signal(sent)
        owner.wait(60)
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}/stat") and time.monotonic() < end:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":  # nobody waits for it here
                break
        time.sleep(0.01)
    else:
        assert time.monotonic() < end


def test_nothing_is_left_open(clip, tmp_path):
    """In either process, whatever the answer."""
    workers = Workers(LIMIT, 60)
    content, none = Stored(BytesIO(clip.read_bytes()), "a"), Stored(BytesIO(b"no picture"), "b")
    counts = []
    for _ in range(3):
        with workers.decoding() as there:
            kept = [everything(there, content)]
            with pytest.raises(MediaError):
                there.picture(none)
            with pytest.raises(MediaError):
                there.clip(none, SAMPLING)
        with workers.decoding() as there:
            there.clip(clip, SAMPLING)  # after it has closed the others
            pid = there.process._child.pid
            counts.append((len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir("/proc/self/fd"))))
    assert counts[-1][0] <= counts[0][0] and counts[-1][1] <= counts[0][1] and kept
    workers.close()
