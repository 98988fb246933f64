"""Django: the tests of a project, which run inside of it, and its command line.

A test process of pytest is no Django project, so each run is a process of its own. `.ci/django` runs this
module again on the newest Django, with the tests of the task backend and those of Django itself.
"""

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import django
import pytest

from jsq import Client
from jsq.contrib.django import NAME_MODULES
from jsq.server import EmbeddedServer
from tests.django.own.excluded import EXCLUDED
from tests.helpers.pages import GUIDE, page_blocks
from tests.helpers.repository import ROOT

SUITES = ("commit", "configuration", "connections", "immediate", "pages", "states")
BACKEND_SUITES = ("backend",) if django.VERSION >= (6,) else ()
OWN_TESTS = os.environ.get("DJANGO_TESTS", "")
"""The folder `tests` of Django's source, which `.ci/django` has downloaded."""

Done: TypeAlias = "subprocess.CompletedProcess[str]"


@pytest.fixture
def project(server: EmbeddedServer, namespace: str, tmp_path: Path) -> Callable[..., Done]:
    """Runs a module of Python for the project of the tests, with warnings as errors."""
    variables = {
        "JSQ_URL": server.url,
        "JSQ_NAMESPACE": namespace,
        "DJANGO_DATABASE": str(tmp_path / "db.sqlite3"),
        "PYTHONPATH": str(ROOT),
    }

    def run(module: str, *arguments: str, folder: Path = ROOT, **more: str) -> Done:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", module, *arguments],
            cwd=folder,
            env={**os.environ, **variables, **more},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.mark.parametrize("suite", [*SUITES, *BACKEND_SUITES])
@pytest.mark.timeout(90)
def test_the_tests_of_a_project_pass(project: Callable[..., Done], suite: str) -> None:
    done = project("tests.django.manage", "test", f"tests.django.suite.{suite}")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nOK" in done.stderr


if OWN_TESTS:

    @pytest.mark.timeout(90)
    def test_the_tests_of_django_that_apply_pass_on_the_backend(project: Callable[..., Done]) -> None:
        done = project("tests.django.own", OWN_TESTS)

        assert done.returncode == 0, done.stdout + done.stderr


def test_the_stub_lists_the_names_and_their_modules() -> None:
    stub = ast.parse((ROOT / "jsq" / "contrib" / "django" / "__init__.pyi").read_text())

    listed = {
        alias.asname: str(node.module).rpartition(".")[2]
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert listed == NAME_MODULES


def test_the_page_names_the_tests_of_django_that_do_not_apply() -> None:
    page = (GUIDE / "django-tasks.md").read_text()

    named = set(re.findall(r"`(\w+TestCase\.test_\w+)`", page))

    assert named == {".".join(name.split(".")[-2:]) for name in EXCLUDED}


if BACKEND_SUITES:

    def test_the_example_of_the_page_runs(server: EmbeddedServer, namespace: str, tmp_path: Path) -> None:
        manage = write_project(tmp_path)
        settings, example, *_ = [
            block.text for block in page_blocks(GUIDE / "django-tasks.md") if block.word == "other"
        ]
        tasks, _, calls = example.partition("\n\nresult = ")
        settings = settings.replace("[...,", '["shop",').replace("nats://127.0.0.1:4222", server.url)
        settings = settings.replace('"namespace": "shop"', f'"namespace": "{namespace}"')
        (tmp_path / "settings.py").write_text(f'SECRET_KEY = "for tests"\n{settings}')
        (tmp_path / "shop" / "tasks.py").write_text(tasks)
        names, ids = "from shop.tasks import report, send", "print(result.id, report.enqueue('May').id)"
        program = f"{names}\nresult = {calls}\n{ids}"

        def run(*arguments: str) -> str:
            command = [sys.executable, str(manage), *arguments]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        sent, reported = run("shell", "-v", "0", "-c", program).split()
        run("jsq", "worker", "--burst")

        assert run("jsq", "job", "result", sent) == '"sent to a@b.c"'
        assert run("jsq", "job", "result", reported) == '"May in attempt 1"'


async def test_the_command_line_has_the_app_of_the_project(
    project: Callable[..., Done], server: EmbeddedServer, namespace: str
) -> None:
    manage = "tests.django.manage"
    submitted = project(
        manage, "jsq", "submit", "fail", "text", "-o", "name", "--settings=tests.django.settings"
    )
    worked = project(manage, "jsq", "worker", "--burst")
    listed = project(manage, "jsq", "job", "get", submitted.stdout.strip(), "-o", "json")

    assert submitted.returncode == 0, submitted.stderr
    assert worked.returncode == 0, worked.stderr
    assert "ValueError: text in attempt 1" in listed.stdout
    async with Client(server.url, namespace=namespace) as client:
        assert (await client.jobs.get(submitted.stdout.strip())).state == "failed"


SETTINGS = """
SECRET_KEY = "for tests"
INSTALLED_APPS = ["jsq.contrib.django", "shop"]
JSQ = {JSQ}
"""
TASKS = """
from jsq.contrib.django import app


@app.task
def add(a: int, b: int) -> int:
    return a + b
"""
MANAGE = """
import os, sys
from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
"""


def write_project(folder: Path, **options: str) -> Path:
    """Write a project with these options of the App; returns its manage.py."""
    (folder / "shop").mkdir(parents=True)
    (folder / "settings.py").write_text(SETTINGS.replace("{JSQ}", repr(options)))
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "tasks.py").write_text(TASKS)
    (folder / "manage.py").write_text(MANAGE)
    return folder / "manage.py"


def test_worker_processes_find_the_project_and_its_server_wherever_they_are_started(
    server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    manage = write_project(tmp_path / "project", url=server.url, namespace=namespace)

    def run(*arguments: str) -> Done:
        command = [sys.executable, str(manage), "jsq", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    id = run("submit", "add", "1", "2", "-o", "name").stdout.strip()
    worked = run("worker", "--burst", "--processes", "2")
    result = run("job", "result", id)
    dev = run("dev")

    assert worked.returncode == 0, worked.stderr
    assert result.stdout.strip() == "3", result.stderr
    assert dev.returncode == 2
    assert "dev starts a server of its own, but the settings name one" in dev.stderr


def test_dev_starts_a_server_and_a_worker_of_the_project(tmp_path: Path) -> None:
    manage = write_project(tmp_path)
    log = tmp_path / "log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JSQ_")}

    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(manage), "jsq", "dev", "--port", "0", "--no-reload"],
            cwd=tmp_path,
            env=kept,
            stderr=file,
        )
    try:
        end = time.monotonic() + 25
        while "worker ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
    finally:
        process.terminate()
        process.wait(20)

    assert "add" in log.read_text()
