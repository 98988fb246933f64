"""Checks flow control in a history: times, expiry, unique keys, keys and limits.

All checks are pure functions.

The guarantees of a key are checked against the event log, in which all events have one order. That jobs of
one key never run at the same time is also checked against the notes of the jobs themselves. Times of clients,
tasks and the server can be compared, because all of them run on one machine with one clock.
"""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jsq.model.revision import FINAL_STATES, StoredRevision, is_progress_report
from tests.chaos.history import Effect, FlowSubmit, History

GRACE = 2.0
"""Seconds after the start of a pause in which jobs delivered before it may start, on a busy machine."""

DELAYING_FAULTS = ("held", "slowed", "halted", "partitioned")
"""Words in the names of faults that delay a delivery without losing it."""

HALTED = 0.5
"""Seconds after a halted worker resumes in which a start may be late."""

CLOSE = 0.05
"""Seconds by which two times of the same event may differ."""


USED = 0.75
"""The share of a rate from which a window counts as used up."""


@dataclass(frozen=True)
class Life:
    """From the first start of a job to its end, as sequences of the log.

    A retried dead letter has another life.
    """

    job: str
    begun: float
    ended: float


def lives(events: list[StoredRevision]) -> list[Life]:
    """All lives of one job."""
    found: list[Life] = []
    begun = math.inf
    for event in events:
        if event.state == "running":
            begun = min(begun, event.sequence)
        elif event.state in FINAL_STATES and begun < math.inf:
            found.append(Life(event.job, begun, event.sequence))
            begun = math.inf
    return [*found, Life(events[0].job, begun, math.inf)] if begun < math.inf else found


def first(events: list[StoredRevision], *states: str) -> StoredRevision | None:
    return next(
        (event for event in events if event.state in states and not is_progress_report(event.revision)), None
    )


def overlapping(held: list[Life]) -> Iterator[tuple[Life, Life]]:
    """The pairs of lives of different jobs where the second began before the end of the first."""
    longest: Life | None = None
    for one in sorted(held, key=lambda life: life.begun):
        if longest is not None and one.job != longest.job and one.begun < longest.ended:
            yield longest, one
        if longest is None or one.ended > longest.ended:
            longest = one


def by_key(history: History, kind: str) -> dict[str, dict[str, FlowSubmit]]:
    """Acknowledged submits of a kind, in their order, by key and by job."""
    found: dict[str, dict[str, FlowSubmit]] = defaultdict(dict)
    for submit in history.flow_submits:
        if submit.kind == kind:
            found[submit.key].setdefault(submit.job, submit)
    return found


def key_of(history: History) -> dict[str, str]:
    """The key of each job in a key group, read from its events, because not all submits were acknowledged."""
    keys = {job: next((one.revision.key for one in events), "") for job, events in history.events.items()}
    return {job: key for job, key in keys.items() if key}


# -- how many at once ------------------------------------------------------------------------------------


def in_order(history: History) -> Iterator[str]:
    """A job starts only after the end of every job of its key that was submitted before it.

    Checked for jobs without a delay: each of them was submitted when the one before was acknowledged. A
    retried dead letter goes to the end of its key queue.
    """
    for key, submits in by_key(history, "keyed").items():
        over, before = 0.0, ""
        for job in (one.job for one in submits.values() if not one.due):
            events = history.events.get(job, [])
            begun, ended = first(events, "running"), first(events, *FINAL_STATES)
            if begun is not None and begun.sequence < over:
                yield f"{job} of {key} began at {begun.sequence}, before the end of {before} at {over}"
            end = float(ended.sequence) if ended is not None else math.inf
            if events and end > over:
                over, before = end, job


