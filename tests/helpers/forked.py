"""Starts a command in a fork of the fork server; as a script, it is `jsq` with a fast start.

It imports little, so that an interpreter without site-packages runs it within hundredths of a second.
"""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence

ADDRESS = "FORK_SERVER"
"""The environment variable with the address of the fork server's socket."""

UNFORKED = ("bench", "dev", "worker")
"""Commands that start processes of their own and therefore need a new interpreter."""


def request_fork(
    address: str, words: Sequence[str], environment: Mapping[str, str], folder: str, streams: Sequence[int]
) -> socket.socket:
    """Start a command. The socket that is returned first receives its pid, then its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    request = os.memfd_create("request")
    try:
        os.write(request, json.dumps([list(words), dict(environment), folder]).encode())
        socket.send_fds(connection, [b"+"], [*streams, request])
    finally:
        os.close(request)
    return connection


def main() -> None:
    words = sys.argv[1:]
    if words and words[0] in UNFORKED:
        os.execvp(sys.executable, [sys.executable, "-m", "jsq", *words])
    connection = request_fork(os.environ[ADDRESS], words, os.environ, os.getcwd(), (0, 1, 2))
    with connection.makefile() as replies:
        _, code = replies.readline(), replies.readline()
    sys.exit(int(code))


if __name__ == "__main__":
    main()
