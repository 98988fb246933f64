"""Runs pytest on the project of a user of the pytest plug-in."""

import json
from importlib.metadata import entry_points
from urllib.request import urlopen

import pytest

from jsq.client.blocking import Portal
from jsq.server import EmbeddedServer
from jsq.settings import read_login
from jsq.transport.jetstream import JetStreamApi
from jsq.transport.wire import Wire

OPTIONS = "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\npythonpath = .\n"


def plugin_arguments() -> list[str]:
    """The arguments that load the plug-in, unless its entry point is installed, which does so too."""
    installed = any(one.value == "jsq.testing.plugin" for one in entry_points(group="pytest11"))
    return [] if installed else ["-p", "jsq.testing.plugin"]


def run_project(
    pytester: pytest.Pytester, *arguments: str, options: str = "", **modules: str
) -> pytest.RunResult:
    """Write the modules and the options of a project, and run its tests in this process."""
    pytester.makeini(OPTIONS + options)
    pytester.makepyfile(**modules)
    given = (*plugin_arguments(), "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", *arguments)
    return pytester.runpytest_inprocess(*given)


def streams_of_tests(server: EmbeddedServer) -> list[str]:
    """The streams of the namespaces of tests that use the plug-in."""
    portal = Portal(nothing)

    async def list_streams() -> list[str]:
        wire = await Wire(read_login(server.url)).open()
        try:
            names = [name async for page in JetStreamApi(wire).pages("STREAM.NAMES", "") for name in page]
        finally:
            await wire.close()
        return [name for name in names if name.startswith(("TEST-", "KV_test-"))]

    try:
        return portal.run(list_streams())
    finally:
        portal.stop()


def server_counts(server: EmbeddedServer) -> dict[str, int]:
    """How many streams, consumers and connections a server has."""
    with urlopen(f"{server.monitor}/jsz") as page:
        streams = json.load(page)
    with urlopen(f"{server.monitor}/connz") as page:
        connections = json.load(page)
    return {
        "streams": streams["streams"],
        "consumers": streams["consumers"],
        "connections": connections["num_connections"],
    }


async def nothing() -> None:
    """Closes nothing."""
