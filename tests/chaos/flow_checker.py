"""Judges what clients asked for about when, whether and how many at once. Pure, as all of the checker is.

What a key is promised is judged by the log, in which all events have one order; that jobs of one key did not
run at the same time by what they themselves wrote as well. Moments are compared only where a client, a task
and the server say when something was: on one machine, by one clock.
"""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jsq.model.event import FINAL_STATES, LoggedEvent
from tests.chaos.history import Asked, Effect, History

GRACE = 2.0
"""Seconds after a pause in which what was delivered before it may begin, on a busy machine."""

HOLDS_UP = ("held", "slowed", "halted", "parted")
"""Words of what is done to links, workers and servers by which a delivery comes late, and is not lost."""

HALTED = 0.5
"""Seconds after a halted worker goes on in which a start may come late."""

CLOSE = 0.05
"""Seconds by which two who say when something was may differ."""


USED = 0.75
"""The share of a rate in one window from which it was used up: without a limit there might have been more."""


@dataclass(frozen=True)
class Life:
    """From the first start of a job to its end, as sequences of the log; a replay is another one."""

    job: str
    begun: float
    ended: float


def lives(events: list[LoggedEvent]) -> list[Life]:
    """The lives of one job, that it has had so far."""
    found: list[Life] = []
    begun = math.inf
    for event in events:
        if event.state == "running":
            begun = min(begun, event.sequence)
        elif event.state in FINAL_STATES and begun < math.inf:
            found.append(Life(event.job, begun, event.sequence))
            begun = math.inf
    return [*found, Life(events[0].job, begun, math.inf)] if begun < math.inf else found


def first(events: list[LoggedEvent], *states: str) -> LoggedEvent | None:
    return next((event for event in events if event.state in states and event.event.progress is None), None)


def together(held: list[Life]) -> Iterator[tuple[Life, Life]]:
    """Those that were not over when the next of another job began."""
    longest: Life | None = None
    for one in sorted(held, key=lambda life: life.begun):
        if longest is not None and one.job != longest.job and one.begun < longest.ended:
            yield longest, one
        if longest is None or one.ended > longest.ended:
            longest = one


def by_key(history: History, kind: str) -> dict[str, dict[str, Asked]]:
    """Acknowledged submits of a kind, in their order, by key and by job."""
    found: dict[str, dict[str, Asked]] = defaultdict(dict)
    for asked in history.asked:
        if asked.kind == kind:
            found[asked.key].setdefault(asked.job, asked)
    return found


def key_of(history: History) -> dict[str, str]:
    """The key of each job that has a line, by what its own events say: not all were acknowledged."""
    keys = {job: next((one.event.key for one in events), "") for job, events in history.events.items()}
    return {job: key for job, key in keys.items() if key}


# -- how many at once ------------------------------------------------------------------------------------


def in_order(history: History) -> Iterator[str]:
    """Who was submitted later begins after the end of all that came before: after the first one.

    Judged of those that were to be due at once, each submitted when the one before was acknowledged. A replay
    comes to the end of its line.
    """
    for key, asked in by_key(history, "lined").items():
        over, before = 0.0, ""
        for job in (one.job for one in asked.values() if not one.due):
            events = history.events.get(job, [])
            begun, ended = first(events, "running"), first(events, *FINAL_STATES)
            if begun is not None and begun.sequence < over:
                yield f"{job} of {key} began at {begun.sequence}, before the end of {before} at {over}"
            end = float(ended.sequence) if ended is not None else math.inf
            if events and end > over:
                over, before = end, job


def one_at_a_time(history: History) -> Iterator[str]:
    """No job begins while another of its key holds the place: from its start to its end, over its retries.

    Nor do the runs themselves overlap of which each is the one that counts.
    """
    keys = key_of(history)
    held: dict[str, list[Life]] = defaultdict(list)
    ran: dict[str, list[Life]] = defaultdict(list)
    begins = {(one.job, one.token): one.at for one in history.effects if one.word == "begin"}
    ends = {(one.job, one.token): one.at for one in history.effects if one.word == "end"}
    for job, key in keys.items():
        events = history.events[job]
        held[key] += lives(events)
        run = next((one.event.token for one in events if one.state == "succeeded"), 0)
        if (job, run) in begins and (job, run) in ends:
            ran[key].append(Life(job, begins[job, run], ends[job, run]))
    for what, all_of in (("held its place", held), ("ran", ran)):
        for key, those in all_of.items():
            for one, other in together(those):
                yield f"{other.job} of {key} began at {other.begun}, while {one.job} {what} until {one.ended}"


def within_rate(history: History) -> Iterator[str]:
    """No window sees more starts than its rate allows: of those that no halt has made late."""
    for task, rate in history.rates.items():
        for moment, count in zip(starts(history, task), windows(history, task), strict=True):
            if count > rate.count:
                yield f"{task} began {count} times in {rate.per:g} s from {moment:.3f}, and may {rate.count}"


