"""Ten seconds of faults, a minute of every kind of fault, and faulty workers that the checker must detect."""

import pytest

from tests.chaos.checker import check
from tests.chaos.flow_checker import happened
from tests.chaos.report import report
from tests.chaos.run import run

SECONDS = 60.0


FAST = ("worker killed", "worker stopped", "server killed", "link cut")
"""Faults that end at once. Other faults may last longer than the short run."""


@pytest.mark.timeout(60)  # ten seconds of load; then the remaining jobs, on a machine that may be busy
async def test_ten_seconds_of_faults_violate_no_invariant() -> None:
    found = await run(10, seed=3, rate=30, only=FAST, quiet=30)

    lines, _ = report(found, "ten seconds")
    assert set(found.faults) >= {"worker killed", "server killed"}, "\n".join(lines)
    assert not any(check(found.history).values()), "\n".join(lines)


@pytest.mark.proof
async def test_faults_under_load_lose_and_double_no_job() -> None:
    found = await run(SECONDS, seed=11, rate=100)

    lines, proof = report(found, f"python -m tests.chaos --seconds {SECONDS:g} --seed 11 --rate 100")
    assert proof, "\n".join(lines)
    assert all(happened(found.history).values())


@pytest.mark.proof
async def test_the_checker_detects_workers_without_fencing() -> None:
    found = await run(40, seed=5, rate=100, only=["worker halted"], mutants=["fencing"], quiet=5)

    violations = check(found.history)
    assert violations["I2 a job has one final state"]
    assert violations["I5 no stale attempt records an outcome"]


@pytest.mark.proof
async def test_the_checker_detects_workers_that_ignore_key_groups_limits_and_expiry() -> None:
    lacking = ["groups", "expiry", "slots"]
    found = await run(20, seed=5, rate=60, only=["worker halted"], mutants=lacking, quiet=5)

    violations = check(found.history)
    assert violations["I19 one job of a key runs at a time"]
    assert violations["I22 expired jobs never start"]
    assert violations["I28 no concurrency limit is exceeded"]


@pytest.mark.proof
async def test_the_checker_detects_joins_that_count() -> None:
    found = await run(20, seed=5, rate=60, only=["worker halted"], mutants=["joins"], quiet=5)

    assert check(found.history)["I14 each join fires once"]
