"""Judges a history by the invariants of a job's life. A pure function: it knows nothing of the run."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from jsq.model.event import FINAL_STATES, TRANSITIONS, LoggedEvent
from jsq.settings import QueueSettings
from tests.chaos.flow_checker import (
    alive_when_returned,
    all_or_none,
    each_by_itself,
    in_order,
    none_early,
    none_expired_begins,
    one_alive,
    one_at_a_time,
    shut,
    within_concurrency,
    within_rate,
)
from tests.chaos.history import Effect, History

Check = Callable[[History], Iterator[str]]

UNKNOWN_TOKEN = 0
"""The token of runs that do not know their own."""

TICKING = "each"
"""The schedule of a run: it ticks each second, and all ticks are caught up."""


def check(history: History) -> dict[str, list[str]]:
    """What is violated, by invariant; empty lists where nothing is."""
    return {name: list(judge(history)) for name, judge in CHECKS.items()}


def runs(events: list[LoggedEvent]) -> list[LoggedEvent]:
    return [event for event in events if event.event.progress is None]


def i1(history: History) -> Iterator[str]:
    for submit in history.submits:
        if submit.told == "acknowledged":
            states = [event.state for event in history.events.get(submit.job, ())]
            if not states or states[-1] not in FINAL_STATES:
                yield f"{submit.job} was acknowledged and came to {states or 'nothing'}"


def i2(history: History) -> Iterator[str]:
    for job, events in history.events.items():
        for before, after in pairwise(runs(events)):
            if before.state in FINAL_STATES and (before.state, after.state) != ("failed", "retrying"):
                yield f"{job} is {after.state} after it was {before.state}"


def i3(history: History) -> Iterator[str]:
    ended = {(effect.job, effect.token) for effect in history.effects if effect.word == "end"}
    for job, events in history.events.items():
        for event in events:
            if event.state == "succeeded" and not ended & {(job, event.event.token), (job, UNKNOWN_TOKEN)}:
                yield f"{job} has succeeded, and no run of it has ended"


def i4(history: History) -> Iterator[str]:
    for job, events in history.events.items():
        results = {str(event.event.result) for event in events if event.state == "succeeded"}
        if len(results) > 1 or (results and results != {job}):
            yield f"{job} has the results {sorted(results)}"


def i5(history: History) -> Iterator[str]:
    for job, events in history.events.items():
        token = 0
        for event in runs(events):
            if event.state == "running":
                token = event.sequence
            elif event.event.reason == "replayed":
                continue  # by an operator, on top of the failure
            elif event.event.token and event.event.token != token and event.event.reason != "crashed":
                yield f"{job} is {event.state} by the attempt {event.event.token}, and {token} was the last"


def i6(history: History) -> Iterator[str]:
    for id in history.doubled:
        yield f"{id} was submitted again, and became another job"


def i7(history: History) -> Iterator[str]:
    for job, events in history.events.items():
        states = [event.state for event in runs(events)]
        for before, after in pairwise(["queued", *states]):
            # Nobody here runs a job again that did not fail.
            if after not in TRANSITIONS[before] or before in ("succeeded", "cancelled", "expired"):
                yield f"{job} is {after} after it was {before}"
        seen = history.view.get(job)
        if states and seen is not None and seen.sequence != runs(events)[-1].sequence:
            yield f"{job} is shown as {seen.state}, and its last event is {states[-1]}"


def i8(history: History) -> Iterator[str]:
    letters = Counter(history.letters)
    for job, events in history.events.items():
        failed = events[-1].state == "failed"
        if letters[job] != int(failed):
            yield f"{job} is {events[-1].state} and has {letters[job]} dead letters"


def i9(history: History) -> Iterator[str]:
    ran = {effect.job for effect in history.effects}
    for job in history.cancelled:
        states = [event.state for event in history.events.get(job, ())]
        if "cancelled" in states and "running" not in states and job in ran:
            yield f"{job} was cancelled before its start, and ran"
        if states and states[-1] != "cancelled":
            yield f"{job} was confirmed to be cancelled, and is {states[-1]}"


def i10(history: History) -> Iterator[str]:
    known = {submit.job for submit in history.submits}
    for job in {effect.job for effect in history.effects} - known:
        if not (history.ticks and job.startswith(f"{TICKING}-")):  # see I13
            yield f"{job} ran, and nobody submitted it"


def i11(history: History) -> Iterator[str]:
    yield from history.left


def i12(history: History) -> Iterator[str]:
    found = recoveries(history) if history.lease else []
    if found and (late := ninety_nine(found)) > history.lease + 1:
        yield f"what killed workers ran began again after {late:.1f} s, of a lease of {history.lease:g} s"


def i13(history: History) -> Iterator[str]:
    for id in history.ticks:
        events = history.events.get(id, [])
        states = [event.state for event in events]
        if not states or (states[-1] != "succeeded" and not died_of_crashes(events)):
            yield f"{id} is a tick, and came to {states or 'nothing'}"
    for job in history.events.keys() - set(history.ticks):
        if job.startswith(f"{TICKING}-") and history.ticks and job < history.ticks[-1]:
            yield f"{job} is the job of no tick"


def died_of_crashes(events: list[LoggedEvent]) -> bool:
    """Whether a job failed as `crashed` by the rule: started and lost as often as its queue permits."""
    last, starts = events[-1], sum(event.state == "running" for event in events)
    crashed = last.state == "failed" and last.event.reason == "crashed"
    return crashed and min(last.event.crashes, starts) >= QueueSettings().max_crashes


def i15(history: History) -> Iterator[str]:
    yield from history.surprises


def i16(history: History) -> Iterator[str]:
    for job in history.missing:
        yield f"{job} was acknowledged, and then not found"


def i17(history: History) -> Iterator[str]:
    taken = Counter(effect.job for effect in history.effects if effect.word == "step")
    for job, times in taken.items():
        if times > 1:
            yield f"{job} took its step {times} times"


CHECKS: dict[str, Check] = {
    "I1 nothing acknowledged is lost": i1,
    "I2 one final state": i2,
    "I3 success only after a run": i3,
    "I4 one result": i4,
    "I5 no stale outcome": i5,
    "I6 one job for an id": i6,
    "I7 a legal order, and the last event is shown": i7,
    "I8 failed if and only if there is one dead letter": i8,
    "I9 cancelled before the start means no start": i9,
    "I10 nothing unsubmitted runs": i10,
    "I11 nothing is left": i11,
    "I12 a killed worker's jobs begin again within the lease and a second": i12,
    "I13 one job for each tick": i13,
    "I15 every submit has an answer": i15,
    "I16 never missing after an acknowledgement": i16,
    "I17 a step is taken at most once": i17,
    "I18 jobs of a key begin in the order of their submits": in_order,
    "I19 one job of a key at a time": one_at_a_time,
    "I20 one job of a unique key is alive": one_alive,
    "I21 a duplicate was alive": alive_when_returned,
    "I22 what has expired does not begin": none_expired_begins,
    "I23 a rate is kept": within_rate,
    "I24 nothing begins before it is due": none_early,
    "I25 nothing begins on a paused queue": shut,
    "I26 all of a bulk, or none": all_or_none,
    "I27 each item of a batch by itself": each_by_itself,
    "I28 the concurrency of a queue is kept": within_concurrency,
}
"""I12 is judged where nothing but workers was killed; I14, the joins of workflows, has no feature yet."""


def overlaps(effects: list[Effect]) -> int:
    """How many runs of a job began while another run of it had not ended, as far as their ends are known."""
    ends = {(effect.job, effect.token): effect.at for effect in effects if effect.word == "end"}
    begun: dict[str, list[Effect]] = defaultdict(list)
    found = 0
    for effect in effects:
        if effect.word == "begin" and effect.token != UNKNOWN_TOKEN:
            found += any(ends.get((one.job, one.token), 0.0) > effect.at for one in begun[effect.job])
            begun[effect.job].append(effect)
    return found


def recoveries(history: History) -> list[float]:
    """Seconds from the kill of a worker to the next begin of each job that it ran."""
    told = {event.event.token for events in history.events.values() for event in events}
    begins = [effect for effect in history.effects if effect.word == "begin"]
    found = []
    for pid, at in history.kills:
        for held in begins:
            if held.pid == pid and held.at <= at and held.token not in told | {UNKNOWN_TOKEN}:
                again = next((one.at for one in begins if one.job == held.job and one.at > at), None)
                found += [again - at] if again is not None else []
    return sorted(found)


def ninety_nine(values: list[float]) -> float:
    """The 99th percentile of what is in order."""
    return values[min(len(values) - 1, int(len(values) * 0.99))]
