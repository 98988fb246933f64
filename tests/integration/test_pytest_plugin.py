"""The pytest plug-in, in the projects of users: each test runs pytest on files of its own."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from jsq.server import EmbeddedServer
from tests.helpers.plugin import (
    OPTIONS,
    plugin_arguments,
    run_project,
    server_counts,
    streams_of_tests,
)

pytest_plugins = ["pytester"]

SHOP = """
import asyncio
from typing import Annotated

from jsq import App, Client, Context, Depends

app = App("nats://nowhere.invalid:4222", namespace="shop")
client = Client("nats://nowhere.invalid:4222", namespace="shop")
log = []


async def get_greeting() -> str:
    return "hello"


def charge(order: int) -> None:
    log.append(order)


@app.task
async def place(order: int) -> int:
    await mail.submit(f"user-{order}")
    return order


@app.task
def mail(to: str, copies: int = 1) -> str:
    return to


@app.task
def place_from_thread(order: int) -> int:
    mail.delay(f"user-{order}")
    return order


@app.task
async def pay(order: int) -> int:
    charge(order)
    return order


@app.task
async def wait(ctx: Context) -> int:
    if not ctx.attempt > 1:
        await asyncio.sleep(60)
    return ctx.attempt


@app.task
async def greet(greeting: Annotated[str, Depends(get_greeting)]) -> str:
    return greeting


@app.task(executor="process")
def place_in_child(order: int) -> int:
    mail.delay(f"user-{order}", copies=7)
    return order
"""

ASYNC_TESTS = """
import shop


async def test_a_submit_is_recorded(jsq_app, jsq_submits):
    await shop.place.options(delay="1h").submit(7)

    jsq_submits.assert_submitted(shop.place, 7, delay="1h")
    assert jsq_app.namespace.startswith("test-")


async def test_a_drain_runs_what_tasks_submit(jsq_app, jsq_drain):
    await shop.place.submit(7)

    ran = await jsq_drain()

    assert [(job.task, job.result) for job in ran] == [("place", 7), ("mail", "user-7")]
    assert await jsq_drain() == []


async def test_a_worker_runs_on_the_loop_of_the_test(jsq_worker, jsq_submits):
    job = await shop.place_from_thread.submit(7)

    assert await job.result(timeout=10) == 7
    jsq_submits.assert_submitted(shop.mail, "user-7")
    assert [one.task for one in await jsq_worker.drain()] == ["place_from_thread", "mail"]


async def test_a_worker_that_dies_in_a_task(jsq_worker, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shop, "charge", jsq_worker.die)
        await shop.pay.submit(7)
        [job] = await jsq_worker.drain()
    assert (job.state, job.crashes, jsq_worker.is_running) == ("running", 0, False)

    [job] = await jsq_worker.drain()

    assert (job.state, job.crashes, job.result, shop.log) == ("succeeded", 1, 7, [7])


async def test_a_worker_that_is_killed(jsq_worker):
    await jsq_worker.until_started(await shop.wait.submit())

    await jsq_worker.kill()

    [job] = await jsq_worker.drain()
    assert (job.state, job.result) == ("succeeded", 2)


async def test_nothing_is_submitted(jsq_app):
    pass
"""

SYNC_TESTS = """
import asyncio
import subprocess
import sys

import shop


def test_a_submit_is_recorded(jsq_app, jsq_submits):
    shop.place.delay(7)

    jsq_submits.assert_submitted(shop.place, 7)


def test_a_drain_runs_what_tasks_submit(jsq_app, jsq_drain):
    shop.place.delay(7)

    assert [job.task for job in jsq_drain.blocking()] == ["place", "mail"]


def test_a_worker_runs_in_a_thread(jsq_worker):
    assert shop.place_from_thread.delay(7).result(timeout=10) == 7
    assert [job.task for job in jsq_worker.blocking.drain()] == ["place_from_thread", "mail"]


def test_a_worker_that_dies_in_a_task(jsq_worker, monkeypatch):
    monkeypatch.setattr(shop, "charge", jsq_worker.die)
    shop.pay.delay(7)
    [job] = jsq_worker.blocking.drain()
    monkeypatch.undo()
    assert job.state == "running"

    [job] = jsq_worker.blocking.drain()

    assert (job.state, job.crashes) == ("succeeded", 1)


def test_loops_that_the_test_runs_itself(jsq_app, jsq_submits):
    async def place(order):
        await shop.place.submit(order)

    asyncio.run(place(1))
    asyncio.run(place(2))

    assert [one.arguments["order"] for one in jsq_submits] == [1, 2]
