"""The budget of a plain job in bytecodes and calls. They vary by a few percent; CPU seconds vary by half."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jsq.server import EmbeddedServer

SUBMIT = {"bytecodes": 1_100, "calls": 50}
DRAIN = {"bytecodes": 2_200, "calls": 75}
MARGIN = 1.05
"""The tolerance, because the number of replies in one iteration of the event loop varies between runs."""


def counted(command: list[str], env: dict[str, str], counts: Path) -> dict[str, float]:
    """The cost of one job, counted by a program of `tests/apps/counting.py`."""
    subprocess.run(
        [sys.executable, *command],
        env={**env, "COUNTS": str(counts)},
        check=True,
        timeout=25,
        capture_output=True,
    )
    found: dict[str, float] = json.loads(counts.read_text())
    return found


def test_a_plain_job_stays_within_its_request_budget(
    server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    env = {**os.environ, "JSQ_URL": server.url, "JSQ_NAMESPACE": namespace}
    submit = counted(["-m", "tests.apps.counting"], env, tmp_path / "submit")
    worker = ["-m", "jsq", "worker", "tests.apps.counting:app", "--concurrency", "100", "--burst"]
    drain = counted([*worker, "--sweep", "0", "--log-level", "error"], env, tmp_path / "drain")

    assert all(submit[name] <= most * MARGIN for name, most in SUBMIT.items()), submit
    assert all(drain[name] <= most * MARGIN for name, most in DRAIN.items()), drain
