"""Opening files and decoding what is in them. Another process may do it instead, see `hippo.video.process`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from PIL import Image

from hippo.video.clip import Clip
from hippo.video.files import Media
from hippo.video.frames import read_picture
from hippo.video.reader import Video, sample
from hippo.video.sampling import Sampling


class OpenClip(Protocol):
    """A clip whose header was read. path: the file. size: (width, height) of its frames in pixels, as declared."""

    @property
    def path(self) -> Media: ...
    @property
    def size(self) -> tuple[int, int]: ...

    def estimate(self, sampling: Sampling) -> int:
        """See `Clip`."""


class Decoder:
    """Opens and decodes in this process."""

    def clip(self, path: Media, sampling: Sampling) -> OpenClip:
        """Open a clip for a sampling. Raises MediaError."""
        return Clip(path, sampling)

    def sample(
        self,
        clip: OpenClip,
        sampling: Sampling,
        most: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Video:
        """The frames of a clip that this decoder opened; see `hippo.video.sample`. Raises HippoError."""
        assert isinstance(clip, Clip)
        return sample(clip, sampling, most=most, progress=progress)

    def picture(self, path: Media) -> Image.Image:
        """The picture in a file, upright, in RGB. Raises BadRequest or MediaError."""
        return read_picture(path)


@contextmanager
def in_this_process() -> Iterator[Decoder]:
    """A decoder for one request."""
    yield Decoder()
