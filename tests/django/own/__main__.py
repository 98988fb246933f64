"""Runs Django's own tests of its task backends; see the package."""

import os
import sys
import unittest
from pathlib import Path

import django
from django.conf import settings

from tests.django.own.excluded import EXCLUDED, MODULES


def set_up(folder: Path) -> None:
    """Configure Django, and put `JsqBackend` in the place of its backends."""
    sys.path.insert(0, str(folder))
    settings.configure(
        SECRET_KEY="for tests",
        INSTALLED_APPS=["jsq.contrib.django"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        TASKS={"default": {"BACKEND": "jsq.contrib.django.JsqBackend"}},
        USE_TZ=True,
    )
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)
    django.setup()
    from django.tasks.backends import dummy, immediate

    from tests.django.own.stand_ins import WithoutWorker, WithWorker

    dummy.DummyBackend = WithoutWorker
    immediate.ImmediateBackend = WithWorker


def split(suite: unittest.TestSuite) -> tuple[unittest.TestSuite, unittest.TestSuite, list[str]]:
    """The tests that apply, those that are excluded, and the excluded names that do not exist."""
    tests = {one.id(): one for one in flat(suite)}
    excluded = unittest.TestSuite(tests[name] for name in EXCLUDED if name in tests)
    applied = unittest.TestSuite(one for name, one in tests.items() if name not in EXCLUDED)
    return applied, excluded, sorted(EXCLUDED.keys() - tests.keys())


def flat(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    """The tests of a suite."""
    found: list[unittest.TestCase] = []
    for one in suite:
        found += flat(one) if isinstance(one, unittest.TestSuite) else [one]
    return found


def run(folder: Path) -> int:
    """Run the tests; returns the exit code."""
    set_up(folder)
    from django.test.runner import DiscoverRunner

    from tests.django.own.stand_ins import WorkerThread

    applied, excluded, missing = split(unittest.defaultTestLoader.loadTestsFromNames(MODULES))
    runner = DiscoverRunner(verbosity=1)
    runner.setup_test_environment()
    databases = runner.setup_databases()
    names = {one.id() for one in flat(excluded)}
    with WorkerThread():
        report = runner.run_suite(applied)
        outcome = unittest.TestResult()
        excluded.run(outcome)
    runner.teardown_databases(databases)
    runner.teardown_test_environment()
    failed = {one.id() for one, _ in (*outcome.failures, *outcome.errors)}
    passed = sorted(names - failed)
    print(f"Django {django.get_version()}: {report.testsRun} tests apply, {len(EXCLUDED)} do not")
    for name in missing:
        print(f"excluded, but there is no such test: {name}")
    for name in passed:
        print(f"excluded, but passes: {name}")
    return int(bool(missing or passed or not report.wasSuccessful()))


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
