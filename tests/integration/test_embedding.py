"""Clients and workers in programs of users: forks, gunicorn, uvloop, threads, notebooks, frozen processes."""

import ast
import asyncio
import contextlib
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import uvloop

from jsq import App, Client
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.repository import ROOT

WAIT = 20.0


@pytest.fixture
def plain(server: EmbeddedServer, namespace: str) -> Iterator[Client]:
    """A client without an event loop."""
    client = Client(server.url, namespace=namespace)
    yield client
    client.blocking.close()


def environment_of(client: Client, **more: str) -> dict[str, str]:
    return {**os.environ, "JSQ_URL": client.login.url, "JSQ_NAMESPACE": client.namespace, **more}


def declare_double(server: EmbeddedServer, namespace: str) -> tuple[App, Any]:
    app = App(server.url, namespace=namespace)

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    return app, double


def test_a_process_that_forks_after_its_first_submit_submits_in_both_processes(plain: Client) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.apps.embedding", "fork"],
        cwd=ROOT,
        env=environment_of(plain),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert {plain.blocking.jobs.get(id).state for id in done.stdout.split()} == {"queued"}
    assert len(set(done.stdout.split())) == 3


def test_gunicorn_with_preload_submits_in_its_workers(plain: Client, tmp_path: Path) -> None:
    """The application connects when gunicorn imports it, before the fork of the workers."""
    command = [sys.executable, "-m", "gunicorn", "tests.apps.embedding:application", "--preload"]
    command += ["--bind", "127.0.0.1:0", "--workers", "2", "--graceful-timeout", "1"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment_of(plain, CONNECT_AT_IMPORT="1"), stderr=file
        )
    try:
        url = wait_for_address(log, server)
        answers = [urllib.request.urlopen(url, timeout=WAIT).read().decode().split() for _ in range(4)]
    finally:
        server.terminate()
        assert server.wait(30) == 0

    assert str(server.pid) not in {pid for pid, _ in answers}
    assert {plain.blocking.jobs.get(id).state for _, id in answers} == {"queued"}
    assert len(plain.blocking.jobs.list()) == 5


def wait_for_address(log: Path, server: "subprocess.Popen[bytes]") -> str:
    """The address at which gunicorn listens, once a worker has booted."""
    end = time.monotonic() + 30
    while True:
        text = log.read_text()
        found = re.search(r"Listening at: (http://\S+)", text)
        if found and "Booting worker" in text:
            return found[1]
        assert server.poll() is None, text
        assert time.monotonic() < end, text
        time.sleep(0.01)


def test_a_frozen_process_submits_again_though_its_server_has_restarted(own_server: EmbeddedServer) -> None:
    """A function service freezes a process between two calls; its connection is dead afterwards."""
    with contextlib.closing(Client(own_server.url).blocking) as blocking:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.apps.embedding", "lines"],
            cwd=ROOT,
            env={**os.environ, "JSQ_URL": own_server.url, "JSQ_NAMESPACE": "jsq"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ids = []
            for is_frozen in (False, True):
                if is_frozen:
                    process.send_signal(signal.SIGSTOP)
                    own_server.kill()
                    own_server.restart()
                    process.send_signal(signal.SIGCONT)
                process.stdin.write("call\n")
                process.stdin.flush()
                ids.append(process.stdout.readline().strip())
            assert [blocking.jobs.get(id).state for id in ids] == ["queued", "queued"]
        finally:
            process.kill()
            process.communicate()


def test_a_worker_and_a_client_run_on_uvloop(server: EmbeddedServer, namespace: str) -> None:
    app, double = declare_double(server, namespace)

    async def main() -> int:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        async with app, app.working(concurrency=2):
            return int(await (await double.submit(4)).result(WAIT))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == 8


def test_an_app_serves_an_event_loop_for_each_test(server: EmbeddedServer, namespace: str) -> None:
    """As pytest-asyncio and anyio run tests: each has a loop of its own, and the App is a global."""
    app, double = declare_double(server, namespace)

    async def test() -> int:
        async with app, app.working():
            return int(await (await double.submit(4)).result(WAIT))

    assert [asyncio.run(test()) for _ in range(3)] == [8, 8, 8]
    assert app.client.connection._brokers == {}


async def test_threads_with_event_loops_of_their_own_share_an_app(
    server: EmbeddedServer, namespace: str, until: Until
) -> None:
    app, double = declare_double(server, namespace)
    results: list[int] = []

    async def ask(number: int) -> None:
        results.append(await (await double.submit(number)).result(WAIT))
        await app.close()

    async with app, app.working():
        threads = [threading.Thread(target=lambda n=n: asyncio.run(ask(n))) for n in range(6)]
        for thread in threads:
            thread.start()
        await until(lambda: not any(thread.is_alive() for thread in threads))

    assert sorted(results) == [0, 2, 4, 6, 8, 10]


CELLS = (
    """
    from contextlib import AsyncExitStack
    from jsq import App, UsageError

    app = App(url, namespace=namespace)

    @app.task
    def double(number: int) -> int:
        return 2 * number
    """,
    """
    stack = AsyncExitStack()
    worker = await stack.enter_async_context(app.working(concurrency=2))
    """,
    """
    job = await double.submit(4)
    result = await job.result(20)
    """,
    """
    try:
        double.delay(4)
    except UsageError as error:
        refused = str(error)
    """,
    """
    @app.task
    async def triple(number: int) -> int:
        return 3 * number

    later = await (await triple.submit(4)).result(20)
    """,
    """
    await stack.aclose()
    await app.close()
    """,
)
"""The cells of a notebook. Each runs in an asyncio task of its own, on one event loop that runs on."""


async def test_a_notebook_runs_a_worker_over_several_cells(server: EmbeddedServer, namespace: str) -> None:
    notebook: dict[str, Any] = {"url": server.url, "namespace": namespace, "__name__": "__main__"}
    for cell in CELLS:
        await asyncio.create_task(run_cell(inspect.cleandoc(cell), notebook))

    assert (notebook["result"], notebook["later"]) == (8, 12)
    assert "await double.submit(...) instead" in notebook["refused"]
    assert notebook["worker"].state() == "stopped"


async def run_cell(text: str, notebook: dict[str, Any]) -> None:
    """Run a cell as IPython does: with `await` outside of functions."""
    code: CodeType = compile(text, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    found = eval(code, notebook)
    if inspect.isawaitable(found):
        await found
