"""Durations and moments as users write them, and the checks of both.

Every option that takes a duration accepts the same three forms, within the same limits. A module of its own
holds them, because options, settings, schedules, signals and the command line share them.
"""

import re
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from jsq.errors import BadOption

Duration: TypeAlias = float | timedelta | str
"""How users write a duration: seconds, a `timedelta`, or text such as `"250ms"`, `"5m"`, `"1h30m"`."""

MAX_DURATION = 366 * 86_400.0
"""The longest duration that any option accepts, in seconds: a year and a day."""

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
"""The units of a duration as text, in seconds."""

_part = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_duration = re.compile(rf"(?:{_part.pattern})+", re.ASCII)
_number = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def parse_duration(text: str) -> float | None:
    """Seconds, from `90`, `1.5`, `250ms`, `5m`, `1h30m`, `2d`; None for any other text."""
    if _number.fullmatch(text):
        return float(text)
    if not _duration.fullmatch(text):
        return None
    return sum(float(number) * UNITS[unit] for number, unit in _part.findall(text))


def seconds(field: str, value: Duration | None, *, least: float = 0.0) -> float | None:
    """A duration as seconds. Raises `BadOption` unless it lies between `least` and `MAX_DURATION`."""
    number: Any = value
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, str):
        number = parse_duration(value)
    if value is not None and not is_seconds(number, least):
        raise BadOption(field, value, duration_rule(least))
    return None if value is None else float(number)


def check_seconds(field: str, value: float | None, *, least: float = 0.0) -> None:
    """Raises `BadOption` for a number of seconds that is not between `least` and `MAX_DURATION`."""
    if value is not None and not is_seconds(value, least):
        raise BadOption(field, value, duration_rule(least))


def check_moment(field: str, moment: datetime | None) -> datetime | None:
    """Returns the moment. Raises `BadOption` for one without a time zone."""
    if moment is not None and (not isinstance(moment, datetime) or moment.utcoffset() is None):
        raise BadOption(field, moment, "must be a datetime with a time zone")
    return moment


def duration_rule(least: float) -> str:
    return f"must be {least:g} to {MAX_DURATION:.10g} seconds, a timedelta, or text such as 30s, 5m, 1h30m"


def is_seconds(value: object, least: float) -> bool:
    """Whether a value is a number from `least` to `MAX_DURATION`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and least <= value <= MAX_DURATION  # type: ignore[operator]  # it is a number
