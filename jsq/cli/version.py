"""`jsq version`: what is installed here, and what answers there."""

import asyncio
import importlib.metadata
import platform

import jsq
from jsq.cli.options import command
from jsq.cli.printing import say
from jsq.cli.session import Session
from jsq.client.client import Client
from jsq.errors import JsqError

SERVER_VERSION_SECONDS = 1.5
"""How long the server may take to answer."""


@command
def version(session: Session) -> None:
    """Show the versions of jsq, Python, the NATS client, and of the server if it answers soon.

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
        say("no server answers soon")
    except JsqError as error:
        say(str(error))
    session.printer.one(versions, name="jsq")


async def server_version(client: Client) -> str:
    async with asyncio.timeout(SERVER_VERSION_SECONDS), client:
        return (await client.broker()).wire.server.version
