"""Frames that a caller has in memory: arrays, tensors and lists of pictures, as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hippo.errors import BadRequest, MediaError
from hippo.video.files import Media, Stored, is_animated, readable, require_size

SHAPES = "give (T, H, W, C) or (T, C, H, W) with 1, 3 or 4 channels"
CHANNELS = (1, 3, 4)
_NUMBERS = ("I", "F")  # modes of PIL whose values may have any range


def as_frames(source: Any, name: str = "the video") -> np.ndarray:
    """Frames as (T, H, W, 3) uint8 RGB. An array that is that already is not copied.

    source: a numpy array or torch tensor (T, H, W, C) or (T, C, H, W), or a list of PIL images, arrays (H, W, C) or
    (H, W), or tensors, all of one size. Values are uint8, whole numbers in 0 to 255, or floats in 0 to 1 or 0 to 255.
    Alpha is left out. Raises BadRequest, or MediaError for frames that are too large.
    """
    if isinstance(source, (list, tuple)):
        source = _stacked(source, name)
    array = _numpy(source, name)
    if array.ndim != 4:
        raise BadRequest(f"{name} has the shape {array.shape}", SHAPES)
    if array.shape[-1] not in CHANNELS and array.shape[1] in CHANNELS:
        array = array.transpose(0, 2, 3, 1)
    if array.shape[-1] not in CHANNELS:
        raise BadRequest(f"{name} has the shape {array.shape}", SHAPES)
    if not array.size:
        raise BadRequest(f"{name} has the shape {array.shape}, so no pixels", "give at least one frame")
    require_size(name, array.shape[2], array.shape[1])
    scale = _scale(array, name)
    array = array[..., :3]
    if array.dtype == np.uint8 and array.shape[-1] == 3:
        return np.ascontiguousarray(array)
    frames = np.empty((*array.shape[:3], 3), np.uint8)
    for frame, given in zip(frames, array, strict=True):  # one at a time: all of them in float need much memory
        frame[:] = given if array.dtype.kind in "ui" else np.rint(given.astype(np.float32) * scale)
    return frames


def picture(image: Image.Image) -> np.ndarray:
    """A PIL image upright, (H, W, 3) uint8 RGB. Raises BadRequest for values that cannot be scaled to bytes."""
    image = ImageOps.exif_transpose(image)
    if image.mode in _NUMBERS:
        return as_frames([image], "an image")[0]
    if image.mode.startswith("I;16"):  # PIL would cut its values off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def read_picture(path: Media) -> Image.Image:
    """The picture in a file, upright, in RGB; of a file that holds several pages or views, the first. Raises BadRequest
    or MediaError."""
    name = path.name if isinstance(path, Stored) else str(path)
    try:
        with Image.open(readable(path)) as image:
            return as_picture(image, name)
    except (BadRequest, MediaError, MemoryError):
        raise
    except Exception as error:  # damaged pictures fail in many ways
        known = not isinstance(error, UnidentifiedImageError)
        reason = (getattr(error, "strerror", None) or " ".join(str(error).split())) if known else "an unknown format"
        raise MediaError(f"{name} cannot be read as an image ({reason})", "give a jpg, png or webp file") from None


def as_picture(image: Image.Image, name: str = "the image") -> Image.Image:
    """A PIL image upright, in RGB. Raises BadRequest or MediaError."""
    if is_animated(image):
        raise BadRequest(f"{name} is animated", "give it as a video, or save one picture of it")
    require_size(name, *image.size)
    return Image.fromarray(picture(image)) if image.mode != "RGB" or image.getexif() else image.convert("RGB")


def is_array(source: Any) -> bool:
    """Whether this is a numpy array or a torch tensor. Importing torch is left to whoever has a tensor."""
    return isinstance(source, np.ndarray) or type(source).__module__.partition(".")[0] == "torch"


def _stacked(pictures: Sequence[Any], name: str) -> np.ndarray:
    if not pictures:
        raise BadRequest(f"{name} is an empty list", "give at least one frame")
    arrays: list[np.ndarray] = []
    for index, each in enumerate(pictures):
        if isinstance(each, Image.Image):
            require_size(name, *each.size)
            # The range of numbers is that of all frames together.
            numbers = each.mode in _NUMBERS
            array = np.asarray(ImageOps.exif_transpose(each))[..., None] if numbers else picture(each)
        else:
            array = _numpy(each, f"frame {index} of {name}")
            array = array[..., None] if array.ndim == 2 else array
        if arrays and (array.shape != arrays[0].shape or array.dtype != arrays[0].dtype):
            cause = f"{name} mixes frames: {arrays[0].shape} {arrays[0].dtype}, then {array.shape} {array.dtype}"
            raise BadRequest(cause, "give all frames the same size and type")
        arrays.append(array)
    return np.stack(arrays)


def _numpy(source: Any, name: str) -> np.ndarray:
    if not is_array(source):
        raise BadRequest(f"{name} is a {type(source).__name__} and not frames", "give an array, a tensor or PIL images")
    if not isinstance(source, np.ndarray):
        source = source.detach().cpu()
        source = source.float().numpy() if source.is_floating_point() else source.numpy()
    if source.dtype.kind not in "uif":
        raise BadRequest(f"{name} has values of type {source.dtype}", "give uint8, or floats in 0 to 1")
    return source


def _scale(array: np.ndarray, name: str) -> float:
    """What brings the values to 0 to 255. Raises BadRequest for values outside."""
    if array.dtype == np.uint8:
        return 1.0
    low, high = float(array.min()), float(array.max())
    if not low >= 0 or not high <= 255:  # NaN too
        raise BadRequest(f"{name} has values from {low:g} to {high:g}", "give uint8, or floats in 0 to 1 or 0 to 255")
    return 255.0 if high <= 1 and array.dtype.kind == "f" else 1.0
