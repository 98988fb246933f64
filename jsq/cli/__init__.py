"""The command line: each command parses, calls one method of the client, and prints.

The module of a command's name has a function, or a group of commands, of that name. It is imported when the
command is used, so `jsq --help` loads typer and nothing else.
"""

import gc
import importlib
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import jsq
from jsq.cli.coercion import read_without_adapters
from jsq.cli.errors import guarded, leave
from jsq.cli.options import parsed
from jsq.cli.pages import GroupPage

SECTIONS = {
    "Develop": {
        "dev": "Start a server, and a worker that restarts when the code changes.",
        "demo": "Count the words of real files, and kill a worker half way.",
        "bench": "Measure jsq on this machine, beside a baseline.",
        "guide": "List, show and search the pages of the guide.",
    },
    "Run": {
        "worker": "Run the jobs of an app's queues.",
        "submit": "Submit a job, or one for each line of stdin.",
    },
    "Inspect": {
        "job": "List, get and await jobs; cancel, retry or remove them.",
        "queue": "List queues, count their jobs; purge, pause or update them.",
        "schedule": "List, add, remove, pause and run schedules.",
        "workflow": "List workflows, show their nodes; cancel and retry them.",
        "dead": "List dead letters, show one; retry or purge them.",
        "events": "Print the events of jobs as they happen.",
        "worker ls": "List the live workers, with their queues and tasks.",
    },
    "Operate": {
        "provision": "Create on the server what an app declares.",
        "doctor": "Check the server and report problems.",
        "sweep": "Find inconsistencies on the server, and repair them.",
        "version": "Show the versions of jsq, its NATS client and the server.",
    },
}
"""The commands by the sections of the help page."""

COMMANDS = {name: text for section in SECTIONS.values() for name, text in section.items()}

MODULES = {"bench": "bench.command", "worker ls": "workers", "job get": "job_get"}
"""The modules of commands that have another name than their command, and of two words that skip a group."""

VARIABLES = {
    "JSQ_URL": "the server [the context of the nats command, or localhost]",
    "NATS_CONTEXT": "the context of the nats command [the selected one]",
    "JSQ_NAMESPACE": "the namespace on the server [jsq]",
    "JSQ_USER, JSQ_PASSWORD": "a user and its password",
    "JSQ_TOKEN": "a token in place of a user",
    "JSQ_CREDS, JSQ_NKEY": "a file of credentials or of an nkey, in place of a user",
    "JSQ_CA, JSQ_CERT, JSQ_KEY": "files of the certificates and the key for TLS",
    "JSQ_DEBUG=1": "print the traceback of each error",
    "NO_COLOR=1": "print no colors on a terminal",
}
"""The environment variables of all commands. Those of `jsq worker` are on its page."""

EXIT_CODES = (
    "0 ok, 1 error, 2 usage, 3 the job failed, 4 not allowed, 5 not found, 6 duplicate or conflict, "
    "7 no server answers, 124 timed out, 130 interrupted"
)

HELP = """A distributed task queue on NATS JetStream.

Results go to stdout, messages to stderr. `jsq COMMAND --help` has examples."""


def run_command_line() -> None:
    """Run the command line, and end the process with its exit code."""
    prepare_streams()
    debug = bool(os.environ.get("JSQ_DEBUG"))
    leave(guarded(lambda: command_line().main(prog_name="jsq", standalone_mode=False), debug=debug))


def prepare_streams() -> None:
    """Make stdout and stderr accept every character, also if they are closed or ASCII only."""
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def command_line() -> TyperGroup:
    """The `jsq` command, with only a name and a line of help for each command in it."""
    app = typer.Typer(cls=CommandGroup, help=HELP, rich_markup_mode=None)
    app.callback(
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )(root_command)
    found = typer.main.get_command(app)
    assert isinstance(found, TyperGroup)
    read_without_adapters(found)
    found.commands.update({name: TyperCommand(name, help=text) for name, text in COMMANDS.items()})
    return found


def root_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version of jsq.")] = False,
) -> None:
    if version:
        print(f"jsq {jsq.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


class CommandGroup(GroupPage):
    """The group of all commands. It imports a command when that is used."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name: str | None = " ".join(args[:2])
        rest = args[2:]
        if name not in MODULES:
            name, _, rest = super().resolve_command(ctx, args)
        command = load(name) if name else None
        gc.freeze()
        gc.enable()
        return name, command, rest

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The candidates for a word; `worker ls` is two words."""
        return [one for one in super().shell_complete(ctx, incomplete) if " " not in one.value]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))
        with formatter.section("Environment variables"):
            formatter.write_dl(list(VARIABLES.items()))
        with formatter.section("Exit codes"):
            formatter.write_text(EXIT_CODES)


def load(name: str) -> Any:
    """The command of a name: a function, or a group, at the end of its module's name."""
    module = MODULES.get(name, name)
    attribute = name if "." in module else module
    return parsed(getattr(importlib.import_module(f"jsq.cli.{module}"), attribute), name)