def windows(history: History, task: str) -> list[int]:
    """How many starts the window has that begins with each."""
    at, seconds = starts(history, task), history.rates[task].per
    return [bisect_left(at, moment + seconds) - place for place, moment in enumerate(at)]


def starts(history: History, task: str) -> list[float]:
    """When the runs of a task began, in order."""
    jobs = {job for job, events in history.events.items() if any(one.event.task == task for one in events)}
    halts = [(one.pid, one.ended) for one in history.broken if one.pid]
    return [
        effect.at
        for effect in history.effects
        if effect.word == "begin"
        and effect.job in jobs
        and not any(pid == effect.pid and 0 <= effect.at - ended < HALTED for pid, ended in halts)
    ]


def shut(history: History) -> Iterator[str]:
    """Nothing begins while its queue is paused, but what was delivered before and held up on its way."""
    begun = [
        (event.at.timestamp(), event)
        for events in history.events.values()
        for event in events
        if event.state == "running" and event.event.progress is None
    ]
    for pause in history.pauses:
        since = shut_from(history, pause.began)
        for at, event in begun:
            if event.queue == pause.queue and since < at < pause.ended:
                told = f"from {pause.began:.3f} to {pause.ended:.3f}"
                yield f"{event.job} began at {at:.3f}, and {pause.queue} was paused {told}"


def shut_from(history: History, began: float) -> float:
    """From when nothing may begin after a pause: what is held up on its way was delivered before."""
    since = began
    for broken in sorted(history.broken, key=lambda one: one.began):
        if broken.began <= since + GRACE and any(word in broken.what for word in HOLDS_UP):
            since = max(since, broken.ended)
    return since + GRACE


@dataclass(frozen=True)
class Span:
    """From when to when a run of a job is known to hold a slot of its queue."""

    job: str
    begun: float
    ended: float


def within_concurrency(history: History) -> Iterator[str]:
    """At no moment more runs of a task are under way than its queue allows."""
    for task, most in history.concurrency.items():
        under_way: list[Span] = []
        for span in sorted(held_spans(history, task), key=lambda span: span.begun):
            under_way = [one for one in under_way if one.ended > span.begun] + [span]
            if len(under_way) > most:
                told = ", ".join(f"{one.job} from {one.begun:.3f} to {one.ended:.3f}" for one in under_way)
                yield f"{len(under_way)} runs of {task} at {span.begun:.3f}, of {most} at once: {told}"


def held_spans(history: History, task: str) -> Iterator[Span]:
    """The runs of a task: each from its begin until it left, its worker died, or its lease may be over."""
    left = {(one.job, one.token): one.at for one in history.effects if one.word == "left"}
    killed = dict(history.kills)
    last = {one.pid: one.at for one in history.effects}  # in the order of time
    jobs = {job for job, events in history.events.items() if events[0].event.task == task}
    for one in history.effects:
        if one.word == "begin" and one.job in jobs:
            died = killed.get(one.pid, last[one.pid])
            ended = left.get((one.job, one.token), died)
            yield Span(one.job, one.at, min(ended, leased_until(history, one)))


def leased_until(history: History, begin: Effect) -> float:
    """Until when the worker of a run surely has its lease, whatever it is cut off from or halted by.

    A lease is renewed at a third of it. So it lasts for half of it from the begin of such a fault.
    """
    half = history.slot_lease / 2
    ends = (
        max(broken.began, begin.at) + half
        for broken in history.broken
        if broken.pid in (0, begin.pid)
        if broken.ended > begin.at and broken.ended - broken.began > half
    )
    return min(ends, default=math.inf)


# -- whether ---------------------------------------------------------------------------------------------


def unique_life(key: str, events: list[LoggedEvent]) -> Life | None:
    """While a job holds its unique key, in seconds by the server's clock; None if it never did.

    From its submit; a job that waits by `keep_last` does not hold it before its start.
    """
    begun, ended = first(events, "running"), first(events, *FINAL_STATES)
    submitted = events[0].event.submitted or events[0].at
    if key.startswith("keep_last"):
        if begun is None:
            return None
        submitted = begun.at
    over = ended if not key.startswith("start") else begun or ended
    until = over.at.timestamp() - CLOSE if over is not None else math.inf
    return Life(events[0].job, submitted.timestamp(), until)


def one_alive(history: History) -> Iterator[str]:
    """Of a unique key no job begins to live while another does: to its end, or to its start."""
    for key, asked in by_key(history, "unique").items():
        found = [unique_life(key, history.events[job]) for job in asked if job in history.events]
        for one, other in together([life for life in found if life is not None]):
            yield f"{other.job} of {key} came at {other.begun}, while {one.job} lived until {one.ended}"


