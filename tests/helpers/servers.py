"""Servers with a conf of a test, and the streams of a server."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jsq.server import EmbeddedServer, find_server

MEMORY = Path("/dev/shm")
"""A file system in memory, where there is one."""

LEAST_FREE_BYTES = 4 * 2**30


@contextlib.contextmanager
def memory_server(*, sync_interval: str = "always") -> Iterator[EmbeddedServer]:
    """Run a server whose streams are in memory, if there is room. They survive the death of the server.

    A test creates and deletes a dozen streams. On a disk, most of the CPU time of that is spent in the file
    system.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > LEAST_FREE_BYTES
    with contextlib.ExitStack() as held:
        with pytest.MonkeyPatch.context() as context:
            if has_room:
                context.setattr(tempfile, "tempdir", str(MEMORY))
            server = held.enter_context(EmbeddedServer(sync_interval=sync_interval))
        yield server


@contextlib.contextmanager
def nats_server(
    folder: Path, conf: str, variables: Mapping[str, str] | None = None, *, port: int = -1
) -> Iterator[str]:
    """Run a server with a conf and environment variables, on `port` or a free port; yields its `host:port`.

    The server logs to `nats.log` in the folder.
    """
    file, ports = folder / "nats.conf", folder / "ports"
    ports.mkdir()
    file.write_text(f"listen: 127.0.0.1:{port}\nports_file_dir: {ports}\n{conf}\n")
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen(
            [find_server(), "-c", str(file)], stdout=log, stderr=log, env=os.environ | dict(variables or {})
        )
    try:
        end = time.monotonic() + 10
        while not (found := list(ports.glob("*.ports"))) or not found[0].read_text().endswith("}"):
            assert process.poll() is None, (folder / "nats.log").read_text()
            assert time.monotonic() < end
        yield found[0].read_text().partition("://")[2].partition('"')[0]
    finally:
        process.terminate()
        process.wait()


def delete_streams(url: str, namespace: str) -> None:
    """Delete all streams of a namespace.

    The server confirms that it has read the requests; it may delete the streams later. Needs no event loop.
    """
    address = urlsplit(url)
    with (
        socket.create_connection((address.hostname, address.port), timeout=10) as connection,
        connection.makefile("rwb") as stream,
    ):

        def send(*lines: str) -> None:
            stream.write("".join(f"{line}\r\n" for line in lines).encode())
            stream.flush()

        send('CONNECT {"verbose":false}', "SUB names 1", "PUB $JS.API.STREAM.NAMES names 0", "")
        while not (line := stream.readline()).startswith(b"MSG names"):
            assert line, "the server closed the connection"
        names = json.loads(stream.readline())["streams"] or []
        prefixes = (f"KV_{namespace}_", f"{namespace.upper()}_")
        owned = [name for name in names if name.startswith(prefixes)]
        send(*(part for name in owned for part in (f"PUB $JS.API.STREAM.DELETE.{name} 0", "")), "PING")
        while not (line := stream.readline()).startswith(b"PONG"):
            assert line, "the server closed the connection"
