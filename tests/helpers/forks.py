"""The fixtures of tests that run `jsq` commands: a clean environment, and the fork server."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.helpers.forkserver import ForkServer


@pytest.fixture(scope="session")
def base_environment() -> dict[str, str]:
    """The environment of the tests, without variables that change the connection or the output of `jsq`."""
    unwanted = ("JSQ_", "NATS_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHON", "LC_", "LANG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return kept | {"LC_ALL": "C.UTF-8", "PYTHONWARNINGS": "error"}


@pytest.fixture(scope="session")
def forks(base_environment: dict[str, str]) -> Iterator[ForkServer]:
    with contextlib.closing(ForkServer(base_environment)) as forks:
        yield forks
