"""The judge of the chaos runs finds each kind of fault in a history that was made by hand."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from jsq.event import Event, LoggedEvent
from tests.chaos.checker import CHECKS, check, overlaps, recoveries
from tests.chaos.history import Effect, History, Submitted

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def logged(sequence: int, state: str, **fields: object) -> LoggedEvent:
    return LoggedEvent("default", "j1", sequence, NOON, Event(state, "work", **fields))  # type: ignore[arg-type]


QUEUED = logged(1, "queued")
RUNNING = logged(2, "running")
SUCCEEDED = logged(3, "succeeded", token=2, result="j1")
FAILED = logged(3, "failed", token=2, reason="error")
CANCELLED = logged(2, "cancelled")


def good() -> History:
    """A job that was submitted, ran, and succeeded."""
    return History(
        submits=[Submitted("j1", "acknowledged", 0.0)],
        effects=[Effect("begin", "j1", 2, 7, 1.0), Effect("end", "j1", 2, 7, 2.0)],
        events={"j1": [QUEUED, RUNNING, SUCCEEDED]},
        view={"j1": SUCCEEDED},
    )


def with_events(*events: LoggedEvent, **fields: object) -> History:
    return replace(good(), events={"j1": list(events)}, view={"j1": events[-1]}, **fields)  # type: ignore[arg-type]


BAD: dict[str, list[Callable[[], History]]] = {
    "I1": [lambda: replace(good(), events={}, view={}), lambda: with_events(QUEUED, RUNNING)],
    "I2": [lambda: with_events(QUEUED, RUNNING, SUCCEEDED, logged(4, "succeeded", token=2, result="j1"))],
    "I3": [lambda: replace(good(), effects=good().effects[:1])],
    "I4": [lambda: with_events(QUEUED, RUNNING, logged(3, "succeeded", token=2, result="j2"))],
    "I5": [
        lambda: with_events(
            QUEUED, RUNNING, logged(3, "running"), logged(4, "succeeded", token=2, result="j1")
        )
    ],
    "I7": [
        lambda: with_events(
            QUEUED, logged(2, "retrying"), logged(3, "running"), logged(4, "failed", token=3)
        ),
        lambda: replace(good(), view={"j1": RUNNING}),
    ],
    "I8": [
        lambda: with_events(QUEUED, RUNNING, FAILED),
        lambda: replace(good(), letters=["j1"]),
        lambda: with_events(QUEUED, RUNNING, FAILED, letters=["j1", "j1"]),
    ],
    "I9": [
        lambda: with_events(QUEUED, CANCELLED, cancelled={"j1"}),
        lambda: replace(good(), cancelled={"j1"}),
    ],
    "I10": [lambda: replace(good(), effects=[*good().effects, Effect("begin", "j9", 5, 7, 1.0)])],
    "I11": [lambda: replace(good(), left=["j1 is on the queue"])],
    "I15": [lambda: replace(good(), surprises=["KeyError: 'x'"])],
    "I16": [lambda: replace(good(), missing=["j1"])],
    "I17": [
        lambda: replace(good(), effects=[*good().effects, *[Effect("step", "j1", 2, 7, 1.5)] * 2]),
    ],
}


def violated(history: History) -> list[str]:
    return [name.split()[0] for name, found in check(history).items() if found]


def test_a_good_history_violates_nothing() -> None:
    assert violated(good()) == []
    assert violated(with_events(QUEUED, RUNNING, FAILED, letters=["j1"])) == []
    assert violated(with_events(QUEUED, CANCELLED, cancelled={"j1"}, effects=[])) == []


def test_every_invariant_has_a_history_that_breaks_it() -> None:
    assert [name.split()[0] for name in CHECKS] == list(BAD)


@pytest.mark.parametrize(
    ("name", "history"), [(name, history()) for name, made in BAD.items() for history in made]
)
def test_a_bad_history_is_found_out(name: str, history: History) -> None:
    assert name in violated(history)


def test_overlaps_and_recoveries_are_counted() -> None:
    first, second = Effect("begin", "j1", 2, 7, 1.0), Effect("begin", "j1", 3, 8, 4.0)
    history = replace(good(), effects=[first, second, Effect("end", "j1", 2, 7, 5.0)], kills=[(7, 1.5)])
    history.events = {"j1": [QUEUED, RUNNING, logged(3, "running")]}

    assert overlaps(history.effects) == 1
    assert recoveries(history) == [2.5]
