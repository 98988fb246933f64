"""Reads the texts that a user typed. Each `UsageError` names the place and shows a correct form."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jsq.errors import UsageError, shorten
from jsq.model.durations import parse_duration
from jsq.model.job import check_id

REFUSED = frozenset({"@line", "@error", "@id", "@arguments", "@text"})
"""The names in a line of a rejects file, which describes another line that was refused."""

NO_WHEN = "neither a duration (90, 5m, 2d) nor a moment with a time zone (2030-12-31T18:00Z)"


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one job."""

    args: Sequence[Any] = ()
    named: dict[str, Any] = field(default_factory=dict)


def read_duration(text: str) -> float:
    """Seconds, from `90`, `1.5`, `5m`, `1h30m`, `2d`."""
    found = parse_duration(text)
    if found is None:
        raise UsageError(f"{shown(text)} is not a duration: write seconds, or 5m, 1h30m, 2d")
    return found


def read_moment(text: str) -> datetime:
    """A moment, from ISO 8601 with a time zone."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise UsageError(
        f"{shown(text)} is not a moment with a time zone: write 2030-12-31T18:00Z, or +01:00 for Z"
    )


def read_when(text: str) -> float | datetime:
    """A duration in seconds, or a moment."""
    found = parse_duration(text)
    if found is not None:
        return found
    try:
        return read_moment(text)
    except UsageError:
        raise UsageError(f"{shown(text)} is {NO_WHEN}") from None


def read_since(text: str, now: datetime) -> datetime:
    """A moment in the past, from a moment or from a duration before now."""
    when = read_when(text)
    if isinstance(when, datetime):
        return when
    try:
        return now - timedelta(seconds=when)
    except OverflowError:
        raise UsageError(f"{shown(text)} ago is before the first year of the calendar") from None


def read_pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Pairs `name=value`. Raises `UsageError` for a name that is given twice."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{option} {shown(text)}: write name=value")
        if name in pairs:
            raise UsageError(f"{option} {shown(name)} is given twice")
        pairs[name] = value
    return pairs


def read_deadline(text: str | None) -> float | datetime | None:
    """A moment, or a duration from now on in seconds."""
    return None if text is None else read_when(text)


def read_backoff(text: str | None) -> Any:
    """The name of a backoff, or a list of waits: `1,5,30` or `10s,1m,1h`."""
    if text is not None and text[:1].isdigit():
        return [read_duration(part.strip()) for part in text.split(",")]
    return text


def read_value(text: str) -> Any:
    """The JSON value of the text if it is JSON, else the text itself."""
    try:
        return strict_json(text)
    except RecursionError:
        raise UsageError(f"argument {shown(text)}: nested too deep") from None
    except ValueError:
        return text


def read_call(text: str, place: str, *, line: int = 1) -> Call:
    """Arguments as JSON: an object of named ones, or a list of positional ones. The text begins at `line`."""
    try:
        found = strict_json(text)
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1} column {error.colno}"
        raise UsageError(f"{place}: {at}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise UsageError(f"{place}: line {line}: nested too deep") from error
    except ValueError as error:
        raise UsageError(f"{place}: line {line}: not JSON: {error}") from error
    if isinstance(found, dict):
        return Call(named=found)
    if isinstance(found, list):
        return Call(args=found)
    raise UsageError(f"{place}: line {line}: write an object of named arguments, or a list")


def read_json_option(text: str) -> Call:
    """The arguments that `--json` gives: JSON, or `@FILE` for a file of JSON."""
    if not text.startswith("@"):
        return read_call(text, "--json")
    path = text[1:]
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--json {shown(text)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--json {shown(text)}: not UTF-8") from error
    return read_call(content, f"--json {path}")


def read_line(raw: bytes, place: str, line: int) -> tuple[Call, int, str]:
    """The arguments of one of many jobs, the number of its line and its id.

    A line of a rejects file has the number and the id of the line that was refused:
    `{"@line": 17, "@error": "...", "@id": "...", "@arguments": {...}}`; see `jsq.cli.stdin`.
    """
    call = read_call(utf8(raw, place, line), place, line=line)
    fields = call.named
    if "@line" not in fields or not fields.keys() <= REFUSED:
        return call, line, ""
    number, id = fields["@line"], fields.get("@id", "")
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(id, str):
        raise UsageError(f"{place}: line {line}: @line takes a number, @id a text")
    text = fields.get("@text", "")
    if "@arguments" in fields or not isinstance(text, str):
        text = json.dumps(fields.get("@arguments"))
    return read_call(text, place, line=line), number, check_id(id) if id else ""


def utf8(raw: bytes, place: str, line: int) -> str:
    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: line {line} column {error.start + 1}: not UTF-8") from error


def strict_json(text: str) -> Any:
    """JSON by the standard: no NaN, and no number that would silently become infinite."""
    return json.loads(text, parse_constant=refuse, parse_float=finite)


def refuse(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON value")


def finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shown(text)} is too large a number")
    return number


def shown(text: str) -> str:
    return shorten(repr(text), 60)


def merge_arguments(id: str, held: Any, pairs: Mapping[str, str]) -> dict[str, Any]:
    """The named arguments of a job with some changed. Raises `UsageError` if it has positional ones."""
    if isinstance(held, list) and len(held) == 2 and not held[0]:
        held = held[1]  # the form of arguments that were submitted by the task's name
    if not isinstance(held, dict):
        raise UsageError(f"job {id} has positional arguments: give all of them with --json")
    return held | {name: read_value(value) for name, value in pairs.items()}
