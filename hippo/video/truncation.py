"""Telling a file that was cut off from its container's own account of its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

EBML_ID = b"\x1a\x45\xdf\xa3"
SEGMENT_ID = b"\x18\x53\x80\x67"
PACK_START = b"\x00\x00\x01\xba"
PROGRAM_END = b"\x00\x00\x01\xb9"
TAIL = 1 << 18
MP4_FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"})


def is_cut_off(path: Path) -> bool:
    """Whether an mp4/mov, Matroska/WebM, AVI or MPEG program stream file ends before its headers say.

    Other formats do not record any size: always False for them.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[:4] == EBML_ID:
            return _matroska_end(file) > size
        if head[:4] == b"RIFF":
            return _last_end(file, size, _riff_chunk) > size
        if head[:4] == PACK_START:
            return _program_end(file, size) > size
        if head[4:8] in MP4_FIRST_BOXES:
            return _last_end(file, size, _mp4_box) > size
    return False


def has_mp4_header(path: Path) -> bool:
    """Whether a file starts as an mp4 does."""
    with path.open("rb") as file:
        return file.read(8)[4:] in MP4_FIRST_BOXES


def _last_end(file: BinaryIO, size: int, read_length: Callable[[BinaryIO, int], int | None]) -> int:
    """Offset at which the last top-level chunk of a file ends, beyond `size` if it is cut off."""
    end = 0
    while end < size:
        file.seek(end)
        length = read_length(file, size - end)
        if length is None:
            break
        end += length
    return end


def _mp4_box(file: BinaryIO, left: int) -> int | None:
    """Bytes of the box at the file's position; None if there is no box, only padding."""
    head = file.read(16)
    length = int.from_bytes(head[:4], "big")
    if len(head) < 8 or not head[4:8].isalnum():
        return None
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    elif length == 0:
        length = left
    return length if length >= 8 else None


def _riff_chunk(file: BinaryIO, left: int) -> int | None:
    """Bytes of the RIFF chunk at the file's position; None if there is none or it was never closed."""
    head = file.read(8)
    length = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or length == 0:
        return None
    return length + 8


def _matroska_end(file: BinaryIO) -> int:
    """Offset at which a Matroska file's segment ends; 0 if it does not say (a live recording)."""
    file.seek(len(EBML_ID))
    header = _ebml_size(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != SEGMENT_ID:
        return 0
    segment = _ebml_size(file)
    return 0 if segment is None else file.tell() + segment


def _ebml_size(file: BinaryIO) -> int | None:
    """The variable-length size at the file's position; None if it is unknown or missing."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra), "big")
    return None if value == (1 << 7 * (extra + 1)) - 1 else value


def _program_end(file: BinaryIO, size: int) -> int:
    """Offset at which the last packet of an MPEG program stream ends; 0 if that cannot be told."""
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    position = tail.rfind(PACK_START)
    while 0 <= position < len(tail):
        length = _program_packet(tail[position : position + 14])
        if not length:
            return 0
        position += length
    return size - len(tail) + position if position >= 0 else 0


def _program_packet(head: bytes) -> int:
    """Bytes of the pack header, packet or end mark that starts so; 0 if it is none of these."""
    if head[:4] == PROGRAM_END:
        return 4
    if head[:4] == PACK_START:
        # MPEG-2 packs start with the bits 01 and end with up to seven stuffing bytes.
        is_mpeg2 = len(head) > 4 and head[4] >> 6 == 1
        return 14 + (head[13] & 7 if len(head) > 13 else 0) if is_mpeg2 else 12
    if head[:3] != b"\x00\x00\x01" or len(head) < 6:
        return 0
    return 6 + int.from_bytes(head[4:6], "big")
