"""`jsq dev`: all that is needed on one machine, in one command."""

import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

PORT = 4222


def dev(
    target: Annotated[str, typer.Argument(metavar="[MODULE:APP]", help="an App whose jobs to run")] = "",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="where the server listens, if free; 0: anywhere")
    ] = PORT,
    folder: Annotated[Path, typer.Option(help="what the server keeps")] = Path(".jsq"),
    concurrency: Annotated[int, typer.Option(help="jobs run at once")] = 10,
    reload: Annotated[bool, typer.Option(help="start the worker anew when the code changes")] = True,
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="metrics and probes of the worker")] = "",
) -> None:
    """Start a nats-server here, and a worker of MODULE:APP that follows the code.

    The server keeps its streams in .jsq/ and listens on this machine only. Ctrl-C ends both.
    """
    from jsq.server import EmbeddedServer
    from jsq.telemetry.logging import log_to_stderr

    log_to_stderr("text", "info")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with EmbeddedServer(folder.resolve(), port=free_or_any(port), sync_interval="1s") as server:
        typer.echo(f"nats-server at {server.url}  (JSQ_URL={server.url})", err=True)
        typer.echo(f"monitoring at {server.monitor}, streams in {folder}/", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            code = asyncio.run(run(target, server.url, concurrency, reload, http))
            sys.exit(code)


async def run(target: str, url: str, concurrency: int, reload: bool, http: str) -> int:
    """Run the worker, or without an app only wait."""
    from importlib.util import find_spec

    from jsq.cli.loading import load_app
    from jsq.cli.worker import on_signals, supervise

    if not target:
        stop = asyncio.Event()
        with on_signals(stop.set):
            await stop.wait()
        return 0
    load_app(target)
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
    """The port if nobody listens there, else -1: the server then takes a free one."""
    if port == 0:
        return -1
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
        except OSError:
            typer.echo(f"port {port} is taken; taking another", err=True)
            return -1
    return port