"""

ANYIO = """
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

BOUND_TESTS = """
import os
import subprocess
import sys

import pytest
import shop

from jsq import App


async def test_child_processes_submit_to_the_namespace(jsq_app, jsq_drain):
    await shop.place_in_child.submit(7)

    ran = await jsq_drain()

    assert [(job.task, job.arguments) for job in ran] == [
        ("place_in_child", {"order": 7}),
        ("mail", {"to": "user-7", "copies": 7}),
    ]


def test_commands_use_the_namespace(jsq_app):
    command = [sys.executable, "-m", "jsq", "submit", "mail", '"ada"', "--app", "shop:app"]
    subprocess.run(command, check=True, capture_output=True)

    [job] = jsq_app.client.blocking.jobs.list()

    assert (job.task, job.state) == ("mail", "queued")


def test_a_client_is_bound_too(jsq_app):
    shop.client.blocking.submit("mail", "ada")

    assert shop.client.namespace == jsq_app.namespace


def test_an_app_of_the_test_is_bound_too(jsq_app):
    assert App("nats://nowhere.invalid", namespace="other").namespace == jsq_app.namespace


async def test_a_dependency_is_replaced(jsq_app, jsq_drain):
    jsq_app.overrides[shop.get_greeting] = lambda: "replaced"
    await shop.greet.submit()

    [job] = await jsq_drain()

    assert job.result == "replaced"


async def test_the_dependency_is_back(jsq_app, jsq_drain):
    await shop.greet.submit()

    [job] = await jsq_drain()

    assert job.result == "hello"


@pytest.mark.parametrize("turn", [1, 2])
async def test_a_task_of_the_test_is_forgotten(jsq_app, jsq_drain, turn):
    @jsq_app.task
    async def local() -> int:
        return turn

    await local.submit()

    assert [job.result for job in await jsq_drain()] == [turn]


def test_everything_is_as_before():
    assert (shop.app.namespace, shop.client.namespace) == ("shop", "shop")
    assert shop.app.client.login.url == "nats://nowhere.invalid:4222"
    assert not shop.app.overrides
    assert "JSQ_TEST_NAMESPACE" not in os.environ
    assert "local" not in shop.app.tasks
"""


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The projects use the server of this process, and leave no stream there and no thread here."""
    monkeypatch.setenv("JSQ_TEST_URL", server.url)
    before = set(threading.enumerate())
    yield
    assert streams_of_tests(server) == []
    assert {one.name for one in set(threading.enumerate()) - before} <= {"jsq-task"}


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ("asyncio_mode = auto\n", ""),
        ("asyncio_mode = strict\n", "import pytest\npytestmark = pytest.mark.asyncio\n"),
        ("asyncio_mode = strict\n", "import pytest\npytestmark = pytest.mark.asyncio(loop_scope='module')\n"),
        (
            "asyncio_mode = strict\n",
            ANYIO,
        ),
    ],
    ids=["auto", "strict", "one loop for a module", "anyio"],
)
def test_async_tests_use_the_fixtures_with_each_plug_in(
    pytester: pytest.Pytester, options: str, head: str
) -> None:
    found = run_project(
        pytester, options=options + "jsq_app = shop:app\n", shop=SHOP, test_shop=head + ASYNC_TESTS
    )

    found.assert_outcomes(passed=6)


def test_plain_tests_use_the_fixtures_without_an_event_loop(pytester: pytest.Pytester) -> None:
    found = run_project(pytester, options="jsq_app = shop:app\n", shop=SHOP, test_shop=SYNC_TESTS)

    found.assert_outcomes(passed=5)


def test_all_that_belongs_to_a_test_is_bound_and_then_restored(pytester: pytest.Pytester) -> None:
    found = run_project(
        pytester,
        options="asyncio_mode = auto\njsq_app = shop:app shop:client\n",
        shop=SHOP,
        test_shop=BOUND_TESTS,
    )

    found.assert_outcomes(passed=9)


def test_a_marker_or_a_fixture_chooses_the_app_and_the_queues(pytester: pytest.Pytester) -> None:
    other = (
        "from jsq import App\nother = App()\n@other.task(queue='mail')\ndef send() -> int:\n    return 1\n"
    )
    tests = """
import pytest, other_shop, shop

