"""What the commands that talk to a server have in common: options, a connection, a printer, a question."""

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from jsq.app import App
from jsq.cli.errors import tell
from jsq.cli.printing import Form, Printer, say
from jsq.client.client import Client
from jsq.errors import JobError, JobFailed, UsageError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a command: where to connect to, and how to print."""

    server: str
    namespace: str
    printer: Printer
    verbose: bool

    def run(self, work: Callable[[Client], Awaitable[T]], app: App | None = None) -> T:
        """Do some work with a connected client, and close it."""
        return asyncio.run(with_client(self.client(app), work))

    def client(self, app: App | None = None) -> Client:
        """What the options say, then what the app says, then the environment."""
        namespace = self.namespace or (app.namespace if app else None)
        return Client(self.server or (app.client.login if app else None), namespace=namespace, name="jsq-cli")


async def with_client(client: Client, work: Callable[[Client], Awaitable[T]]) -> T:
    async with client:
        return await work(client)


def shared(
    server: Annotated[
        str,
        typer.Option("--server", "-s", metavar="URL", help="the server [JSQ_URL, nats context, localhost]"),
    ] = "",
    namespace: Annotated[
        str, typer.Option(metavar="NAME", help="which installation on that server [JSQ_NAMESPACE, jsq]")
    ] = "",
    output: Annotated[
        Form | None,
        typer.Option("--output", "-o", help="how to print results [table on a terminal, else json]"),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="tell more on stderr")] = False,
) -> Session:
    """The options of every command that talks to a server."""
    logging.basicConfig(level=logging.CRITICAL + 1)
    logging.getLogger("jsq").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    return Session(server, namespace, Printer(output), verbose)


def command(function: Callable[Concatenate[Session, P], T]) -> Callable[..., T]:
    """Give a command the shared options; it gets them as a `Session`, first."""
    common = list(inspect.signature(shared).parameters.values())
    own = list(inspect.signature(function).parameters.values())[1:]

    def run(**given: Any) -> T:
        session = shared(**{parameter.name: given.pop(parameter.name) for parameter in common})
        return function(session, **given)  # type: ignore[call-arg]  # typer fills them by `own`

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own + common]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
    return run


def group(purpose: str) -> typer.Typer:
    """A word with commands of its own; alone, it tells them."""
    app = typer.Typer(help=purpose, add_completion=False, rich_markup_mode=None)

    @app.callback(invoke_without_command=True)
    def alone(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help(), file=sys.stderr)
            raise typer.Exit(2)

    return app


def confirm(doing: str, *, yes: bool) -> None:
    """Ask before something is destroyed. Raises `UsageError` where nobody can be asked, `Exit` at a no."""
    if yes:
        return
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"this would {doing}; say so with --yes")
    if not typer.confirm(f"{doing[:1].upper()}{doing[1:]}?", err=True):
        raise typer.Exit(1)


async def each(ids: Sequence[str], act: Callable[[str], Awaitable[T]]) -> tuple[list[T], int]:
    """Act on each id, and tell each failure. Returns what was done, and the first failure's exit code."""
    done: list[T] = []
    code = 0
    for id in ids:
        try:
            done.append(await act(id))
        except (UsageError, JobError) as error:
            told = tell(error)
            code = code or told
    return done, code


def explain(session: Session, failed: JobFailed) -> None:
    """With --verbose, where a job failed."""
    if session.verbose and failed.traceback:
        say(failed.traceback.rstrip())
