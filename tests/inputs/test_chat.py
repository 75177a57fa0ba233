"""From sources and messages to checked messages whose videos and images are read."""

import shutil

import numpy as np
import pytest
from PIL import Image

from hippo.cli.demo import CLIP
from hippo.errors import BadRequest, HippoError
from hippo.inputs import messages_of, open_messages, parts_of, read_messages
from hippo.video import read_video


@pytest.fixture
def picture(tmp_path):
    """Red above, blue below, and two thirds as high as wide."""
    image = Image.new("RGB", (90, 60), "red")
    image.paste("blue", (0, 30, 90, 60))
    image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def user(*content):
    return [{"role": "user", "content": list(content)}]


def test_a_simple_request_is_one_turn_with_the_sources_first(picture):
    video, image = read_video(CLIP, frames=2), Image.new("RGB", (8, 8))
    (turn,) = messages_of([str(CLIP), picture, video, image], "What?")
    assert turn["role"] == "user" and [part["type"] for part in turn["content"]] == [
        "video", "image", "video", "image", "text",
    ]  # fmt: skip
    assert messages_of(CLIP, "What?") == messages_of([CLIP], "What?") == messages_of((CLIP,), "What?")
    assert messages_of(None, "Hello.") == user({"type": "text", "text": "Hello."})
    assert messages_of(None, "Hello.", "Be brief.")[0] == {"role": "system", "content": "Be brief."}


def test_content_and_not_the_name_tells_an_image_from_a_video(tmp_path, picture):
    clip_by_another_name, image_by_another_name = tmp_path / "clip.jpg", tmp_path / "picture.mp4"
    shutil.copy(CLIP, clip_by_another_name)
    shutil.copy(picture, image_by_another_name)
    Image.open(picture).save(tmp_path / "picture.webp")
    Image.open(picture).save(tmp_path / "picture.jpg")
    Image.open(picture).save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (90, 60))])
    sources = [clip_by_another_name, image_by_another_name, *(tmp_path / f"picture.{end}" for end in ("webp", "jpg"))]
    (turn,) = messages_of([*sources, tmp_path / "moving.gif"], "?")
    assert [part["type"] for part in turn["content"][:-1]] == ["video", "image", "image", "image", "video"]


def test_everything_is_read_in_order_and_the_messages_given_stay(picture):
    content = [
        {"type": "text", "text": "one"},
        {"type": "video", "video": CLIP},
        {"type": "image", "image": picture},
        {"type": "video", "video": read_video(CLIP, frames=3)},
    ]
    given = [{"role": "system", "content": "two"}, *user(*content)]
    shares = []
    messages = read_messages(given, frames=2, progress=shares.append)
    assert parts_of(messages, "text") == ["two", "one"]
    assert [len(video.frames) for video in parts_of(messages, "video")] == [2, 2]
    assert [image.size for image in parts_of(messages, "image")] == [(90, 60)]
    assert given[1]["content"][1] == {"type": "video", "video": CLIP} and given[0]["content"] == "two"
    assert shares == sorted(shares) and shares[-1] == 1 and any(share < 1 / 3 for share in shares)


def test_frames_and_rate_go_for_each_video():
    videos = parts_of(read_messages(messages_of([CLIP, CLIP], "?"), fps=1), "video")
    assert [len(video.frames) for video in videos] == [len(read_video(CLIP, fps=1).frames)] * 2


