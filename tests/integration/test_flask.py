"""The extension of Flask: an application context for each job, settings, and the command `flask jsq`."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app

from jsq import App, BadOption, Client, JobFailed, LifespanFailed, UsageError
from jsq.contrib.flask import Jsq
from jsq.server import EmbeddedServer
from tests.apps import flask_shop
from tests.helpers.repository import ROOT

WAIT = 20.0


@pytest.fixture
def shop(server: EmbeddedServer, namespace: str) -> Iterator[App]:
    """The App of `tests.apps.flask_shop` on the server of the tests."""
    connection = flask_shop.app.client.connection
    variables = pytest.MonkeyPatch()
    variables.setenv("JSQ_URL", server.url)
    variables.setenv("JSQ_NAMESPACE", namespace)
    with connection.bound(Client(server.url).login, namespace):
        yield flask_shop.app
        connection.portal.stop()
    variables.undo()
    flask_shop.torn_down.clear()


async def test_each_job_has_an_application_context_that_ends_in_its_thread(shop: App) -> None:
    greet: Any = flask_shop.greet
    async with shop, shop.working():
        text, thread = await (await greet.submit("ann")).result(WAIT)
        assert text == "hello ann"
        assert thread != threading.get_ident()
        assert flask_shop.torn_down == [("ann", thread, None)]
        assert await (await flask_shop.greet_on_loop.submit("bob")).result(WAIT) == "hello bob"
        assert flask_shop.torn_down[1:] == [("bob", threading.get_ident(), None)]
        with pytest.raises(JobFailed, match="ValueError: eve"):
            await (await greet.submit("eve", True)).result(WAIT)
        [(value, _, error)] = flask_shop.torn_down[2:]
        assert (value, repr(error)) == ("eve", "ValueError('eve')")
    assert not current_app


async def test_a_child_process_has_an_application_context(shop: App) -> None:
    async with shop, shop.working():
        assert await (await flask_shop.greet_in_child.submit("ann")).result(WAIT) == "hello ann"


async def test_the_jobs_of_a_batch_have_one_context(shop: App) -> None:
    async with shop, shop.working():
        jobs = await flask_shop.greet_all.submit_many([("ann",), ("bob",)])
        assert [await job.result(WAIT) for job in jobs] == ["hello ann", "hello bob"]
    assert [value for value, _, _ in flask_shop.torn_down] == ["ann,bob"]


def test_a_view_submits_by_a_blocking_call(shop: App) -> None:
    id = flask_shop.flask_app.test_client().post("/greet/ann").text

    assert shop.client.blocking.jobs.get(id).task == "greet"


def test_the_command_runs_a_worker_of_an_application_that_a_factory_makes(
    server: EmbeddedServer, namespace: str
) -> None:
    """The setting JSQ_URL comes from the factory, and child processes find the application too."""
    client = Client(server.url, namespace=namespace)
    jobs = [client.task(name).blocking.submit() for name in ("name_app", "name_app_in_child")]
    kept = {name: value for name, value in os.environ.items() if name not in ("JSQ_URL", "FLASK_APP")}

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "flask",
            "--app",
            "tests.apps.flask_shop:create_app",
            "jsq",
            "worker",
            "--burst",
        ],
        cwd=ROOT,
        env={**kept, "JSQ_NAMESPACE": namespace, "FLASK_JSQ_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert [job.result(timeout=0) for job in jobs] == ["made_by_factory", "made_by_factory"]
    client.blocking.close()


def test_the_command_passes_other_commands_on(server: EmbeddedServer, namespace: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "flask",
            "--app",
            "tests.apps.flask_shop:create_app",
            "jsq",
            "job",
            "ls",
            "-o",
            "json",
        ],
        cwd=ROOT,
        env={**os.environ, "JSQ_NAMESPACE": namespace, "FLASK_JSQ_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


async def test_a_worker_without_a_flask_application_does_not_start(
    server: EmbeddedServer, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FLASK_APP", raising=False)
    monkeypatch.chdir(tmp_path)
    app = App(server.url, namespace=namespace)
    Jsq(app=app)
    async with app:
        with pytest.raises(LifespanFailed, match="set FLASK_APP, or start the worker by"):
            async with app.working():
                pytest.fail("the worker started")


def test_the_setting_of_flask_is_the_address_unless_the_app_names_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JSQ_URL", "nats://variable:4222")
    flask_app = Flask("any")
    extension = Jsq(flask_app)
    assert extension.app.client.login.url == "nats://variable:4222"
    flask_app.config["JSQ_URL"] = "nats://setting:4222"
    extension.init_app(flask_app)
    assert flask_app.extensions["jsq"] is extension
    assert extension.app.client.login.url == "nats://setting:4222"
    named = Jsq(flask_app, App("nats://named:4222"))
    assert named.app.client.login.url == "nats://named:4222"
    with pytest.raises(UsageError, match="use one for each App"):
        Jsq(flask_app, named.app)
    flask_app.config["JSQ_URL"] = 4222
    with pytest.raises(BadOption, match="JSQ_URL must be text"):
        Jsq(flask_app)
