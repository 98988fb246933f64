"""Reads the values of options and arguments without the adapters of typer.

typer checks each value with a pydantic model that it builds when a command starts, which costs 0.14 s of CPU.
The parameters of jsq have few types, so this module reads their values. typer reads those of other types.
"""

from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

BOOLEANS = {"true": True, "1": True, "yes": True, "on": True} | {
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}

Reader = Callable[[Any], Any]


def read_without_adapters(command: Any) -> None:
    """Let this module read the parameters of a command, or of the commands of a group."""
    for parameter in command.params:
        read_without_adapter(parameter)
    for nested in getattr(command, "commands", {}).values():
        read_without_adapters(nested)


def read_without_adapter(parameter: Any) -> None:
    """Let this module read a parameter, if it knows the type."""
    descriptor = getattr(parameter, "type_descriptor", None)
    reader = reader_of(descriptor) if descriptor is not None else None
    if reader is not None:
        parameter._runtime_param = Coercion(reader)


class Coercion:
    """Converts the texts of a parameter to its value; typer calls it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        several = getattr(param, "multiple", False) or param.nargs == -1
        if value is None:
            return () if several else None
        try:
            return [self._reader(text) for text in value] if several else self._reader(value)
        except ValueError as error:
            raise typer.BadParameter(str(error), ctx=ctx, param=param) from None


def reader_of(descriptor: Any) -> Reader | None:
    """The function that reads one text as the type of a parameter; None for a type without one."""
    kind, info = descriptor.annotation, descriptor.parameter_info
    if get_origin(kind) is list:
        [kind] = get_args(kind)
    if info.parser is not None:
        return lambda text: info.parser(text) if isinstance(text, str) else text
    if kind in (int, float):
        return lambda text: read_number(kind, text, info.min, info.max)
    if kind is bool:
        return read_boolean
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lambda text: read_choice(kind, text)
    return {str: str, Path: Path}.get(kind)


def read_number(kind: type[int] | type[float], text: Any, least: float | None, most: float | None) -> float:
    """A number between two limits. Raises `ValueError`."""
    try:
        number = kind(text)
    except (ValueError, OverflowError):
        noun = "a whole number" if kind is int else "a number"
        raise ValueError(f"must be {noun}, got {text!r}") from None
    if (least is not None and not number >= least) or (most is not None and not number <= most):
        raise ValueError(f"must be {' '.join(limits(least, most))}, got {text}")
    return number


def limits(least: float | None, most: float | None) -> Iterator[str]:
    if least is not None:
        yield f"{least:,} or more" if most is None else f"{least:,}"
    if most is not None:
        yield f"{most:,} or less" if least is None else f"to {most:,}"


def read_boolean(text: Any) -> bool:
    """A flag, or the text of an environment variable for it. Raises `ValueError`."""
    if isinstance(text, bool):
        return text
    if str(text).strip().lower() not in BOOLEANS:
        raise ValueError(f"must be true or false, got {text!r}")
    return BOOLEANS[str(text).strip().lower()]


def read_choice(kind: type[Enum], text: Any) -> Enum:
    """A member of an enumeration by its value. Raises `ValueError`."""
    if isinstance(text, kind):
        return text
    for member in kind:
        if member.value == text:
            return member
    raise ValueError(f"must be {', '.join(str(member.value) for member in kind)}, got {text!r}")
