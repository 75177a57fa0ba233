"""What a batch job is made of: one row a request, from folders, patterns, clips, and files of requests."""

from __future__ import annotations

import csv
import glob
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from hippo.errors import BadRequest, HippoError

VIDEOS = (
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
)
OURS = ("custom_id", "video", "prompt", "system", "messages")  # columns that a request may have
ANSWER = ("response", "error", "digest")  # what an answer adds to them
_SCHEMES = ("http", "https", "file", "data")
PLACES = ("video", "image", "video_url", "image_url", "url", "path")  # of a part that hold its source


@dataclass(frozen=True)
class Row:
    """One request.

    custom_id: its name in the job. video: a path or URL, several, or None. prompt, system: None is the job's own.
    messages: instead of these, whole turns. columns: all else that its line had. folder: where relative paths begin.
    """

    custom_id: str
    video: str | list[str] | None = None
    prompt: str | None = None
    system: str | None = None
    messages: list[Any] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """Of `OURS`, what the row has."""
        return {name: value for name in OURS if (value := getattr(self, name)) is not None}

    @property
    def subject(self) -> str:
        """The same for requests on the same videos."""
        return json.dumps(self.video if self.messages is None else list(_sources(self.messages)), default=str)

    def found(self, source: Any) -> Any:
        """A path beside the file that names it, where there is one; every other source as it is."""
        if isinstance(source, list):
            return [self.found(one) for one in source]
        if self.folder is None or not isinstance(source, str) or ":" in source:
            return source
        beside = self.folder / source
        return str(beside) if beside.exists() else source


def rows_of(sources: Sequence[str]) -> list[Row]:
    """The requests of a job, in order.

    sources: folders (all videos in them and in their folders), patterns such as "clips/*.mp4", clips and URLs, and
    files of requests: .jsonl, .csv, .parquet. Raises BadRequest.
    """
    rows: list[Row] = []
    for source in sources:
        path = Path(source)
        reader = _READERS.get(path.suffix.lower())
        if source.partition(":")[0].lower() in _SCHEMES:
            rows.append(Row(source, source))
        elif path.is_dir():
            files = sorted(str(file) for file in path.rglob("*") if _is_video(file))
            rows += _clips(files, f"{source} has no video in it")
        elif reader is not None:
            rows += _rows_in(path, reader)
        elif not path.exists() and glob.has_magic(source):
            rows += _clips(sorted(glob.glob(source, recursive=True)), f"{source} matches no file")
        elif not path.exists():
            raise BadRequest(f"{source} does not exist", "check the path")
        else:
            rows.append(Row(source, source))
    seen: set[str] = set()
    for row in rows:
        if row.custom_id in seen:
            raise BadRequest(f"two requests have the custom_id {row.custom_id!r}", "give each one of its own")
        seen.add(row.custom_id)
    return rows


def shard(rows: Sequence[Row], which: str) -> list[Row]:
    """Part i of n, "i/n" from 1/n to n/n; the parts of a job have no row in common. Raises BadRequest."""
    first, _, last = which.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise BadRequest(f"--shard {which} is not one of 1/N to N/N", "use --shard 2/8 for the second of eight parts")
    return list(rows[int(first) - 1 :: int(last)])


def _is_video(file: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.parts if part not in (".", ".."))
    return file.suffix.lower() in VIDEOS and not hidden and file.is_file()


def _clips(files: list[str], otherwise: str) -> list[Row]:
    if not files:
        raise BadRequest(otherwise, "name clips, or a folder with some")
    return [Row(file, file) for file in files]


def _rows_in(path: Path, read: Callable[[Path], Iterator[tuple[int, Any]]]) -> list[Row]:
    try:
        rows = [_row(path, number, line) for number, line in read(path)]
    except HippoError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadRequest(f"{path} cannot be read ({reason})", "check the path and the file") from None
    if not rows:
        raise BadRequest(f"{path} has no request in it", f"write one a line, with {', '.join(OURS[1:3])}")
    return rows


def _row(path: Path, number: int, line: Any) -> Row:
    where = f"line {number} of {path}"
    if not isinstance(line, dict):
        raise BadRequest(f"{where} is no object with columns", 'write {"video": "clip.mp4", "prompt": "..."}')
    for name in ANSWER:
        if name in line:
            raise BadRequest(f"{where} has a column {name!r}, which is the answer's", "give the column another name")
    given = {name: line[name] for name in OURS if line.get(name) not in (None, "")}
    if not given.keys() & {"video", "prompt", "messages"}:
        raise BadRequest(f"{where} has no video, no prompt and no messages", "name its column video")
    if "messages" in given and len(given.keys() - {"custom_id"}) > 1:
        raise BadRequest(f"{where} has messages and more", "put the video and the prompt into the messages")
    if isinstance(given.get("messages"), str):  # in a CSV
        given["messages"] = _loaded(given["messages"], f"messages in {where}")
    if isinstance(given.get("custom_id"), dict | list):
        raise BadRequest(f"custom_id in {where} is a {type(given['custom_id']).__name__}", "give a string or a number")
    given["custom_id"] = str(given.get("custom_id", f"{path.name}:{number}"))
    several = isinstance(given.get("video"), list) and all(isinstance(one, str) for one in given["video"])
    for name, kind in (("video", str), ("prompt", str), ("system", str), ("messages", list)):
        if name in given and not isinstance(given[name], kind) and not (name == "video" and several):
            raise BadRequest(f"{name} in {where} is a {type(given[name]).__name__}", f"give a {kind.__name__}")
    # JSON has no NaN, which is what pandas makes of a missing number.
    columns = {name: None if _is_no_number(value) else value for name, value in line.items() if name not in OURS}
    return Row(**given, columns=columns, folder=path.parent)


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not isfinite(value)


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _loaded(line, f"line {number} of {path}")


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for name, times in Counter(reader.fieldnames or ()).items():
            if times > 1:
                raise BadRequest(f"{path} has the column {name!r} {times} times", "give each column a name of its own")
        for line in reader:
            if None in line or None in line.values():
                what = "more" if None in line else "fewer"
                raise BadRequest(f"line {reader.line_num} of {path} has {what} fields than the first", "quote commas")
            yield reader.line_num, dict(line)


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise BadRequest(f"{path} needs pyarrow", "pip install 'hippo-video[parquet]', or give a .jsonl") from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for line in batch.to_pylist():
                    number += 1
                    yield number, line
    except ArrowException as error:
        raise BadRequest(f"{path} is no Parquet file ({str(error).splitlines()[0]})", "check the file") from None


_READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


def _loaded(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRequest(f"{where}: not JSON ({error})", "correct it, or take the line out") from None


def _sources(messages: list[Any]) -> Iterator[Any]:
    """What the parts of messages name."""
    for turn in messages:
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict):
                yield from (part[name] for name in PLACES if name in part)