@pytest.mark.jsq(app="other_shop:other", queues=["mail"])
def test_marked(jsq_app, jsq_drain):
    other_shop.send.delay()
    assert jsq_app is other_shop.other
    assert [job.result for job in jsq_drain.blocking()] == [1]

@pytest.mark.jsq(queues=["mail"])
def test_queues(jsq_app, jsq_drain):
    shop.mail.delay("ada")
    assert jsq_drain.blocking() == []

class TestFixture:
    @pytest.fixture
    def jsq_app_path(self):
        return other_shop.other

    def test_object(self, jsq_app):
        assert jsq_app is other_shop.other
"""

    found = run_project(
        pytester, options="jsq_app = shop:app\n", shop=SHOP, other_shop=other, test_shop=tests
    )

    found.assert_outcomes(passed=3)


def test_a_wrong_app_is_refused_by_name(pytester: pytest.Pytester) -> None:
    tests = """
import pytest

def test_none(jsq_app):
    pass

@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.jsq(app=name))
    for name in ("shop:client", "shop:log", "shop:nothing", "nowhere:app")
])
def test_wrong(jsq_app, name):
    pass

@pytest.mark.jsq(queue="mail")
def test_option(jsq_app):
    pass
"""

    found = run_project(pytester, shop=SHOP, test_shop=tests)

    found.assert_outcomes(errors=6)
    found.stdout.fnmatch_lines(
        [
            "*UsageError: jsq_app needs an App: set jsq_app = shop.tasks:app*",
            "*UsageError: the first object that jsq_app names must be an App*",
            "*UsageError: jsq_app must name an App or a Client, got list*",
            "*UsageError: module shop has no nothing*",
            "*UsageError: no module is named nowhere*",
            "*UsageError: pytest.mark.jsq takes app= and queues= only, got queue=*",
        ]
    )


def test_a_server_of_the_tests_starts_again_with_its_jobs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = """
import shop

def test_restart(jsq_server, jsq_app, jsq_drain):
    shop.mail.delay("ada")
    jsq_server.restart()
    assert [job.result for job in jsq_drain.blocking()] == ["ada"]
"""
    monkeypatch.delenv("JSQ_TEST_URL")

    found = run_project(pytester, options="jsq_app = shop:app\n", shop=SHOP, test_shop=tests)

    found.assert_outcomes(passed=1)


def test_a_server_that_others_started_is_not_restarted(pytester: pytest.Pytester) -> None:
    text = "def test_it(jsq_server):\n    jsq_server.restart()\n"

    found = run_project(pytester, test_shop=text)

    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*UsageError: the tests have not started the server at nats://127.0.0.1:*"])


THOUSAND_TESTS = """
import pytest
import shop


@pytest.mark.parametrize("order", range(600))
async def test_a_submit(jsq_app, jsq_submits, order):
    await shop.place.submit(order)
    jsq_submits.assert_submitted(shop.place, order)


@pytest.mark.parametrize("order", range(200))
async def test_a_drain(jsq_drain, order):
    await shop.place.submit(order)
    assert [job.task for job in await jsq_drain()] == ["place", "mail"]


@pytest.mark.parametrize("order", range(100))
async def test_a_worker(jsq_worker, order):
    assert await (await shop.pay.submit(order)).result(timeout=10) == order


@pytest.mark.parametrize("order", range(100))
def test_a_plain_test(jsq_app, jsq_submits, order):
    shop.place.delay(order)
    jsq_submits.assert_submitted(shop.place, order)
"""


@pytest.mark.proof
def test_a_thousand_tests_leave_nothing_on_one_server(
    pytester: pytest.Pytester, server: EmbeddedServer
) -> None:
    """Prints the time that they take in two processes; `pytest -s` shows it."""
    pytester.makeini(OPTIONS + "asyncio_mode = auto\njsq_app = shop:app\n")
    pytester.makepyfile(shop=SHOP, test_shop=THOUSAND_TESTS)
    before = server_counts(server)
    began = time.monotonic()

    found = pytester.runpytest_subprocess(*plugin_arguments(), "-n", "2", "-q")

    print(f"1,000 tests in {time.monotonic() - began:.1f} s")
    found.assert_outcomes(passed=1_000)
    assert server_counts(server) == before


def test_the_plug_in_imports_nothing_of_jsq_before_it_is_used() -> None:
    script = (
        "import pytest, sys; before = set(sys.modules); import jsq.testing.plugin; "
        "print(sorted(name for name in set(sys.modules) - before))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "['jsq', 'jsq.testing', 'jsq.testing.plugin']"
