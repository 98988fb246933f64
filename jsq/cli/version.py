"""`jsq version`: the versions of the installed packages and of the server."""

import asyncio
import importlib.metadata
import platform

import jsq
from jsq.cli.options import command
from jsq.cli.printing import print_message
from jsq.cli.session import Session
from jsq.client.client import Client
from jsq.errors import JsqError

SERVER_VERSION_SECONDS = 1.5
"""Seconds that the server has to answer."""


@command
def version(session: Session) -> None:
    """Show the versions of jsq, Python, the NATS client, and of the server if it answers.

    \b
    jsq version -o json
    """
    versions = {
        "jsq": jsq.__version__,
        "python": platform.python_version(),
        "nats-py": importlib.metadata.version("nats-py"),
    }
    try:
        versions["server"] = asyncio.run(server_version(session.client()))
    except TimeoutError:
        print_message(f"no server answered within {SERVER_VERSION_SECONDS} s")
    except JsqError as error:
        print_message(str(error))
    session.printer.one(versions, name="jsq")


async def server_version(client: Client) -> str:
    async with asyncio.timeout(SERVER_VERSION_SECONDS), client:
        return (await client.broker()).wire.server.version
