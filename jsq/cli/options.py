"""The options of every command, and groups of options that several commands share.

A parameter whose type is a dataclass is replaced by one option for each of its fields. The first parameter
of each command is `CommonOptions`, or a class derived from it.
"""

import dataclasses
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar

import typer

from jsq.cli.coercion import read_without_adapters
from jsq.cli.pages import COMMON, CommandPage, GroupPage
from jsq.cli.printing import Form, Printer, print_message

P = ParamSpec("P")
T = TypeVar("T")

Texts: TypeAlias = list[str] | None

JobId = Annotated[str, typer.Argument(metavar="ID", help="the job's id")]
QueueOfId = Annotated[
    str,
    typer.Option(
        "--queue", "-q", metavar="QUEUE", show_default=False, help="the job's queue, if you may read no other"
    ),
]


@dataclasses.dataclass(frozen=True, slots=True)
class CommonOptions:
    """The options of every command: the server to connect to, and the form of the output."""

    server: str
    namespace: str
    printer: Printer
    verbose: bool

    def report_connection(self, address: str, namespace: str) -> None:
        """With --verbose, print the server and the namespace of the command."""
        if self.verbose:
            print_message(f"connected to {address}, namespace {namespace}")


def common_options(
    server: Annotated[
        str,
        typer.Option(
            "--server",
            "-s",
            metavar="URL",
            help="the server [JSQ_URL, the nats context, localhost]",
            rich_help_panel=COMMON,
        ),
    ] = "",
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            metavar="NAME",
            help="the namespace on that server [JSQ_NAMESPACE, jsq]",
            rich_help_panel=COMMON,
        ),
    ] = "",
    output: Annotated[
        Form | None,
        typer.Option(
            "--output",
            "-o",
            help="the form of results [table on a terminal, else json]",
            rich_help_panel=COMMON,
        ),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="log to stderr, with the traceback of a failed job",
            rich_help_panel=COMMON,
        ),
    ] = False,
) -> tuple[str, str, Printer, bool]:
    """The values of the common options."""
    logging.basicConfig(level=logging.CRITICAL + 1)
    logging.getLogger("jsq").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    return server, namespace, Printer(output), verbose


COMMON_PARAMETERS = tuple(
    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for parameter in inspect.signature(common_options).parameters.values()
)


def command(function: Callable[..., T]) -> Callable[..., T]:
    """Give a command the common options, and the options of each group among its parameters."""
    first, *own = inspect.signature(function).parameters.values()
    groups = {parameter.name: parameter.annotation for parameter in own if is_group(parameter)}

    def run(**values: Any) -> T:
        common = first.annotation(
            *common_options(**{one.name: values.pop(one.name) for one in COMMON_PARAMETERS})
        )
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        return function(common, **values)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    parameters = [option for parameter in own for option in expanded(parameter)]
    run.__signature__ = inspect.Signature([*parameters, *COMMON_PARAMETERS])  # type: ignore[attr-defined]  # inspect reads it
    return run


def is_group(parameter: inspect.Parameter) -> bool:
    return dataclasses.is_dataclass(parameter.annotation)


def expanded(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The options of a parameter: the parameter itself, or the fields of its group."""
    if not is_group(parameter):
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in dataclasses.fields(parameter.annotation)
    ]


class Group(typer.Typer):
    """A group of commands. Without a command, it prints its help."""

    def __init__(self, purpose: str) -> None:
        super().__init__(cls=GroupPage, help=purpose, add_completion=False, rich_markup_mode=None)
        self.callback(invoke_without_command=True)(list_commands)

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Add a command, with the common options."""
        self.add_command(name, command(function))

    def add_command(self, name: str, function: Callable[..., Any]) -> None:
        """Add a function that has the common options already; see `command`."""
        self.command(name, cls=CommandPage)(function)

    def adds(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """A decorator that adds a command."""

        def decorate(function: Callable[..., T]) -> Callable[..., T]:
            self.add(name, function)
            return function

        return decorate


def list_commands(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def parsed(word: Any, name: str) -> Any:
    """The parser of a command, or of a group of them."""
    app = word
    if not isinstance(word, typer.Typer):
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, cls=CommandPage)(word)
    found = typer.main.get_command(app)
    read_without_adapters(found)
    return found
