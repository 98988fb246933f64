"""The command line: each command parses, calls one method of the SDK, and prints.

A command is a word; the module of that name holds a function, or a group of commands, of that name. It is
imported when it is asked for, so `jsq --help` loads typer and nothing else.
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

COMMANDS = {
    "dev": "Start a server here, and a worker that follows the code.",
    "demo": "Count the words of real files, with a worker killed half way.",
    "worker": "Run the jobs of an app's queues.",
    "submit": "Submit a job, or one for each line of stdin.",
    "job": "List, get and await jobs; cancel, retry, remove them.",
    "queue": "List queues, count their jobs; purge, pause, update them.",
    "schedule": "List, add, remove, pause, run schedules; list their ticks.",
    "dead": "List dead letters, get one; retry or purge them.",
    "events": "Follow the events of jobs.",
    "provision": "Bring the server to what an app declares.",
    "bench": "Measure jsq here, beside what the server can do at best.",
    "doctor": "Check the server and report problems.",
    "sweep": "Find inconsistencies on the server, and repair them.",
    "guide": "List, show and search the pages of the guide.",
    "version": "Show the versions of jsq, its NATS client and the server.",
}

MODULES = {"bench": "bench.command"}
"""The modules of commands that are not named as their command is."""

HELP = """A distributed task queue on NATS JetStream.

Results go to stdout, messages to stderr. Exit codes: 0 ok, 1 error, 2 usage, 3 the job failed, 4 not allowed,
5 not found, 6 duplicate or conflict, 7 NATS out of reach, 124 timed out, 130 interrupted.

Environment: JSQ_URL the server, JSQ_NAMESPACE the installation on it, JSQ_USER, JSQ_PASSWORD, JSQ_TOKEN,
JSQ_CREDS the login, NO_COLOR=1 no colors, JSQ_DEBUG=1 a traceback with each error."""


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
    """The `jsq` command, with a mere name and a line of help for each word."""
    app = typer.Typer(cls=Words, help=HELP, rich_markup_mode=None)
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


class Words(GroupPage):
    """A group whose commands are imported when they are asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        command = load(name) if name else None
        gc.freeze()
        gc.enable()
        return name, command, rest


def load(name: str) -> Any:
    """The command of a name: its module holds a function, or a group, of the same name."""
    word = getattr(importlib.import_module(f"jsq.cli.{MODULES.get(name, name)}"), name)
    return parsed(word, name)
