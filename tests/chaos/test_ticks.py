"""A quarter of a minute of ticks with faults; `python -m tests.chaos.ticks` runs for longer."""

from datetime import UTC, datetime, timedelta

import pytest

from jsq.model.job import JobRecord
from jsq.model.schedule import tick_id
from tests.chaos.history import Effect
from tests.chaos.ticks import Outcome, run

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.proof
async def test_a_schedule_ticks_each_second_exactly_once_despite_kills() -> None:
    outcome = await run(15, kills=4, seed=3)

    assert outcome.violations() == [], "\n".join(outcome.report())
    assert len(outcome.ticks) >= 14
    assert {what for what, _ in outcome.kills} == {"server", "worker"}


def test_the_checker_detects_lost_doubled_and_unexpected_ticks() -> None:
    ticks = [NOON + timedelta(seconds=number) for number in range(5)]
    ids = [tick_id("every", tick) for tick in ticks]
    outcome = Outcome(ticks)
    for id, tick in zip(ids, ticks, strict=True):
        outcome.jobs[id] = JobRecord(id, "default", "succeeded")
        outcome.effects.append(Effect("end", id, 1, 1, tick.timestamp()))
    assert outcome.violations() == []

    outcome.effects.append(Effect("end", ids[3], 2, 1, ticks[4].timestamp()))
    del outcome.jobs[ids[1]]
    half = tick_id("every", ticks[2] + timedelta(seconds=0.5))
    outcome.jobs[half] = JobRecord(half, "default", "succeeded")
    outcome.effects.append(Effect("end", half, 1, 1, 0))
    outcome.submits = {f"newest-{number}": 0.1 * number for number in range(3)}

    assert outcome.violations() == [
        f"{ids[1]}: no job for the tick",
        f"{half}: a job without a tick",
        f"{ids[3]}: ran 2 times",
        "newest: three jobs within 0.5 s at 0.0",
    ]