def one_at_a_time(history: History) -> Iterator[str]:
    """No job starts while another job of its key holds the slot: from its start to its end, retries included.

    The successful runs of the jobs do not overlap either.
    """
    keys = key_of(history)
    held: dict[str, list[Life]] = defaultdict(list)
    ran: dict[str, list[Life]] = defaultdict(list)
    begins = {(one.job, one.token): one.at for one in history.effects if one.word == "begin"}
    ends = {(one.job, one.token): one.at for one in history.effects if one.word == "end"}
    for job, key in keys.items():
        events = history.events[job]
        held[key] += lives(events)
        run = next((one.revision.token for one in events if one.state == "succeeded"), 0)
        if (job, run) in begins and (job, run) in ends:
            ran[key].append(Life(job, begins[job, run], ends[job, run]))
    for what, by_group in (("held the slot", held), ("ran", ran)):
        for key, spans in by_group.items():
            for one, other in overlapping(spans):
                yield f"{other.job} of {key} began at {other.begun}, while {one.job} {what} until {one.ended}"


def within_rate(history: History) -> Iterator[str]:
    """No window has more starts than its rate allows.

    Starts that a halt of the worker delayed are not counted.
    """
    for task, rate in history.rates.items():
        for moment, count in zip(starts(history, task), windows(history, task), strict=True):
            if count > rate.count:
                yield f"{task} began {count} times in {rate.per:g} s from {moment:.3f}; its limit is {rate}"


def windows(history: History, task: str) -> list[int]:
    """The number of starts in the window that begins with each start."""
    at, seconds = starts(history, task), history.rates[task].per
    return [bisect_left(at, moment + seconds) - place for place, moment in enumerate(at)]


def starts(history: History, task: str) -> list[float]:
    """The times at which the runs of a task began, in ascending order."""
    jobs = {job for job, events in history.events.items() if any(one.revision.task == task for one in events)}
    halts = [(one.pid, one.ended) for one in history.injected_faults if one.pid]
    return [
        effect.at
        for effect in history.effects
        if effect.word == "begin"
        and effect.job in jobs
        and not any(pid == effect.pid and 0 <= effect.at - ended < HALTED for pid, ended in halts)
    ]


def paused_never_start(history: History) -> Iterator[str]:
    """No job starts while its queue is paused, except jobs delivered before that a fault delayed."""
    begun = [
        (event.at.timestamp(), event)
        for events in history.events.values()
        for event in events
        if event.state == "running" and not is_progress_report(event.revision)
    ]
    for pause in history.pauses:
        since = effective_from(history, pause.began)
        for at, event in begun:
            if event.queue == pause.queue and since < at < pause.ended:
                span = f"from {pause.began:.3f} to {pause.ended:.3f}"
                yield f"{event.job} began at {at:.3f}, and {pause.queue} was paused {span}"


def effective_from(history: History, began: float) -> float:
    """The time from which no job may start after a pause; faults delay deliveries made before the pause."""
    since = began
    for fault in sorted(history.injected_faults, key=lambda one: one.began):
        if fault.began <= since + GRACE and any(word in fault.what for word in DELAYING_FAULTS):
            since = max(since, fault.ended)
    return since + GRACE


@dataclass(frozen=True)
class Span:
    """The time in which a run of a job certainly holds a slot of its queue."""

    job: str
    begun: float
    ended: float


def within_concurrency(history: History) -> Iterator[str]:
    """At no time do more runs of a task hold a slot than the concurrency of its queue allows."""
    for task, most in history.concurrency.items():
        under_way: list[Span] = []
        for span in sorted(held_spans(history, task), key=lambda span: span.begun):
            under_way = [one for one in under_way if one.ended > span.begun] + [span]
            if len(under_way) > most:
                spans = ", ".join(f"{one.job} from {one.begun:.3f} to {one.ended:.3f}" for one in under_way)
                yield f"{len(under_way)} runs of {task} at {span.begun:.3f}; the limit is {most}: {spans}"


def held_spans(history: History, task: str) -> Iterator[Span]:
    """The runs of a task: each from its start until it left, its worker died, or its lease may be over."""
    left = {(one.job, one.token): one.at for one in history.effects if one.word == "left"}
    killed = dict(history.kills)
    last = {one.pid: one.at for one in history.effects}  # in the order of their times
    jobs = {job for job, events in history.events.items() if events[0].revision.task == task}
    for one in history.effects:
        if one.word == "begin" and one.job in jobs:
            died = killed.get(one.pid, last[one.pid])
            ended = left.get((one.job, one.token), died)
            yield Span(one.job, one.at, min(ended, leased_until(history, one)))


