"""The help page of a command: usage, arguments, options, and the common options under their own heading."""

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin

from typer.core import TyperCommand, TyperGroup

from jsq.cli.coercion import read_without_adapter

COMMON = "Common options"


class CommandPage(TyperCommand):
    """A command, with its help page."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for parameter in self.params:
            name_value(parameter)

    def get_help_option(self, ctx: Any) -> Any:
        return without_adapter(super().get_help_option(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = [self.options_metavar] if self.options_metavar else []
        return pieces + [usage(one) for one in self.get_params(ctx) if one.param_type_name == "argument"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], COMMON: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name = str(parameter.metavar) if parameter.param_type_name == "argument" else record[0]
                sections[section_of(parameter)].append((name, plain_defaults(parameter, record[1])))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class GroupPage(TyperGroup):
    """A group of commands, with its help page."""

    def get_help_option(self, ctx: Any) -> Any:
        return without_adapter(super().get_help_option(ctx))


def without_adapter(option: Any) -> Any:
    """The option --help, read without an adapter of typer."""
    if option is not None:
        read_without_adapter(option)
    return option


_range = re.compile(r"; [\d<=]*x[<>=]+\d+(?=\])| *\[[\d<=]*x[<>=]+\d+\]")
_seconds = re.compile(r"(?<=\[default: )([\d.]+)(?=\])")


def plain_defaults(parameter: Any, text: str) -> str:
    """A help text without the notation of a range, and with the unit of a default duration."""
    text = _range.sub("", text)
    if parameter.metavar == "DURATION":
        text = _seconds.sub(lambda found: f"{float(found[1]):g}s", text)
    return text


def section_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    common = getattr(parameter, "rich_help_panel", None) == COMMON or "--help" in parameter.opts
    return COMMON if common else "Options"


def name_value(parameter: Any) -> None:
    """Give a parameter without a metavar one: the name of the option, or N for numbers."""
    if parameter.metavar is None and not getattr(parameter, "is_flag", False):
        parameter.metavar = metavar(parameter)


def metavar(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) is list:
        [kind] = get_args(kind)
    if kind in (int, float):
        return "N"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return str(parameter.name).upper().replace("_", "-")


def usage(argument: Any) -> str:
    """An argument in the usage line: `ID`, `[ID]`, `ID...`, `[ID]...`."""
    several = "..." if argument.nargs == -1 else ""
    return f"{argument.metavar}{several}" if argument.required else f"[{argument.metavar}]{several}"


def command_pages(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command of a group, and of the groups in it, with its path."""
    for name, nested in group.commands.items():
        if getattr(nested, "commands", None):
            yield from command_pages(nested, (*path, name))
        else:
            yield (*path, name), nested
