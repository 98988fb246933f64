"""Checks a history against the invariants of jobs.

The checks are pure functions: they only read the history.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from jsq.model.revision import EDITED, FINAL_STATES, TRANSITIONS, StoredRevision, is_progress_report
from jsq.settings import QueueSettings
from tests.chaos.flow_checker import (
    all_or_none,
    duplicate_held_its_key,
    expired_never_start,
    in_order,
    items_are_independent,
    none_early,
    one_at_a_time,
    one_unique_holder,
    paused_never_start,
    within_concurrency,
    within_rate,
)
from tests.chaos.history import Effect, History
from tests.chaos.workflows import is_of_workflow, is_workflow, joins_fire_once

Check = Callable[[History], Iterator[str]]

UNKNOWN_TOKEN = 0
"""The token that is noted by tasks without a `Context`, which do not know their token."""

TICKING = "each"
"""The schedule of a run. It ticks every second and catches up all missed ticks."""


def check(history: History) -> dict[str, list[str]]:
    """The violations of each invariant; an empty list if there are none."""
    return {name: list(judge(history)) for name, judge in CHECKS.items()}


def runs(events: list[StoredRevision]) -> list[StoredRevision]:
    return [event for event in events if not is_progress_report(event.revision)]


def i1(history: History) -> Iterator[str]:
    for submit in history.submits:
        if submit.outcome == "acknowledged":
            states = [event.state for event in history.events.get(submit.job, ())]
            if not states or states[-1] not in FINAL_STATES:
                yield f"{submit.job} was acknowledged, and its states are {states or 'missing'}"


def i2(history: History) -> Iterator[str]:
    for job, events in history.events.items():
        for before, after in pairwise(runs(events)):
            again = after.state == "retrying" and (before.state == "failed" or job in history.again)
            if before.state in FINAL_STATES and not again:
                yield f"{job} is {after.state} after it was {before.state}"


def i3(history: History) -> Iterator[str]:
    ended = {(effect.job, effect.token) for effect in history.effects if effect.word == "end"}
    for job, events in history.events.items():
        for event in events:
            if is_workflow(events):
                break  # no function runs; see I14
            if event.state == "succeeded" and not ended & {(job, event.revision.token), (job, UNKNOWN_TOKEN)}:
                yield f"{job} has succeeded, and none of its runs has ended"


def i4(history: History) -> Iterator[str]:
    for job, events in history.events.items():
        results = {str(event.revision.result) for event in events if event.state == "succeeded"}
        if len(results) > 1 or (results and results != {job} and not is_workflow(events)):
            yield f"{job} has the results {sorted(results)}"


def i5(history: History) -> Iterator[str]:
    for job, events in history.events.items():
        token = 0
        for event in runs(events):
            if event.state == "running":
                token = event.sequence
            elif event.revision.reason in ("replayed", EDITED):
                continue  # a client retried the job, or edited it once more
            elif (
                event.revision.token and event.revision.token != token and event.revision.reason != "crashed"
            ):
                yield f"{job} is {event.state} by attempt {event.revision.token}, and the last one is {token}"


def i6(history: History) -> Iterator[str]:
    for id in history.doubled:
        yield f"{id} was submitted again and became another job"


def i7(history: History) -> Iterator[str]:
    for job, events in history.events.items():
        states = [event.state for event in runs(events)]
        waits = [] if states[:1] == ["scheduled"] else ["queued"]  # an edit records that a job is due later
        for before, after in pairwise([*waits, *states]):
            ended_well = before in ("succeeded", "cancelled", "expired")
            if after not in TRANSITIONS[before] or (ended_well and job not in history.again):
                yield f"{job} is {after} after it was {before}"
        seen = history.view.get(job)
        if states and seen is not None and seen.sequence != runs(events)[-1].sequence:
            yield f"{job} is shown as {seen.state}, and its last event is {states[-1]}"


def i8(history: History) -> Iterator[str]:
    letters = Counter(history.dead_letters)
    for job, events in history.events.items():
        failed = events[-1].state == "failed"
        if letters[job] != int(failed):
            yield f"{job} is {events[-1].state} and has {letters[job]} dead letters"


def i9(history: History) -> Iterator[str]:
    ran = {effect.job for effect in history.effects}
    for job in history.cancelled:
        states = [event.state for event in history.events.get(job, ())]
        if "cancelled" in states and "running" not in states and job in ran:
            yield f"{job} was cancelled before its start and ran"
        if states and states[-1] != "cancelled" and job not in history.again:
            yield f"the cancellation of {job} was confirmed, and its state is {states[-1]}"


def i10(history: History) -> Iterator[str]:
    known = {submit.job for submit in history.submits}
    for job in {effect.job for effect in history.effects} - known:
        if is_of_workflow(history, job):
            continue  # see I14
        if not (history.ticks and job.startswith(f"{TICKING}-")):  # see I13
            yield f"{job} ran without having been submitted"


def i11(history: History) -> Iterator[str]:
    yield from history.leftovers


def i12(history: History) -> Iterator[str]:
    found = recoveries(history) if history.lease else []
    if found and (late := percentile_99(found)) > history.lease + 1:
        yield f"jobs of killed workers started again after {late:.1f} s; the lease is {history.lease:g} s"


def i13(history: History) -> Iterator[str]:
    for id in history.ticks:
        events = history.events.get(id, [])
        states = [event.state for event in events]
        if not states or (states[-1] != "succeeded" and not died_of_crashes(events)):
            yield f"{id} is the job of a tick, and its states are {states or 'missing'}"
    for job in history.events.keys() - set(history.ticks):
        if job.startswith(f"{TICKING}-") and history.ticks and job < history.ticks[-1]:
            yield f"{job} belongs to no tick"


def died_of_crashes(events: list[StoredRevision]) -> bool:
    """Whether a job failed as `crashed` correctly: it started and crashed as often as its queue permits."""
    last, starts = events[-1], sum(event.state == "running" for event in events)
    crashed = last.state == "failed" and last.revision.reason == "crashed"
    return crashed and min(last.revision.crashes, starts) >= QueueSettings().max_crashes


def i15(history: History) -> Iterator[str]:
    yield from history.unexpected_errors


def i16(history: History) -> Iterator[str]:
    for job in history.missing:
        yield f"{job} was acknowledged and later not found"


def i17(history: History) -> Iterator[str]:
    taken = Counter(effect.job for effect in history.effects if effect.word == "step")
    for job, times in taken.items():
        if times > 1:
            yield f"{job} executed its step {times} times"


def i29(history: History) -> Iterator[str]:
    """An acknowledged edit holds, unless a later one may have replaced it."""
    values: dict[str, set[object]] = defaultdict(set)
    queues: dict[str, set[str]] = defaultdict(set)
    for one in history.edited:
        if one.value is not None:
            values[one.job] = {one.value} if one.known else values[one.job] | {one.value}
        else:
            queues[one.job] = {one.queue} if one.known else queues[one.job] | {one.queue}
    known = {(one.job, one.value is None) for one in history.edited if one.known}
    for job, events in history.events.items():
        last = events[-1].revision
        value = last.arguments[0][0] if (job, False) in known and last.has_arguments else None
        if value is not None and value not in values[job]:
            yield f"{job} has the argument {value}, and was given {sorted(map(str, values[job]))}"
        if (job, True) in known and last.quarantine not in queues[job]:
            yield f"{job} is on the queue {last.quarantine or 'of its submit'}, and was moved"


def i30(history: History) -> Iterator[str]:
    """A second run that was acknowledged takes place, and nothing else runs a job again that did not fail."""
    for job, events in history.events.items():
        replays = sum(one.revision.reason == "replayed" for one in runs(events) if one.state == "retrying")
        if history.again.get(job) and not replays:
            yield f"{job} was to run again, and did not"
        failed = any(one.state == "failed" for one in events)
        if replays and not failed and job not in history.again:
            yield f"{job} ran again, and nobody requested that"


def i31(history: History) -> Iterator[str]:
    """The errors of hooks fail no job for good, and a job that a middleware refuses is not stored."""
    for job, events in history.events.items():
        last = events[-1]
        if last.revision.task in history.hooked and last.state == "failed" and not died_of_crashes(events):
            yield f"{job} failed because of its hooks: {last.revision.error}"
        if history.refused and last.revision.task == history.refused:
            yield f"{job} was refused by its middleware, and is stored"


CHECKS: dict[str, Check] = {
    "I1 every acknowledged job reaches a final state": i1,
    "I2 a job has one final state": i2,
    "I3 a job succeeds only after a run": i3,
    "I4 a job has one result": i4,
    "I5 no stale attempt records an outcome": i5,
    "I6 an id belongs to one job": i6,
    "I7 the transitions are valid and the last event is shown": i7,
    "I8 a job has one dead letter if and only if it failed": i8,
    "I9 a job cancelled before its start never runs": i9,
    "I10 only submitted jobs run": i10,
    "I11 nothing is left over": i11,
    "I12 the jobs of a killed worker start again within the lease and a second": i12,
    "I13 every tick has one job": i13,
    "I14 each join fires once": joins_fire_once,
    "I15 clients see only documented errors": i15,
    "I16 an acknowledged job is always found": i16,
    "I17 a step is executed at most once": i17,
    "I18 jobs of a key start in the order of their submits": in_order,
    "I19 one job of a key runs at a time": one_at_a_time,
    "I20 a unique key is held by one job at a time": one_unique_holder,
    "I21 a returned duplicate held the unique key": duplicate_held_its_key,
    "I22 expired jobs never start": expired_never_start,
    "I23 no rate limit is exceeded": within_rate,
    "I24 no job starts before it is due": none_early,
    "I25 no job of a paused queue starts": paused_never_start,
    "I26 an atomic submit stores all jobs or none": all_or_none,
    "I27 each item of a batch has its own outcome": items_are_independent,
    "I28 no concurrency limit is exceeded": within_concurrency,
    "I29 an acknowledged edit holds": i29,
    "I30 a second run takes place if and only if it was requested": i30,
    "I31 the errors of hooks change no outcome": i31,
}
"""I12 is checked only if no server or link was affected."""


def overlaps(effects: list[Effect]) -> int:
    """The number of runs that began while another run of the same job had not ended, if its end is known."""
    ends = {(effect.job, effect.token): effect.at for effect in effects if effect.word == "end"}
    begun: dict[str, list[Effect]] = defaultdict(list)
    found = 0
    for effect in effects:
        if effect.word == "begin" and effect.token != UNKNOWN_TOKEN:
            found += any(ends.get((one.job, one.token), 0.0) > effect.at for one in begun[effect.job])
            begun[effect.job].append(effect)
    return found


def recoveries(history: History) -> list[float]:
    """The seconds from the kill of a worker to the next start of each job that it ran, in ascending order."""
    recorded = {event.revision.token for events in history.events.values() for event in events}
    begins = [effect for effect in history.effects if effect.word == "begin"]
    found = []
    for pid, at in history.kills:
        for held in begins:
            if held.pid == pid and held.at <= at and held.token not in recorded | {UNKNOWN_TOKEN}:
                again = next((one.at for one in begins if one.job == held.job and one.at > at), None)
                found += [again - at] if again is not None else []
    return sorted(found)


def percentile_99(values: list[float]) -> float:
    """The 99th percentile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * 0.99))]
