"""The tiers of the tests: a default tier for every change, a proof tier, and runs that are started by hand.

`pytest` runs the default tier: unit, integration and acceptance tests, README and guide, one chaos run of ten
seconds, one cluster of three servers, and one scenario of crash points. A test there takes 30 s at most.

`pytest -m proof` runs tests that take minutes: longer chaos runs, processes killed at every point, clusters,
races of hundreds of keys, power loss, and the search for built-in faults. Each takes 600 s at most.

`python -m tests.chaos --seconds 600` runs by hand.

The proof tier of each subject, and after the semicolon the part that the default tier covers:

- `chaos/test_chaos.py`: a minute of every fault, three kinds of faulty workers; ten seconds of fast faults.
- `chaos/test_ticks.py`: schedules while servers and workers are killed; the check of its own checker.
- `integration/test_crash_points.py`: every point of 17 scenarios; `test_crash_smoke.py` has a few of one.
- `integration/test_clusters.py`, `test_cluster_flow.py`: 20 losses of servers; one: `test_cluster_smoke.py`.
- `integration/test_unique_races.py`: 500 keys and 12 submitters; single races are in `test_unique.py`.
- `integration/test_restarts.py`: kills of the server under submits; single kills are in `test_faults.py`.
- `integration/test_power.py`: power loss, with a file system in a file.
- `integration/test_failed_jobs.py`: 1,000 failed jobs on one server, on three, and with synced writes; 20.
- `integration/test_quarantine.py`: worker processes that a job kills; workers that are killed one by one.
- `integration/test_schedules.py`: a worker without its lease, a killed server with a memory queue; ticks of
  killed workers.
- `integration/test_connection.py`: a link that is dead and silent; a link that accepts no more data.
- `integration/test_due_jobs.py`: the start within a second after restarts; clusters.
- `integration/test_isolation.py`: a last attempt that cannot run alone; one that waits for the others.
- `integration/test_backpressure.py`: many clients that wait for room; a hundred submits of one client.
- `integration/test_record_races.py`: a reschedule and the firing of a retry at once; a late reschedule.
- `typing/test_typing.py`: pyright; mypy. `.ci/check` runs pyright on the correct user code too.
- `unit`: all examples of the properties, with `EXAMPLES=all`; a third of them.
- `unit/test_life.py`: 5,000 lives of a job and the search for each built-in fault; 100 lives, and for each
  fault a counterexample found by the search.
"""

import gc
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

PROOF_TIMEOUT_SECONDS = 600

TESTS = Path(__file__).parents[1]

_deselected = pytest.StashKey[int]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each proof test its time limit, which is longer than the limit in pyproject.toml."""
    for item in items:
        if item.get_closest_marker("proof") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(PROOF_TIMEOUT_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in the captured output: a test process could not send them, and would end."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Pause the garbage collector while the tests are collected: almost all that is made then stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exempt the collected tests from the garbage collector: each full collection would visit them."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """In a fresh clone, compile the test modules before the test processes start.

    pytest compiles a module with its assertions once, and keeps the result. In a fresh clone each of the test
    processes would do that for all modules: a minute of CPU in all.
    """
    if any(TESTS.rglob("test_*-pytest-*.pyc")):
        return
    folders = sorted(path for path in TESTS.iterdir() if path.is_dir() and not path.name.startswith("_"))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-n", "0"]
    halves = [subprocess.Popen([*command, *folders[start::2]], stdout=subprocess.DEVNULL) for start in (0, 1)]
    for half in halves:
        half.wait()


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        stash = items[0].config.stash
        stash[_deselected] = stash.get(_deselected, 0) + sum(
            item.get_closest_marker("proof") is not None for item in items
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test process of pytest-xdist reports its count to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected_proofs"] = session.config.stash.get(_deselected, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each test process collected the same tests, so one count is enough."""
    node.config.stash[_deselected] = getattr(node, "workeroutput", {}).get("deselected_proofs", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.stash.get(_deselected, 0):
        terminalreporter.write_line(
            f"{count} proof tests were not run; `pytest -m proof` runs them", yellow=True
        )
