"""Log lines: one for each change of a job, as text or as JSON, without control characters."""

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import time
from typing import Any, Literal, TextIO

from jsq.executors.labels import current_labels
from jsq.model.outcome import MAX_TRACEBACK_LENGTH

Format = Literal["text", "json"]

MAX_WAITING_LINES = 1_000
"""Lines that may wait for the end of a turn of the event loop."""

LEVEL_COLORS = {
    logging.DEBUG: 2,
    logging.INFO: 32,
    logging.WARNING: 33,
    logging.ERROR: 31,
    logging.CRITICAL: 31,
}
"""The ANSI code of each level."""

OWN_LOGGERS = "jsq."
"""How the names of the loggers of jsq start. Their lines choose their fields themselves."""

_formatter = logging.Formatter()
_empty_record = vars(logging.makeLogRecord({}))
_first_extra = len(_empty_record)
_record_fields = frozenset(_empty_record) | {"message", "asctime", "taskName"}


def log_to_stderr(form: Format, level: str, *, colors: bool = False) -> None:
    """Write the log records of jsq and of tasks to stderr, one line each."""
    handler = LineHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines(colors=colors))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in ("nats", "watchfiles"):
        logging.getLogger(library).setLevel("WARNING")


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to stderr: those of one turn of the event loop together at its end, warnings at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # the loop that will flush

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(OWN_LOGGERS):
            add_labels(record)
        try:
            self._lines.append(self.format(record) + self.terminator)
        except Exception:  # a record may hold any value
            self.handleError(record)
            return
        if record.levelno >= logging.WARNING or not self._defer():
            self.flush()

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            text, self._lines, self._loop = "".join(self._lines), [], None
            if text and self.stream is not None:
                # A worker must not stop because the reader of its log has gone (a broken pipe).
                with contextlib.suppress(OSError, ValueError):
                    self.stream.write(text)
                    self.stream.flush()

    def _defer(self) -> bool:
        """Write the lines at the end of this turn of the event loop, if this thread runs one."""
        if self._loop is not None and not self._loop.is_closed():
            return len(self._lines) < MAX_WAITING_LINES
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._loop.call_soon(self.flush)
        return True


class JobLabels(logging.Filter):
    """Adds the fields `job`, `task` and `attempt` to the records that a task logs, for handlers of any kind.

    A record of a batch task has `task` and `jobs`, the number of its jobs. The handler that `jsq worker`
    installs adds the fields by itself.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(OWN_LOGGERS):
            add_labels(record)
        return True


def add_labels(record: logging.LogRecord) -> None:
    """Add the labels of the running job to a record. The extras of the record are kept."""
    for name, value in current_labels().items():
        vars(record).setdefault(name, value)


def extras(record: logging.LogRecord) -> list[tuple[str, Any]]:
    """The extras of a record: the attributes that only this record has."""
    return [
        item
        for item in itertools.islice(vars(record).items(), _first_extra, None)
        if item[0] not in _record_fields
    ]


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO job started job=... task=...`; with `colors`, the level is colored."""

    def __init__(self, *, colors: bool = False) -> None:
        super().__init__()
        self._codes = LEVEL_COLORS if colors else {}

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join([f"{name}={format_value(value)}" for name, value in extras(record)])
        code = self._codes.get(record.levelno)
        level = record.levelname if code is None else f"\x1b[{code}m{record.levelname}\x1b[0m"
        head = f"{format_moment(record)} {level} {printable(record.getMessage())}"
        line = f"{head} {fields}" if fields else head
        return "\n".join([line, *(f"  {printable(part)}" for part in traceback_of(record).splitlines())])


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and the extras of the record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": format_moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **dict(extras(record)),
        }
        if trace := traceback_of(record):
            line["traceback"] = trace
        text = json.dumps(line, default=str, ensure_ascii=False)
        return text if text.isprintable() else json.dumps(line, default=str)


def traceback_of(record: logging.LogRecord) -> str:
    """The traceback of a record, with causes, groups and notes; if it is too long, its end.

    It is empty if the record has none, or only the exception that its extra `error` shows.
    """
    if record.exc_info:
        text = _formatter.formatException(record.exc_info)
    else:
        text = (record.exc_text or "").rstrip("\n")
    if "\n" not in text and hasattr(record, "error"):
        return ""
    return text if len(text) <= MAX_TRACEBACK_LENGTH else "...\n" + text[-MAX_TRACEBACK_LENGTH:]


def format_moment(record: logging.LogRecord) -> str:
    second = int(record.created)
    return f"{format_second(second)}.{int((record.created - second) * 1000):03}Z"


@functools.lru_cache(4)
def format_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def format_value(value: object) -> str:
    kind = type(value)
    if kind is int:
        return str(value)
    if isinstance(value, float):
        return str(round(value, 3) if abs(value) >= 1 else value)
    text = str(value)
    if text.isalnum():
        return text
    if text and " " not in text and '"' not in text:
        return printable(text)
    quoted = json.dumps(text, ensure_ascii=False)  # JSON escapes line feeds too: with `printable`, twice
    return quoted if quoted.isprintable() else "".join(map(escape_unprintable, quoted))


def escape_unprintable(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def printable(text: str) -> str:
    """Text without characters that move the cursor or change the reading direction of a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