def leased_until(history: History, begin: Effect) -> float:
    """The time until which the worker of a run certainly has its lease, despite faults that stop the
    renewals.

    A lease is renewed after a third of its duration, so it lasts at least half of it from the start of a
    fault. A run that begins in the middle of a fault may begin just before the end of the lease.
    """
    half = history.slot_lease / 2
    ends = (
        max(fault.began + half, begin.at)
        for fault in history.injected_faults
        if fault.pid in (0, begin.pid)
        if fault.ended > begin.at and fault.ended - fault.began > half
    )
    return min(ends, default=math.inf)


# -- whether ---------------------------------------------------------------------------------------------


def unique_life(key: str, events: list[StoredRevision]) -> Life | None:
    """The time in which a job holds its unique key, in seconds of the server's clock; None if it never did.

    A job holds its key from its submit. A job that waits because of `keep_last` holds it only from its start.
    """
    begun, ended = first(events, "running"), first(events, *FINAL_STATES)
    submitted = events[0].revision.submitted or events[0].at
    if key.startswith("keep_last"):
        if begun is None:
            return None
        submitted = begun.at
    over = ended if not key.startswith("start") else begun or ended
    until = over.at.timestamp() - CLOSE if over is not None else math.inf
    return Life(events[0].job, submitted.timestamp(), until)


def one_unique_holder(history: History) -> Iterator[str]:
    """No job takes a unique key while another job holds it: until its end, or until its start."""
    for key, submits in by_key(history, "unique").items():
        found = [unique_life(key, history.events[job]) for job in submits if job in history.events]

        for one, other in overlapping([life for life in found if life is not None]):
            yield f"{other.job} took {key} at {other.begun}, while {one.job} held it until {one.ended}"


def duplicate_held_its_key(history: History) -> Iterator[str]:
    """A job that is returned as the duplicate had not released its key before the submit."""
    for submit in history.flow_submits:
        if not submit.duplicate:
            continue
        events = history.events.get(submit.job, [])
        if not events:
            yield f"{submit.job} was returned for {submit.key}, and this job does not exist"
        until = first(events, *FINAL_STATES, *(["running"] if submit.key.startswith("start") else []))
        if until is not None and until.at.timestamp() < submit.began - CLOSE:
            at = f"at {submit.began:.3f}"
            yield f"{submit.job} was returned for {submit.key} {at}, when it was {until.state}"


def all_or_none(history: History) -> Iterator[str]:
    for bulk in history.bulks:
        stored = sum(job in history.events for job in bulk.jobs)
        if stored not in (0, len(bulk.jobs)) or (bulk.outcome == "acknowledged" and not stored):
            count = f"{stored} of {len(bulk.jobs)} jobs"
            yield f"{count} of a bulk are stored, and it was {bulk.outcome}: {bulk.jobs[0]}"


def items_are_independent(history: History) -> Iterator[str]:
    """A batch task receives an item once in an attempt, and each item has its own outcome."""
    for submit in history.flow_submits:
        last = [event for event in history.events.get(submit.job, ()) if event.state in FINAL_STATES][-1:]
        if submit.kind != "batched" or not last:
            continue
        failed = last[0].state == "failed" and last[0].revision.reason == "rejected"
        if submit.key == "bad" and last[0].state == "succeeded":
            yield f"{submit.job} was bad and has succeeded"
        elif submit.key != "bad" and failed:
            yield f"{submit.job} was {submit.key} and was rejected"
    calls = Counter((one.job, one.token) for one in history.effects if one.word == "begin" and one.token)
    for (job, token), count in calls.items():
        if count > 1:
            yield f"{job} began {count} times in its attempt {token}"


# -- when ------------------------------------------------------------------------------------------------