def test_images_are_upright_and_rgb(tmp_path, picture):
    image = Image.open(picture)
    turned = image.getexif()
    turned[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.convert("LA").save(tmp_path / "grey.png")
    image.convert("P").save(tmp_path / "palette.png")
    paths = [tmp_path / name for name in ("turned.jpg", "grey.png", "palette.png")]
    upright, grey, palette = parts_of(read_messages(messages_of(paths, "?")), "image")
    assert upright.size == (60, 90) and {each.mode for each in (upright, grey, palette)} == {"RGB"}
    assert np.asarray(upright)[45, 50, 0] > 200 > np.asarray(upright)[45, 10, 0], "red comes to the right"
    assert palette.getpixel((5, 5)) == (255, 0, 0) and palette.getpixel((5, 55)) == (0, 0, 255)


@pytest.mark.parametrize("end", ["webp", "png", "gif"])
def test_an_animation_is_a_video_and_never_one_picture(tmp_path, end):
    path = tmp_path / f"moving.{end}"
    Image.new("RGB", (90, 60)).save(path, save_all=True, append_images=[Image.new("RGB", (90, 60), "red")])
    assert messages_of(path, "?")[0]["content"][0]["type"] == "video"
    for image in (path, Image.open(path)):
        with pytest.raises(BadRequest, match="is animated: give it as a video"):
            read_messages(user({"type": "image", "image": image}, TEXT))


def test_messages_that_are_opened_are_read_without_their_files(tmp_path, picture):
    clip = shutil.copy(CLIP, tmp_path / "clip.mp4")
    opened = open_messages(messages_of([clip, picture], "?"))
    clip.unlink(), picture.unlink()
    (video,), (image,) = (parts_of(read_messages(opened, frames=3), kind) for kind in ("video", "image"))
    assert len(video.frames) == 3 and image.size == (90, 60)


TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "there are no messages"),
        ("Hello.", "messages are a str"),
        (["Hello."], r"messages\[0\] is a str"),
        ([{"content": "Hello."}], r"messages\[0\] lacks 'role'"),
        ([{"role": "user"}], r"messages\[0\] lacks 'content'"),
        ([{"role": "tool", "content": "4"}, *user(TEXT)], r"messages\[0\] has the unknown role 'tool'"),
        ([{"role": ["user"], "content": "4"}], "unknown role"),
        ([{"role": "user", "content": None}], "a NoneType for its content"),
        (user(), "an empty content"),
        (user("Hello."), r"messages\[0\].content\[0\] is a str"),
        (user(TEXT, {"text": "Hello."}), r"messages\[0\].content\[1\] lacks 'type'"),
        (
            user({"type": "video_uri", "video_uri": {"url": "x"}}),
            r"unknown type of .*'video_uri': did you mean video_",
        ),
        (user({"type": "video", "video": CLIP, "url": "x"}), "both 'video' and 'url'"),
        (
            user({"type": "video", "video": CLIP, "max_pixel": 9}),
            "unknown key of .* 'max_pixel': did you mean max_",
        ),
        (user({"type": "image", "image": CLIP, "nframes": 9}), "unknown key of .* 'nframes'"),
        (user({"type": "text", "text": "What?", "fps": 9}), "unknown key of .* 'fps'"),
        (user({"type": "image_url", "image_url": {"uri": "x"}}), "unknown key of .* 'uri': did you mean url"),
        (user({"type": "video", "video": CLIP, "fps": 1, "nframes": 4}, TEXT), "both num_frames and fps"),
        (user({"type": "video", "video": CLIP, "nframes": 4, "num_frames": 4}, TEXT), "num_frames is given twice"),
        (user({"type": "video", "video": CLIP, "nframes": 0}, TEXT), "num_frames must be a whole number"),
        (user({"type": "video", "video": CLIP, "video_start": 99}, TEXT), "video_start is 99 s and demo.mp4 ends at"),
        (user({"type": "video", "video": CLIP, "video_start": 2, "video_end": 1}, TEXT), "video_end 1 is not after"),
        (user({"type": "video", "video": CLIP, "video_start": -1}, TEXT), "video_start must be seconds"),
        (user({"type": "video", "video": CLIP, "min_frames": 9, "max_frames": 8}, TEXT), "min_frames 9 is above"),
        (user({"type": "video", "video": CLIP, "resized_width": 56}, TEXT), "only one of resized_height"),
        (user({"type": ["video"]}), "unknown type"),
        (user({"type": "video"}, TEXT), "is of type 'video' and has no 'video'"),
        (user({"type": "text"}), "is of type 'text' and has no 'text'"),
        (user({"type": "image", "image": 7}, TEXT), "has a int for its image"),
        (user({"type": "video", "video": Image.new("RGB", (8, 8))}, TEXT), "has one image for its video"),
        (user({"type": "text", "text": None}), "has a NoneType for its text"),
        ([*user(TEXT), {"role": "assistant", "content": "That."}], "the last message is of the assistant"),
        ([{"role": "system", "content": "Be brief."}], "the last message is of the system"),
        (user({"type": "image", "image": "nowhere.png"}, TEXT), r"nowhere.png cannot be .* \(No such file"),
        (user({"type": "image", "image": CLIP}, TEXT), "demo.mp4 cannot be read as an image"),
        (user({"type": "video", "video": "nowhere.mp4"}, TEXT), "nowhere.mp4 does not exist"),
    ],
)
def test_malformed_messages_are_one_line(messages, words):
    with pytest.raises(HippoError, match=words) as error:
        read_messages(messages)
    assert "\n" not in str(error.value) and error.value.hint


def test_sources_that_cannot_be_used_are_one_line(tmp_path, picture):
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:100])
    for sources, words in [
        ([], "list of videos is empty"),
        (7, "a int is neither"),
        ([CLIP, {"a": 1}], "a dict is neither"),
        ([CLIP, "nowhere.mp4"], "nowhere.mp4 does not exist"),
        ([CLIP, tmp_path / "half.png"], "half.png cannot be read as an image"),
    ]:
        with pytest.raises(HippoError, match=words) as error:
            read_messages(messages_of(sources, "?"))
        assert "\n" not in str(error.value) and error.value.hint


def test_a_sampling_that_makes_no_sense_is_refused_without_a_video_too():
    with pytest.raises(HippoError, match="frames"):
        read_messages(user(TEXT), frames=0)
