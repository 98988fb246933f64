"""`jsq dev`: a server and a worker on one machine, in one command."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from jsq.cli.options import CommonOptions, command
from jsq.cli.styles import has_colors
from jsq.cli.worker import use_server

PORT = 4222

SERVER_CHECK_SECONDS = 1.0
"""Seconds between two checks that the server still runs."""


@dataclass(frozen=True, slots=True)
class DevServer:
    """The server of `jsq dev`: its address, and the folder of one that it started, which may die."""

    url: str
    has_died: Callable[[], bool] = lambda: False
    folder: Path | None = None


@command
def dev(
    common: CommonOptions,
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:APP", help="the App whose jobs to run [none: start only a server]"),
    ] = "",
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65_535,
            metavar="PORT",
            help="port of the server; another one if it is in use; 0 for any",
        ),
    ] = PORT,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="folder of the server's files")] = Path(
        ".jsq"
    ),
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", metavar="N", help="jobs that the worker runs at once")
    ] = 10,
    reload: Annotated[bool, typer.Option(help="restart the worker when the code changes")] = True,
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="serve the metrics and probes of the worker")
    ] = "",
) -> None:
    """Start a nats-server, and a worker of MODULE:APP that restarts when the code changes.

    The server stores its streams in .jsq/ and listens on this machine only. --server starts only a worker.
    Ctrl-C ends both.

    \b
    jsq dev shop:app
    jsq dev --port 0
    """
    from jsq.cli.loading import check_has_tasks, load_app
    from jsq.telemetry.logging import log_to_stderr

    log_to_stderr("text", "debug" if common.verbose else "info", colors=has_colors(sys.stderr))
    use_server(common)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if target:
        check_has_tasks(target, load_app(target))  # a wrong name ends the command before it starts a server
    with dev_server(common, port, folder) as server, contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(run_dev_worker(target, server, concurrency, reload, http)))


@contextlib.contextmanager
def dev_server(common: CommonOptions, port: int, folder: Path) -> Iterator[DevServer]:
    """The server of the options, or a server that runs until the block ends."""
    from jsq.server import EmbeddedServer

    if common.server:
        yield DevServer(common.server)
        return
    with EmbeddedServer(folder.resolve(), port=free_or_any(port), sync_interval="1s") as server:
        typer.echo(f"nats-server at {server.url}  (JSQ_URL={server.url})", err=True)
        typer.echo(f"monitoring at {server.monitor}, streams in {folder}/", err=True)
        yield DevServer(server.url, lambda: server.has_died, folder)


async def run_dev_worker(target: str, server: DevServer, concurrency: int, reload: bool, http: str) -> int:
    """Run the worker; without an App, only wait for the end. The end of the server is an error."""
    watching = asyncio.ensure_future(watch_server(server))
    try:
        code = await run_until_stopped(target, server.url, concurrency, reload, http)
    finally:
        watching.cancel()
    if code == 1 and server.folder:
        fix = "move the folder away, or choose another one with --folder"
        typer.echo(f"{server.folder}/ has streams that this version of jsq cannot use; {fix}", err=True)
    return 1 if server.has_died() else code


async def watch_server(server: DevServer) -> None:
    """Report that the server has ended, and stop this command."""
    while True:
        await asyncio.sleep(SERVER_CHECK_SECONDS)
        if server.has_died():
            break
    typer.echo(f"the nats-server has ended; its log is {server.folder}/nats.log", err=True)
    signal.raise_signal(signal.SIGTERM)


async def run_until_stopped(target: str, url: str, concurrency: int, reload: bool, http: str) -> int:
    """Run the worker until a signal, or only wait for one."""
    from importlib.util import find_spec

    from jsq.cli.signals import on_signals
    from jsq.cli.worker import supervise

    if not target:
        stop = asyncio.Event()
        with on_signals(stop.set):
            await stop.wait()
        return 0
    watched = Path.cwd() if reload and find_spec("watchfiles") else None
    if reload and watched is None:
        typer.echo("the code is not watched: pip install 'jsq[reload]'", err=True)
    command = [
        sys.executable,
        "-m",
        "jsq",
        "worker",
        target,
        "--concurrency",
        str(concurrency),
        "--grace",
        "5",
    ]
    return await supervise(command, 1, 5.0, http, watched, {"JSQ_URL": url})


def free_or_any(port: int) -> int:
    """The port if it is free, else -1: the server then takes a free one."""
    if port == 0:
        return -1
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
        except OSError:
            typer.echo(f"port {port} is in use; using another one", err=True)
            return -1
    return port
