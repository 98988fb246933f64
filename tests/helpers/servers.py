"""Servers with a conf of a test, and servers in memory."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from jsq.server import EmbeddedServer, find_server
from jsq.testing.servers import memory_folder


def memory_server(*, sync_interval: str = "always") -> EmbeddedServer:
    """A server whose streams are in memory, if there is room. They survive the death of the server."""
    return EmbeddedServer(sync_interval=sync_interval, parent=memory_folder())


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