def alive_when_returned(history: History) -> Iterator[str]:
    """A job that is returned as the duplicate had not let its key go before it was asked for."""
    for asked in history.asked:
        if not asked.duplicate:
            continue
        events = history.events.get(asked.job, [])
        if not events:
            yield f"{asked.job} was returned for {asked.key}, and there is none"
        until = first(events, *FINAL_STATES, *(["running"] if asked.key.startswith("start") else []))
        if until is not None and until.at.timestamp() < asked.began - CLOSE:
            yield f"{asked.job} was returned for {asked.key} at {asked.began:.3f}, when it was {until.state}"


def all_or_none(history: History) -> Iterator[str]:
    for bulk in history.bulks:
        stand = sum(job in history.events for job in bulk.jobs)
        if stand not in (0, len(bulk.jobs)) or (bulk.told == "acknowledged" and not stand):
            yield f"{stand} of {len(bulk.jobs)} jobs stand of a bulk that was {bulk.told}: {bulk.jobs[0]}"


def each_by_itself(history: History) -> Iterator[str]:
    """The function of a batch task sees an item once in an attempt, and each comes to what was its own."""
    for asked in history.asked:
        last = [event for event in history.events.get(asked.job, ()) if event.state in FINAL_STATES][-1:]
        if asked.kind != "batched" or not last:
            continue
        failed = last[0].state == "failed" and last[0].event.reason == "rejected"
        if asked.key == "bad" and last[0].state == "succeeded":
            yield f"{asked.job} was bad, and has succeeded"
        elif asked.key != "bad" and failed:
            yield f"{asked.job} was {asked.key}, and was rejected"
    calls = Counter((one.job, one.token) for one in history.effects if one.word == "begin" and one.token)
    for (job, token), count in calls.items():
        if count > 1:
            yield f"{job} began {count} times in its attempt {token}"


# -- when ------------------------------------------------------------------------------------------------


def none_expired_begins(history: History) -> Iterator[str]:
    """What the server has not stored as begun by its moment does not run."""
    ran: dict[str, list[Effect]] = defaultdict(list)
    for effect in history.effects:
        ran[effect.job].append(effect)
    for asked in history.asked:
        events = history.events.get(asked.job, [])
        if asked.expires == math.inf or not events:
            continue
        told = next((one.event.expires for one in events if one.event.expires is not None), None)
        limit = min(asked.expires, told.timestamp() if told is not None else math.inf)
        begun = first(events, "running")
        late = begun is None or begun.at.timestamp() > limit + (0 if told is not None else CLOSE)
        if late and ran[asked.job]:
            yield f"{asked.job} expired at {limit:.3f}, and ran at {ran[asked.job][0].at:.3f}"
        if told is None:
            yield f"{asked.job} was to expire, and its events say nothing of it"


def none_early(history: History) -> Iterator[str]:
    """No job begins before the moment that it was given last.

    A unique one may have been stored by another submit, which asked for no delay.
    """
    due = {asked.job: asked.due for asked in history.asked if asked.due and asked.kind != "unique"}
    for moved in history.moved:
        if moved.job in due:
            due[moved.job] = moved.due if moved.known else min(moved.due, due[moved.job])
    for job, moment in due.items():
        begun = first(history.events.get(job, []), "running")
        if begun is not None and begun.at.timestamp() < moment - CLOSE:
            yield f"{job} began at {begun.at.timestamp():.3f}, and was due at {moment:.3f}"


# -- what there was --------------------------------------------------------------------------------------


def happened(history: History) -> dict[str, int]:
    """How often each of these things really occurred; a run that lacks one proves nothing about it."""
    kinds = Counter(asked.kind for asked in history.asked if not asked.duplicate)
    ended = {job: first(events, *FINAL_STATES) for job, events in history.events.items()}
    expired = [one for one in history.asked if one.kind == "expiring" and is_expired(ended.get(one.job))]
    busiest = {task: max(windows(history, task), default=0) for task in history.rates}
    return {
        "jobs in a line": kinds["lined"],
        "unique jobs": kinds["unique"],
        "duplicates": sum(asked.duplicate for asked in history.asked),
        "that may expire": kinds["expiring"],
        "expired": len(expired),
        **{f"starts of {task}": len(starts(history, task)) for task in history.rates},
        "rates used up": sum(count >= USED * history.rates[task].count for task, count in busiest.items()),
        "promoted": sum(moved.promoted for moved in history.moved),
        "moved": sum(not moved.promoted for moved in history.moved),
        **{f"runs of {task}": len(list(held_spans(history, task))) for task in history.concurrency},
        "limits used up": sum(used_up(history, task) for task in history.concurrency),
        "items of batches": kinds["batched"],
        "bulks, all or none": len({bulk.jobs for bulk in history.bulks}),
        "pauses": sum(shut_from(history, pause.began) < pause.ended for pause in history.pauses),
    }


def used_up(history: History, task: str) -> bool:
    """Whether as many runs of a task were under way at once as its queue allows."""
    fewer = replace(history, concurrency={task: history.concurrency[task] - 1})
    return any(within_concurrency(fewer))


def is_expired(event: LoggedEvent | None) -> bool:
    return event is not None and event.state == "expired"
