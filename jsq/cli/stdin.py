"""Reads standard input by lines in a thread, checks each line, and writes refused lines to a file."""

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jsq.cli.parsing import read_line
from jsq.cli.submission import Submission
from jsq.errors import BadArguments, UsageError

STDIN = "standard input"

PIECE = 2**20
AHEAD = 4
"""Bytes that are read at once, and pieces that are read ahead."""

LONGEST_LINE = 64 * 2**20


@dataclass(frozen=True, slots=True)
class InputLine:
    """One line that was read.

    `line` counts the lines of this input. `number` is the same, or the number of a line of a rejects file in
    its first input. `id` is the id of the job, if the line or a prefix gives one. `wrong` is the error of a
    line that is no job.
    """

    line: int
    number: int
    raw: bytes
    packed: bytes = b""
    id: str = ""
    wrong: UsageError | None = None


def checked(submission: Submission, line: int, raw: bytes, id_prefix: str) -> InputLine:
    """A line with its encoded arguments or its error. With an `id_prefix`, its id is prefix and number."""
    number, id = line, ""
    wrong: UsageError
    try:
        call, number, id = read_line(raw, STDIN, line)
        packed = submission.pack(call)
    except BadArguments as error:
        wrong = BadArguments(f"{STDIN}: line {line}: {error}")
    except UsageError as error:
        wrong = error
    else:
        return InputLine(line, number, raw, packed, id or prefixed_id(id_prefix, number))
    return InputLine(line, number, raw, id=id or prefixed_id(id_prefix, number), wrong=wrong)


def prefixed_id(prefix: str, number: int) -> str:
    """The id of the job of a line, if there is a prefix."""
    return f"{prefix}-{number}" if prefix else ""


class Source:
    """Reads a file descriptor in pieces of whole lines.

    A thread reads, because a read may never return and the event loop has to go on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._ahead = threading.Semaphore(AHEAD)
        threading.Thread(target=self._read, name="jsq-stdin", daemon=True).start()

    async def pieces(self, stop: asyncio.Event) -> AsyncIterator[list[bytes]]:
        """The lines, some at a time, to the end of the input or until `stop` is set."""
        partial: list[bytes] = []
        while (piece := await self._next(stop)) is not None:
            head, newline, rest = piece.rpartition(b"\n")
            partial.append(head if newline else rest)
            if sum(map(len, partial)) > LONGEST_LINE:
                raise UsageError(f"{STDIN}: a line is longer than {LONGEST_LINE:,} bytes")
            if newline:
                yield b"".join(partial).split(b"\n")
                partial = [rest]
        if any(partial) and not stop.is_set():
            yield [b"".join(partial)]

    async def _next(self, stop: asyncio.Event) -> bytes | None:
        reading = asyncio.ensure_future(self._arrived.get())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return None
        finally:
            reading.cancel()
            stopping.cancel()
        self._ahead.release()
        found = reading.result()
        if isinstance(found, OSError):
            raise UsageError(f"{STDIN} cannot be read: {found.strerror}")
        return found or None

    def _read(self) -> None:
        """Read to the end. `sys.stdin` is not used: its lock would be held while the program ends."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            while True:
                self._ahead.acquire()
                try:
                    piece: bytes | OSError = os.read(self._descriptor, PIECE)
                except OSError as error:
                    piece = error
                self._loop.call_soon_threadsafe(self._arrived.put_nowait, piece)
                if not isinstance(piece, bytes) or not piece:
                    return


class Rejects:
    """The file of the lines that were not stored. Each of its lines can be submitted again.

    `{"@line": 17, "@error": "...", "@arguments": {...}}`, with the `@id` of a job that may have been stored.
    A line that is not JSON has `@text` in place of `@arguments`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(0), Path(path).stat()):
                raise UsageError(f"--rejects {path}: this file is the input; name another one")
        try:
            self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 -- closed at `__exit__`
        except OSError as error:
            raise UsageError(f"--rejects {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, line: InputLine, error: BaseException, id: str = "") -> None:
        self.count += 1
        reason = {"@line": line.number, "@error": str(error) or type(error).__name__}
        known = {"@id": id or line.id} if id or line.id else {}
        self._file.write(json.dumps(reason | known | line_arguments(line.raw)) + "\n")
        self._file.flush()


def line_arguments(raw: bytes) -> dict[str, Any]:
    """The arguments or the text of a line, as a line of a rejects file has them."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {"@text": raw.decode(errors="replace").strip()}
    if isinstance(found, dict) and "@line" in found:
        return {name: found[name] for name in ("@arguments", "@text") if name in found}
    return {"@arguments": found} if isinstance(found, (dict, list)) else {"@text": raw.decode().strip()}
