"""Shared by all commands that use a server: the connection, the confirmation, and the list of failures."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import typer

from jsq.cli.errors import print_error
from jsq.cli.options import CommonOptions
from jsq.cli.printing import print_message
from jsq.client.client import Client
from jsq.errors import BrokerUnavailable, JobError, JobFailed, UsageError
from jsq.transport.waiting import wait_for_server

T = TypeVar("T")


class Connectable(Protocol):
    """The attributes of an App that a connection needs."""

    @property
    def client(self) -> Client: ...

    @property
    def namespace(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Session(CommonOptions):
    """One run of a command that uses a server."""

    def run(
        self, work: Callable[[Client], Awaitable[T]], app: Connectable | None = None, *, wait: float = 0.0
    ) -> T:
        """Do some work with a connected client, and close the client.

        With `wait`, retry for so many seconds while no server answers; the work must be safe to repeat.
        """

        async def connected() -> T:
            async with self.client(app) as client:
                self.report_connection(client.login.shown, client.namespace)
                return await work(client)

        return asyncio.run(wait_for_server(connected, report_waiting, seconds=wait))

    def client(self, app: Connectable | None = None) -> Client:
        """A client for the server and namespace of the options, else the app, else the environment."""
        namespace = self.namespace or (app.namespace if app else None)
        return Client(self.server or (app.client.login if app else None), namespace=namespace, name="jsq-cli")


def report_waiting(error: BrokerUnavailable) -> None:
    """Report that a command waits for its server."""
    print_message(f"jsq: waiting: {error}")


def confirm(doing: str, *, yes: bool) -> None:
    """Ask before something is destroyed. Raises `Exit` at a no, and `UsageError` without a terminal."""
    if yes:
        return
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"this would {doing}; confirm with --yes")
    if not typer.confirm(f"{doing[:1].upper()}{doing[1:]}?", err=True):
        raise typer.Exit(1)


async def collect(ids: Sequence[str], act: Callable[[str], Awaitable[T]]) -> tuple[list[T], int]:
    """Act on each id, and print each failure. Returns the results, and the first failure's exit code."""
    done: list[T] = []
    code = 0
    for id in ids:
        try:
            done.append(await act(id))
        except (UsageError, JobError) as error:
            failure = print_error(error)
            code = code or failure
    return done, code


def print_traceback(session: Session, failed: JobFailed) -> None:
    """With --verbose, print the traceback of a failed job."""
    if session.verbose and failed.traceback:
        print_message(failed.traceback.rstrip())
