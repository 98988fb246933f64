"""The history of a chaos run: plain values noted by clients, tasks, the fault injector and the server."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jsq.model.rate_limit import Rate
from jsq.model.revision import StoredRevision


@dataclass(frozen=True)
class Effect:
    """A line that a task wrote: `begin`, `step`, `end`, or `left` of a task that notes when it leaves."""

    word: str
    job: str
    token: int
    pid: int
    at: float


@dataclass(frozen=True)
class Submitted:
    """The outcome of a submit for the client: `acknowledged`, `unknown`, or the name of an error."""

    job: str
    outcome: str
    at: float


@dataclass(frozen=True)
class FlowSubmit:
    """An acknowledged submit with flow control: its kind and the time between request and reply.

    `key` is the key, or the unique key with its prefix; for an item of a batch it is the expected outcome.
    The job must not start before `due` or after `expires`.
    """

    kind: str
    job: str
    began: float = 0.0
    answered: float = 0.0
    key: str = ""
    duplicate: bool = False
    due: float = 0.0
    expires: float = math.inf


@dataclass(frozen=True)
class Rescheduled:
    """A reschedule or a promotion of a job. `known` is False if the client received no reply."""

    job: str
    due: float
    promoted: bool
    known: bool


@dataclass(frozen=True)
class Edited:
    """An edit of a job: the `value` that its argument was given, or the `queue` that it was moved to.

    `known` is False if the client got an error, so that the edit may hold or not.
    """

    job: str
    value: float | None = None
    queue: str = ""
    known: bool = True


@dataclass(frozen=True)
class SubmittedFlow:
    """An acknowledged workflow: the nodes that each node waits for, and the node that fails, -1 for none."""

    job: str
    waits: tuple[tuple[int, ...], ...]
    fails: int = -1


@dataclass(frozen=True)
class Bulk:
    """The outcome of an atomic submit for the client."""

    jobs: tuple[str, ...]
    outcome: str


@dataclass(frozen=True)
class Pause:
    """A pause of a queue, from its acknowledgement until a client begins to resume the queue."""

    queue: str
    began: float
    ended: float


@dataclass(frozen=True)
class InjectedFault:
    """A fault with its start and its end, and the id of the affected process if it affects a single one."""

    what: str
    began: float
    ended: float
    pid: int = 0


@dataclass
class History:
    """One whole run.

    `ticks` are the ids of the jobs that the schedule had to submit, `doubled` the ids of callers that
    produced a second job. `slot_lease` is the lease of the slots of limited queues. `lease` is the lease of a
    queue if only workers were killed, and 0 after other faults.
    """

    submits: list[Submitted] = field(default_factory=list)
    flow_submits: list[FlowSubmit] = field(default_factory=list)
    rescheduled: list[Rescheduled] = field(default_factory=list)
    edited: list[Edited] = field(default_factory=list)
    again: dict[str, bool] = field(default_factory=dict)
    """The jobs for which a second run was requested, and whether one of the calls was acknowledged."""
    flows: list[SubmittedFlow] = field(default_factory=list)
    """The acknowledged workflows."""
    maybe_flows: list[SubmittedFlow] = field(default_factory=list)
    """The workflows whose submits were not acknowledged: they may exist."""
    bulks: list[Bulk] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    injected_faults: list[InjectedFault] = field(default_factory=list)
    rates: Mapping[str, Rate] = field(default_factory=dict)
    """The rates, by the task whose starts they limit."""
    concurrency: Mapping[str, int] = field(default_factory=dict)
    """The concurrency limits, by the task whose runs they limit."""
    hooked: frozenset[str] = frozenset()
    """The tasks around which every hook raises."""
    refused: str = ""
    """The task whose submits a middleware refuses."""
    cancelled: set[str] = field(default_factory=set)
    replayed: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    unexpected_errors: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    kills: list[tuple[int, float]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    events: dict[str, list[StoredRevision]] = field(default_factory=dict)
    view: dict[str, StoredRevision] = field(default_factory=dict)
    dead_letters: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    lagging: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    ticks: list[str] = field(default_factory=list)
    from_log: list[str] = field(default_factory=list)
    """The jobs whose events were read from the event log, because the bucket keeps only the last ones."""
    lease: float = 0.0
    slot_lease: float = 0.0


def read_effects(folder: Path) -> list[Effect]:
    """All effects, in the order of their times."""
    found = []
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            word, job, token, pid, at = line.split()
            found.append(Effect(word, job, int(token), int(pid), float(at)))
    return sorted(found, key=lambda effect: effect.at)


def by_job(events: Iterable[StoredRevision]) -> dict[str, list[StoredRevision]]:
    """Events by their job, in the order of the log."""
    found: dict[str, list[StoredRevision]] = defaultdict(list)
    for event in events:
        found[event.job].append(event)
    return dict(found)
