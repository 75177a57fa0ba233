"""The file of answers: one line a request that has ended, and nothing twice or lost after a kill at any moment."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from hippo.errors import BadRequest, Busy, HippoError

_BEGIN = b'{"custom_id": '  # of every line


class Answers:
    """An open file of answers; close it, or use it as a context manager. One process at a time can have it.

    path: made if it is not there. digests: of the job's requests, by custom_id; a line with another digest is another
    job's. retry_failed: drop the lines of failed requests. done: custom_ids that have their line. failures: of these,
    the failed ones, counted by the kind of error. Raises BadRequest or Busy.
    """

    def __init__(self, path: Path, digests: Mapping[str, str], retry_failed: bool = False) -> None:
        self.path, self._digests = path, digests
        self.done: set[str] = set()
        self.failures: Counter[str] = Counter()
        self._file = _locked(path)
        try:
            self._read()
            if retry_failed and self.failures:
                self._drop_failed()
        except BaseException:
            self._file.close()
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Write the line of a request that has ended; it is in the file when this returns. Raises HippoError."""
        text = json.dumps(line, ensure_ascii=False, default=str) + "\n"
        data = memoryview(text.encode(errors="backslashreplace"))  # file names need not be UTF-8
        begin = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(begin)
            cause = f"{self.path} cannot be written ({error.strerror})"
            raise HippoError(cause, "make room and run the same command again; it goes on from there") from None
        self._note(line)

    def close(self) -> None:
        """Let another process have the file. Without any line it is removed."""
        if not self._file.closed:
            if not os.fstat(self._file.fileno()).st_size:
                self.path.unlink(missing_ok=True)
            self._file.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, line: Mapping[str, Any]) -> None:
        self.done.add(line["custom_id"])
        if line["error"] is not None:
            self.failures[line["error"]["code"]] += 1

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Where each line begins, and the line."""
        self._file.seek(0)
        begin = 0
        with open(os.dup(self._file.fileno()), "rb") as file:
            for line in file:
                yield begin, line
                begin += len(line)

    def _read(self) -> None:
        known = others = 0
        for number, (begin, line) in enumerate(self._lines(), 1):
            if not line.endswith(b"\n") and (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                self._file.truncate(begin)  # a kill has torn it
                break
            answer = _answer(line)
            if answer is None:
                cause = f"line {number} of {self.path} is no answer of a batch job"
                raise BadRequest(cause, "choose another --out")
            if answer["custom_id"] in self.done:
                raise BadRequest(f"{self.path} has {answer['custom_id']!r} twice", "take one of the lines out")
            digest = self._digests.get(answer["custom_id"])
            if digest is None:
                others += 1  # a clip that has since been moved away, for example
                continue
            if digest != answer["digest"]:
                cause = f"{self.path} is of another job: it has {answer['custom_id']!r} with other options or words"
                raise BadRequest(cause, "choose another --out, or run with the options of that job")
            known += 1
            self._note(answer)
        if others and not known:
            raise BadRequest(f"{self.path} is of another job: it has none of these requests", "choose another --out")

    def _drop_failed(self) -> None:
        """The whole file is replaced at once, so that a kill leaves the old or the new one."""
        path = self.path.resolve()
        beside = path.with_name(path.name + ".new")
        file = _locked(beside)
        try:
            file.truncate(0)
            for _, line in self._lines():
                answer = _answer(line)
                if answer is not None and (answer["error"] is None or answer["custom_id"] not in self._digests):
                    file.write(line)
            os.replace(beside, path)
        except OSError as error:
            file.close()
            beside.unlink(missing_ok=True)
            raise HippoError(f"{beside} cannot be written ({error.strerror})", "make room") from None
        self._file.close()
        self._file = file
        self.done, self.failures = set(), Counter()
        self._read()


def _locked(path: Path) -> FileIO:
    """The file, not buffered, for this process alone."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise BadRequest(f"{path} cannot be written ({error.strerror})", "choose another --out") from None
    file = open(number, "r+b", buffering=0)  # noqa: SIM115 (the caller closes it)
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadRequest(f"{path} is no ordinary file", "choose another --out")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Busy(f"{path} is written by another process", "give each shard its own --out") from None
    except BaseException:
        file.close()
        raise
    return file


def _answer(line: bytes) -> dict[str, Any] | None:
    """A line as `append` wrote it; None for all others."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    known = isinstance(answer, dict) and answer.keys() >= {"custom_id", "response", "error", "digest"}
    return answer if known else None