def expired_never_start(history: History) -> Iterator[str]:
    """A job whose start the server has not stored before the expiry does not run."""
    ran: dict[str, list[Effect]] = defaultdict(list)
    for effect in history.effects:
        ran[effect.job].append(effect)
    for submit in history.flow_submits:
        events = history.events.get(submit.job, [])
        if submit.expires == math.inf or not events:
            continue
        recorded = next((one.revision.expires for one in events if one.revision.expires is not None), None)
        limit = min(submit.expires, recorded.timestamp() if recorded is not None else math.inf)
        begun = first(events, "running")
        late = begun is None or begun.at.timestamp() > limit + (0 if recorded is not None else CLOSE)
        if late and ran[submit.job]:
            yield f"{submit.job} expired at {limit:.3f} and ran at {ran[submit.job][0].at:.3f}"
        if recorded is None:
            yield f"{submit.job} was submitted with an expiry, and its events have none"


def none_early(history: History) -> Iterator[str]:
    """No job starts before its last due time.

    Unique jobs are not checked: another submit without a delay may have stored the job.
    """
    due = {
        submit.job: submit.due for submit in history.flow_submits if submit.due and submit.kind != "unique"
    }
    for moved in history.rescheduled:
        if moved.job in due:
            due[moved.job] = moved.due if moved.known else min(moved.due, due[moved.job])
    for job, moment in due.items():
        begun = first(history.events.get(job, []), "running")
        if begun is not None and begun.at.timestamp() < moment - CLOSE:
            yield f"{job} began at {begun.at.timestamp():.3f} and was due at {moment:.3f}"


# -- coverage --------------------------------------------------------------------------------------------


def happened(history: History) -> dict[str, int]:
    """How often each situation occurred.

    A run in which a situation never occurred proves nothing about it.
    """
    kinds = Counter(submit.kind for submit in history.flow_submits if not submit.duplicate)
    ended = {job: first(events, *FINAL_STATES) for job, events in history.events.items()}
    expired = [
        one for one in history.flow_submits if one.kind == "expiring" and is_expired(ended.get(one.job))
    ]
    busiest = {task: max(windows(history, task), default=0) for task in history.rates}
    return {
        "jobs with a key": kinds["keyed"],
        "unique jobs": kinds["unique"],
        "duplicates": sum(submit.duplicate for submit in history.flow_submits),
        "jobs with an expiry": kinds["expiring"],
        "expired": len(expired),
        **{f"starts of {task}": len(starts(history, task)) for task in history.rates},
        "rates used up": sum(count >= USED * history.rates[task].count for task, count in busiest.items()),
        "promoted": sum(moved.promoted for moved in history.rescheduled),
        "rescheduled": sum(not moved.promoted for moved in history.rescheduled),
        "edited": sum(edited.known for edited in history.edited),
        "run again": sum(history.again.values()),
        **{f"runs of {task}": len(list(held_spans(history, task))) for task in history.concurrency},
        "limits used up": sum(used_up(history, task) for task in history.concurrency),
        "items of batches": kinds["batched"],
        "atomic submits": len({bulk.jobs for bulk in history.bulks}),
        **{f"successes of {task}": successes(history, task) for task in sorted(history.hooked)},
        **({"refused by a middleware": refusals(history)} if history.refused else {}),
        "pauses": sum(effective_from(history, pause.began) < pause.ended for pause in history.pauses),
    }


def successes(history: History, task: str) -> int:
    """How many jobs of a task have succeeded after failed attempts."""
    last = [events[-1] for events in history.events.values()]
    return sum(
        (one.state, one.revision.task) == ("succeeded", task) and one.revision.failures > 0 for one in last
    )


def refusals(history: History) -> int:
    """How many submits a middleware refused."""
    return sum(submit.outcome == "HookError" for submit in history.submits)


def used_up(history: History, task: str) -> bool:
    """Whether at some time as many runs of a task held a slot as its queue allows."""
    fewer = replace(history, concurrency={task: history.concurrency[task] - 1})
    return any(within_concurrency(fewer))


def is_expired(event: StoredRevision | None) -> bool:
    return event is not None and event.state == "expired"
