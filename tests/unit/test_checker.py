"""The checker of the chaos runs detects each kind of violation in a history written by hand."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from jsq.model.rate_limit import Rate
from jsq.model.revision import Revision, StoredRevision
from tests.chaos.checker import CHECKS, check, overlaps, recoveries
from tests.chaos.flow_checker import happened
from tests.chaos.history import (
    Bulk,
    Edited,
    Effect,
    FlowSubmit,
    History,
    InjectedFault,
    Pause,
    Rescheduled,
    Submitted,
    SubmittedFlow,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def logged(sequence: int, state: str, **fields: object) -> StoredRevision:
    return StoredRevision("default", "j1", sequence, NOON, Revision(state, "work", **fields))  # type: ignore[arg-type]


RUNNING = logged(2, "running")
SUCCEEDED = logged(3, "succeeded", token=2, result="j1")
FAILED = logged(3, "failed", token=2, reason="error")
CANCELLED = logged(2, "cancelled")


def good() -> History:
    """A job that was submitted, ran, and succeeded."""
    return History(
        submits=[Submitted("j1", "acknowledged", 0.0)],
        effects=[Effect("begin", "j1", 2, 7, 1.0), Effect("end", "j1", 2, 7, 2.0)],
        events={"j1": [RUNNING, SUCCEEDED]},
        view={"j1": SUCCEEDED},
    )


def with_events(*events: StoredRevision, **fields: object) -> History:
    return replace(good(), events={"j1": list(events)}, view={"j1": events[-1]}, **fields)  # type: ignore[arg-type]


AT = NOON.timestamp()


def event(job: str, sequence: int, state: str, at: float = 0.0, **fields: object) -> StoredRevision:
    """An event of a job, `at` seconds after noon."""
    moment = NOON + timedelta(seconds=at)
    queue = str(fields.pop("queue", "default"))
    return StoredRevision(queue, job, sequence, moment, Revision(state, "work", **fields))  # type: ignore[arg-type]


def ran(job: str, begun: int, ended: int, **fields: object) -> list[StoredRevision]:
    """A job that began and ended at these sequences, which are also seconds after noon."""
    fields = {"submitted": NOON + timedelta(seconds=1), **fields}
    running = event(job, begun, "running", begun, **fields)
    return [running, event(job, ended, "succeeded", ended, token=begun, result=job, **fields)]


def history_of(submits: list[FlowSubmit], *jobs: list[StoredRevision], **fields: object) -> History:
    """A history of jobs with their submits, and the second in which each ran."""
    effects = [
        Effect(word, one.job, one.revision.token, 7, AT + at)
        for events in jobs
        for one in events
        if one.state == "succeeded"
        for word, at in (("begin", one.revision.token), ("end", one.sequence))
    ]
    history = History(
        submits=[Submitted(events[0].job, "acknowledged", AT) for events in jobs],
        effects=sorted(effects, key=lambda effect: effect.at),
        events={events[0].job: events for events in jobs},
        view={events[0].job: events[-1] for events in jobs},
        flow_submits=submits,
    )
    return replace(history, **fields)  # type: ignore[arg-type]


def argued(value: float) -> list[StoredRevision]:
    """A job that ran with an argument."""
    return ran("a", 2, 3, has_arguments=True, arguments=[[value], {}])


def twice() -> list[StoredRevision]:
    """A job that succeeded, and ran again."""
    return [*ran("a", 2, 3), event("a", 4, "retrying", 4, reason="replayed", token=3), *ran("a", 5, 6)]


def keyed(*jobs: list[StoredRevision], **fields: object) -> History:
    """Jobs of one key, in the order of their submits."""
    return history_of([FlowSubmit("keyed", events[0].job, AT, AT, "k") for events in jobs], *jobs, **fields)


def unique(key: str, *jobs: list[StoredRevision], **fields: object) -> History:
    return history_of([FlowSubmit("unique", events[0].job, AT, AT, key) for events in jobs], *jobs, **fields)


def returned(job: str, key: str, after: float) -> FlowSubmit:
    """A duplicate that a submit returned `after` seconds after noon."""
    return FlowSubmit("unique", job, AT + after, AT + after + 0.1, key, duplicate=True)


def expiring(*events: StoredRevision, ran_at: float | None = None) -> History:
    """A job that expires five seconds after noon."""
    effects = [] if ran_at is None else [Effect("begin", "a", 2, 7, AT + ran_at)]
    asked = FlowSubmit("expiring", "a", AT, AT, expires=AT + 5.1)
    return history_of([asked], list(events), effects=effects)


def limited(moments: list[float], **fields: object) -> History:
    """A task that may start twice a second, and started at these seconds after noon."""
    effects = [Effect("begin", f"a{at}", 2, 7, AT + at) for at in moments]
    jobs = [[event(f"a{at}", 2, "cancelled")] for at in moments]
    return history_of([], *jobs, effects=effects, rates={"work": Rate(2)}, **fields)


def due(after: float, *moved: Rescheduled) -> History:
    """A job that began 5 seconds after noon and was due `after` seconds after noon."""
    return history_of(
        [FlowSubmit("moved", "a", AT, AT, due=AT + after)], ran("a", 5, 6), rescheduled=list(moved)
    )


def moved(after: float, *, known: bool = True) -> Rescheduled:
    return Rescheduled("a", AT + after, promoted=False, known=known)


def paused(begun: int, *broken: InjectedFault) -> History:
    """A queue that was paused from second 10 to 20, and a job that began at second `begun`."""
    pause = Pause("gated", AT + 10, AT + 20)
    return history_of([], ran("a", begun, 30, queue="gated"), pauses=[pause], injected_faults=list(broken))


def bulk(outcome: str, *stored: str) -> History:
    return history_of([], *(ran(job, 2, 3) for job in stored), bulks=[Bulk(("a", "b"), outcome)])


EXPIRES = NOON + timedelta(seconds=5)
RETRYING = event("a", 3, "retrying", 3, token=2, key="k")


def ticking(*ticks: str, made: list[str]) -> History:
    """A schedule with expected ticks, where the jobs of `made` were submitted and ran."""
    ran = [Effect(word, id, 2, 7, at) for id in made for word, at in (("begin", 1.0), ("end", 2.0))]
    events = {
        id: [replace(event, job=id) for event in (RUNNING, logged(3, "succeeded", token=2, result=id))]
        for id in made
    }
    return History(ticks=list(ticks), events=events, effects=ran)


def crashed(starts: int, crashes: int) -> History:
    """The job of a tick that was started `starts` times and failed as `crashed` with this crash count."""
    running = [logged(2 + number, "running", crashes=number) for number in range(starts)]
    last = logged(2 + starts, "failed", token=1 + starts, reason="crashed", crashes=crashes)
    events = [replace(event, job="each-1") for event in (*running, last)]
    return History(ticks=["each-1"], events={"each-1": events}, dead_letters=["each-1"])


BAD: dict[str, list[Callable[[], History]]] = {
    "I1": [lambda: replace(good(), events={}, view={}), lambda: with_events(RUNNING)],
    "I2": [lambda: with_events(RUNNING, SUCCEEDED, logged(4, "succeeded", token=2, result="j1"))],
    "I3": [lambda: replace(good(), effects=good().effects[:1])],
    "I4": [lambda: with_events(RUNNING, logged(3, "succeeded", token=2, result="j2"))],
    "I5": [lambda: with_events(RUNNING, logged(3, "running"), logged(4, "succeeded", token=2, result="j1"))],
    "I6": [
        lambda: replace(good(), doubled=["j1"]),
    ],
    "I7": [
        lambda: with_events(logged(2, "retrying"), logged(3, "running"), logged(4, "failed", token=3)),
        lambda: replace(good(), view={"j1": RUNNING}),
    ],
    "I8": [
        lambda: with_events(RUNNING, FAILED),
        lambda: replace(good(), dead_letters=["j1"]),
        lambda: with_events(RUNNING, FAILED, dead_letters=["j1", "j1"]),
    ],
    "I9": [
        lambda: with_events(CANCELLED, cancelled={"j1"}),
        lambda: replace(good(), cancelled={"j1"}),
    ],
    "I10": [lambda: replace(good(), effects=[*good().effects, Effect("begin", "j9", 5, 7, 1.0)])],
    "I11": [lambda: replace(good(), leftovers=["j1 is on the queue"])],
    "I12": [
        lambda: replace(
            good(),
            lease=5.0,
            kills=[(6, 0.5)],
            effects=[
                Effect("begin", "j1", 1, 6, 0.4),
                *(replace(effect, at=effect.at + 6) for effect in good().effects),
            ],
        )
    ],
    "I13": [
        lambda: ticking("each-1", "each-2", made=["each-1"]),
        lambda: ticking("each-1", "each-3", made=["each-1", "each-2", "each-3"]),
        lambda: crashed(starts=3, crashes=2),
        lambda: crashed(starts=2, crashes=3),
    ],
    "I14": [
        lambda: flowing(ran("w-0", 2, 3), ran("w-1", 4, 5)),  # it has not ended
        lambda: flowing(ran("w-0", 2, 5), ran("w-1", 4, 6), ran("w", 1, 9)),  # a node started early
        lambda: flowing(ran("w-0", 2, 3), ran("w", 1, 9)),  # a node is missing
        lambda: flowing(
            ran("w-0", 2, 3), ran("w-1", 4, 5), ran("w-2", 6, 7), ran("w", 1, 9)
        ),  # a strange one
    ],
    "I15": [lambda: replace(good(), unexpected_errors=["KeyError: 'x'"])],
    "I16": [lambda: replace(good(), missing=["j1"])],
    "I17": [
        lambda: replace(good(), effects=[*good().effects, *[Effect("step", "j1", 2, 7, 1.5)] * 2]),
    ],
    "I18": [
        lambda: keyed(ran("a", 4, 5, key="k"), ran("b", 2, 3, key="k")),
        lambda: keyed(ran("a", 6, 7, key="k"), [event("b", 2, "cancelled")], ran("c", 4, 5)),
        lambda: keyed([event("a", 9, "cancelled")], ran("b", 2, 3, key="k")),
    ],
    "I19": [
        lambda: keyed(ran("a", 2, 5, key="k"), ran("b", 3, 6, key="k")),
        lambda: keyed(  # b began while a waited for its next attempt
            [
                event("a", 2, "running", key="k"),
                RETRYING,
                *ran("a", 6, 7, key="k"),
            ],
            ran("b", 4, 5, key="k"),
        ),
        lambda: keyed(
            ran("a", 2, 3, key="k"),
            ran("b", 4, 5, key="k"),
            effects=[
                Effect("begin", "a", 2, 7, 1.0),
                Effect("begin", "b", 4, 7, 2.0),
                Effect("end", "a", 2, 7, 3.0),
                Effect("end", "b", 4, 7, 4.0),
            ],
        ),
    ],
    "I20": [
        lambda: unique("finish-0", ran("a", 2, 5), ran("b", 6, 7)),
        lambda: unique(
            "start-0",
            ran("a", 5, 6),
            ran("b", 4, 7),
        ),
        lambda: unique("keep_last-0", ran("a", 2, 5), ran("b", 3, 7)),
    ],
    "I21": [
        lambda: history_of([returned("a", "finish-0", 4)], ran("a", 2, 3)),
        lambda: history_of([returned("a", "start-0", 4)], ran("a", 2, 9)),
        lambda: history_of([returned("b", "finish-0", 4)], ran("a", 2, 3)),
    ],
    "I22": [
        lambda: expiring(*ran("a", 6, 7, expires=EXPIRES), ran_at=6),
        lambda: expiring(
            event("a", 2, "expired", 6, expires=EXPIRES),
            ran_at=4,
        ),
        lambda: expiring(*ran("a", 2, 3), ran_at=2),
    ],
    "I23": [lambda: limited([0.0, 0.4, 0.9])],
    "I24": [
        lambda: due(6),
        lambda: due(1, moved(6)),
        lambda: due(6, moved(7, known=False)),
    ],
    "I25": [
        lambda: paused(15),
        lambda: paused(15, InjectedFault("link held", AT + 2, AT + 9)),
        lambda: paused(15, InjectedFault("link held", AT + 14, AT + 15)),
    ],
    "I26": [lambda: bulk("unknown", "a"), lambda: bulk("acknowledged"), lambda: bulk("QueueFull", "b")],
    "I27": [
        lambda: history_of([FlowSubmit("batched", "a", key="bad")], ran("a", 2, 3)),
        lambda: history_of(
            [FlowSubmit("batched", "a", key="good")],
            [event("a", 2, "running"), event("a", 3, "failed", reason="rejected")],
        ),
        lambda: replace(good(), effects=[*good().effects, Effect("begin", "j1", 2, 7, 1.5)]),
    ],
    "I28": [
        lambda: narrow((1, 5, 7), (2, 4, 8), (3, 6, 7)),
        lambda: narrow((1, 5, 7), (2, 0, 8), (3, 6, 7), kills=[(8, AT + 3.5)]),
        lambda: narrow(
            (1, 5, 7),
            (2, 9, 8),
            (3, 6, 7),
            injected_faults=[InjectedFault("worker halted", AT + 2.5, AT + 8, 8)],
        ),
        lambda: narrow(
            (1, 9, 7), (2, 9, 8), (6, 9, 7), injected_faults=[InjectedFault("link held", AT + 3, AT + 4.5)]
        ),
    ],
    "I29": [
        lambda: history_of([], argued(0.5), edited=[Edited("a", value=0.25)]),
        lambda: history_of([], argued(0.5), edited=[Edited("a", 0.25), Edited("a", 0.75, known=False)]),
        lambda: history_of([], ran("a", 2, 3), edited=[Edited("a", queue="apart")]),
    ],
    "I30": [
        lambda: history_of([], ran("a", 2, 3), again={"a": True}),
        lambda: history_of([], twice()),
    ],
    "I31": [
        lambda: with_events(RUNNING, FAILED, hooked=frozenset({"work"}), dead_letters=["j1"]),
        lambda: replace(good(), refused="work"),
    ],
}


def narrow(*runs: tuple[float, float, int], **fields: object) -> History:
    """Runs of a task with a concurrency of two, each with its start, its end and its process."""
    effects = []
    for number, (begun, left, pid) in enumerate(runs):
        effects.append(Effect("begin", f"n{number}", 2, pid, AT + begun))
        if left:
            effects.append(Effect("left", f"n{number}", 2, pid, AT + left))
    history = history_of([], *(ran(f"n{number}", 2, 3) for number in range(len(runs))))
    effects.sort(key=lambda effect: effect.at)
    return replace(history, effects=effects, concurrency={"work": 2}, slot_lease=4.0, **fields)  # type: ignore[arg-type]


def flowing(*jobs: list[StoredRevision]) -> History:
    """A history of the workflow `w` whose node 1 waits for node 0."""
    return replace(history_of([], *jobs), flows=[SubmittedFlow("w", ((), (0,)))])


def violated(history: History) -> list[str]:
    return [name.split()[0] for name, found in check(history).items() if found]


def test_a_good_history_violates_nothing() -> None:
    assert violated(good()) == []
    assert violated(with_events(RUNNING, FAILED, dead_letters=["j1"])) == []
    assert violated(with_events(CANCELLED, cancelled={"j1"}, effects=[])) == []
    assert violated(ticking("each-1", "each-2", made=["each-1", "each-2"])) == []
    assert violated(crashed(starts=3, crashes=3)) == []


def test_the_flow_invariants_accept_everything_that_jsq_allows() -> None:
    crashed = [
        event("a", 2, "running", key="k"),
        *ran("a", 3, 4, key="k"),
    ]
    stale = [Effect("begin", "a", 2, 7, AT), Effect("end", "a", 2, 7, AT + 5.5)]
    started_twice = keyed(crashed, ran("b", 5, 6, key="k"))
    assert violated(replace(started_twice, effects=[*stale, *started_twice.effects])) == []

    replayed = [
        *[event("a", 2, "running", key="k")],
        *[event("a", 3, "failed", key="k", token=2), event("a", 6, "retrying", key="k")],
        *ran("a", 7, 8, key="k"),
    ]
    assert violated(keyed(replayed, ran("b", 4, 5, key="k"))) == []
    assert violated(unique("finish-0", replayed, ran("b", 6, 9, submitted=NOON + timedelta(seconds=5)))) == []

    waits = ran("b", 6, 7, submitted=NOON + timedelta(seconds=3))
    assert violated(unique("keep_last-0", ran("a", 2, 5), waits)) == []
    assert violated(unique("start-0", ran("a", 2, 5), waits)) == []
    assert violated(history_of([returned("a", "finish-0", 2.5)], ran("a", 2, 3))) == []

    late = (event("a", 2, "running", 6, expires=EXPIRES),)
    assert violated(expiring(*late, event("a", 3, "expired", 6, expires=EXPIRES))) == []
    assert violated(limited([0.0, 0.4, 1.0])) == []
    assert (
        violated(limited([0.0, 0.4, 0.9], injected_faults=[InjectedFault("worker halted", AT, AT + 0.8, 7)]))
        == []
    )
    assert violated(due(4)) == violated(due(6, moved(4))) == violated(due(6, moved(4, known=False))) == []
    assert violated(paused(11)) == violated(paused(21)) == []
    assert violated(paused(15, InjectedFault("link held", AT + 9, AT + 14))) == []
    assert "I28" not in violated(narrow((1, 3, 7), (2, 5, 8), (3, 6, 7)))
    assert "I28" not in violated(narrow((1, 5, 7), (2, 0, 8), (3, 6, 7), kills=[(8, AT + 2.5)]))
    halted = [InjectedFault("worker halted", AT + 0.5, AT + 8, 8)]
    assert "I28" not in violated(narrow((1, 9, 7), (0.4, 9, 8), (3, 6, 7), injected_faults=halted))
    stopped = [InjectedFault("leader halted", AT + 0.5, AT + 8, 0)]
    assert "I28" not in violated(narrow((2.2, 9, 7), (2.6, 9, 8), (3, 6, 7), injected_faults=stopped))
    assert violated(bulk("unknown")) == violated(bulk("acknowledged", "a", "b")) == []


def test_edits_and_second_runs_that_hold_are_accepted() -> None:
    unknown = [Edited("a", value=0.25), Edited("a", value=0.5, known=False)]
    assert violated(history_of([], argued(0.5), edited=unknown)) == []
    assert violated(history_of([], argued(0.5), edited=[Edited("a", value=0.5)])) == []
    assert violated(history_of([], twice(), again={"a": True})) == []


def test_a_hooked_job_may_succeed_after_failures_or_die_of_crashes() -> None:
    hooked = frozenset({"work"})
    assert violated(with_events(RUNNING, SUCCEEDED, hooked=hooked, refused="other")) == []
    assert violated(replace(crashed(starts=3, crashes=3), hooked=hooked)) == []
    again = logged(3, "succeeded", token=2, result="j1", failures=2)
    assert happened(with_events(RUNNING, again, hooked=hooked))["successes of work"] == 1
    assert happened(with_events(RUNNING, SUCCEEDED, hooked=hooked))["successes of work"] == 0


def test_the_checker_counts_whether_each_situation_occurred() -> None:
    assert not any(happened(good()).values())

    history = unique("finish-0", ran("a", 2, 3), rates={"work": Rate(2)}, rescheduled=[moved(4)])

    history.flow_submits += [
        returned("a", "finish-0", 2.5),
        FlowSubmit("keyed", "b"),
        FlowSubmit("batched", "c"),
        FlowSubmit("expiring", "d"),
    ]
    history.events["d"] = [event("d", 2, "expired")]
    history.rescheduled.append(Rescheduled("a", AT, promoted=True, known=True))
    history.edited += [Edited("a", 0.5), Edited("a", 0.5, known=False)]
    history.again |= {"a": True, "b": False}
    history.bulks += [Bulk(("a", "b"), "unknown"), Bulk(("a", "b"), "acknowledged")]
    history.pauses.append(Pause("gated", AT, AT + 9))
    history.effects.append(Effect("begin", "d", 5, 7, AT + 2.5))

    assert happened(history) == {
        **dict.fromkeys(
            ["jobs with a key", "unique jobs", "duplicates", "jobs with an expiry", "expired"], 1
        ),
        "starts of work": 2,
        **dict.fromkeys(["rates used up", "promoted", "rescheduled", "items of batches", "pauses"], 1),
        **dict.fromkeys(["edited", "run again"], 1),
        "atomic submits": 1,
        "limits used up": 0,
    }


def test_every_invariant_has_a_history_that_breaks_it() -> None:
    assert [name.split()[0] for name in CHECKS] == list(BAD)


@pytest.mark.parametrize(
    ("name", "history"), [(name, history()) for name, made in BAD.items() for history in made]
)
def test_a_bad_history_violates_its_invariant(name: str, history: History) -> None:
    assert name in violated(history)


def test_overlaps_and_recoveries_are_counted() -> None:
    first, second = Effect("begin", "j1", 2, 7, 1.0), Effect("begin", "j1", 3, 8, 4.0)
    history = replace(good(), effects=[first, second, Effect("end", "j1", 2, 7, 5.0)], kills=[(7, 1.5)])
    history.events = {"j1": [RUNNING, logged(3, "running")]}

    assert overlaps(history.effects) == 1
    assert recoveries(history) == [2.5]
