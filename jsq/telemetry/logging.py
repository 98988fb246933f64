"""Log lines: one for each turn of a job's life, as text or as JSON, inert in a terminal."""

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import time
from typing import Any, Literal, TextIO

Format = Literal["text", "json"]

MAX_WAITING_LINES = 1_000
"""Lines that may wait for the end of a turn."""

_empty_record = vars(logging.makeLogRecord({}))
_first_extra = len(_empty_record)
_record_fields = frozenset(_empty_record) | {"message", "asctime", "taskName"}


def log_to_stderr(form: Format, level: str) -> None:
    """Write our log lines, and those of tasks, to stderr: one line each."""
    handler = LineHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("nats").setLevel("WARNING")


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to stderr: those of one turn of the loop together at its end, a warning at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that will flush

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record) + self.terminator)
        except Exception:  # what a record holds is the caller's
            self.handleError(record)
            return
        if record.levelno >= logging.WARNING or not self._put_off():
            self.flush()

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            text, self._lines, self._loop = "".join(self._lines), [], None
            if text and self.stream is not None:
                # A reader of ours that has gone (a broken pipe) is no reason to stop working.
                with contextlib.suppress(OSError, ValueError):
                    self.stream.write(text)
                    self.stream.flush()

    def _put_off(self) -> bool:
        """Have the lines written at the end of this turn of the loop, if there is a loop here."""
        if self._loop is not None and not self._loop.is_closed():
            return len(self._lines) < MAX_WAITING_LINES
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._loop.call_soon(self.flush)
        return True


def extras(record: logging.LogRecord) -> list[tuple[str, Any]]:
    """What a line is about: it stands behind what every record has."""
    return [
        item
        for item in itertools.islice(vars(record).items(), _first_extra, None)
        if item[0] not in _record_fields
    ]


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO job started job=... task=...`"""

    def format(self, record: logging.LogRecord) -> str:
        told = " ".join([f"{name}={format_value(value)}" for name, value in extras(record)])
        head = f"{format_moment(record)} {record.levelname} {printable(record.getMessage())}"
        line = f"{head} {told}" if told else head
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `message`, and what the line is about."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": format_moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **dict(extras(record)),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def format_moment(record: logging.LogRecord) -> str:
    whole = int(record.created)
    return f"{format_second(whole)}.{int((record.created - whole) * 1000):03}Z"


@functools.lru_cache(4)
def format_second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def format_value(value: object) -> str:
    kind = type(value)
    if kind is int or kind is float:
        return str(value)
    text = str(value)
    if text.isalnum():
        return text
    text = printable(text)
    return json.dumps(text) if " " in text or '"' in text or not text else text


def printable(text: str) -> str:
    """Text without what moves a terminal's cursor or reading direction."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
