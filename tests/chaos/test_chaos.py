"""A minute of everything at once, and workers without fencing, which must be found out."""

from tests.chaos.checker import check
from tests.chaos.report import report
from tests.chaos.run import run

SECONDS = 60.0


async def test_what_is_broken_under_load_loses_and_doubles_nothing() -> None:
    found = await run(SECONDS, seed=11, rate=100)

    lines, proof = report(found, f"python -m tests.chaos --seconds {SECONDS:g} --seed 11 --rate 100")
    assert proof, "\n".join(lines)


async def test_workers_without_fencing_are_found_out() -> None:
    found = await run(40, seed=5, rate=100, only=["worker halted"], mutant=True, peace=5)

    violations = check(found.history)
    assert violations["I2 one final state"]
    assert violations["I5 no stale outcome"]
