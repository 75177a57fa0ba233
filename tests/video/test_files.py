"""Files that are videos, pictures, animations, or none of these."""

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from hippo.errors import MediaError
from hippo.video import is_picture, read_video
from hippo.video.files import check_file, require_size

from .clips import write_clip


def test_missing_folder_and_empty_files_are_refused(tmp_path):
    with pytest.raises(MediaError, match="does not exist"):
        check_file(tmp_path / "none.mp4")
    with pytest.raises(MediaError, match="is a folder"):
        check_file(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match="is empty"):
        check_file(tmp_path / "empty.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="not an ordinary file"):
        check_file(tmp_path / "pipe.mp4")


def test_unreadable_file_is_refused():
    # pytest's own folders are closed to other users, so a test run as root needs one that is not.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "secret.mp4"
        path.write_bytes(b"secret")
        path.chmod(0o000)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(MediaError, match="may not be read"):
                check_file(path)
        finally:
            if user == 0:
                os.seteuid(0)


def test_a_picture_is_told_from_a_clip_by_its_content(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "picture.mp4", "PNG")
    assert is_picture(tmp_path / "picture.mp4")
    assert not is_picture(write_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip.png"))
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 9)
    assert not is_picture(tmp_path / "noise.bin")
    (tmp_path / "cut.png").write_bytes((tmp_path / "picture.mp4").read_bytes()[:60])
    assert is_picture(tmp_path / "cut.png"), "what is left of a picture"


COLOURS = ("red", "lime", "blue")


def animate(path: Path) -> Path:
    """A file of three pictures, shown for 0.2, 0.3 and 0.5 s."""
    pictures = [Image.new("RGB", (64, 48), colour) for colour in COLOURS]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[200, 300, 500], lossless=True)
    return path


@pytest.mark.parametrize("name", ["moving.webp", "moving.png", "moving.gif"])
def test_animations_are_videos(tmp_path, name):
    path = animate(tmp_path / name)
    video = read_video(path)
    assert not is_picture(path)
    assert (video.timestamps, video.warnings) == (pytest.approx((0.0, 0.2, 0.5)), ())
    assert video.duration == pytest.approx(1.0)
    for frame, pixel in zip(video.frames, np.eye(3) * 255, strict=True):
        assert (frame == pixel).all()


def test_cut_off_animation_is_refused(tmp_path):
    path = animate(tmp_path / "moving.webp")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(MediaError, match=r"moving\.webp is a damaged animation: copy"):
        read_video(path)


@pytest.mark.parametrize("inner", [False, True], ids=["screen", "frame"])
def test_frames_that_are_too_large_are_refused_before_they_are_decoded(tmp_path, inner):
    path = animate(tmp_path / "large.gif")
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 16000, 16000)
    if inner:
        at = data.index(b",") + 5
        data[at : at + 4] = struct.pack("<HH", 16000, 16000)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"large\.gif declares frames that are too large"):
        read_video(path)


def test_the_size_that_a_header_declares_is_bounded():
    require_size("clip.mp4", 7680, 4320)
    with pytest.raises(MediaError, match=r"clip\.mp4 declares frames of 12000x9000: scale it"):
        require_size("clip.mp4", 12000, 9000)


def test_frames_that_cannot_be_shown_as_rgb_are_refused(tmp_path):
    with av.open(str(tmp_path / "odd.nut"), "w") as container:
        stream = container.add_stream("rawvideo", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb4"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 48, "rgb4")))
    with pytest.raises(MediaError, match=r"odd\.nut has frames of the pixel format rgb4"):
        read_video(tmp_path / "odd.nut")


def test_looking_into_a_clip_imports_no_more_of_pillow(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", count=2)
    code = (
        "import sys; from pathlib import Path; from hippo.video.files import is_picture; "
        f"assert not is_picture(Path({str(path)!r})); assert 'PIL.PdfImagePlugin' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
