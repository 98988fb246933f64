"""What a chaos run leaves to be judged: plain values, gathered from everyone who saw something."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jsq.model.event import LoggedEvent
from jsq.model.rate_limit import Rate


@dataclass(frozen=True)
class Effect:
    """A line that a task wrote: `begin`, `step`, `end`, or `left` of a task that says when it is over."""

    word: str
    job: str
    token: int
    pid: int
    at: float


@dataclass(frozen=True)
class Submitted:
    """What a client was told of a submit: `acknowledged`, `unknown`, or the name of an error."""

    job: str
    told: str
    at: float


@dataclass(frozen=True)
class Asked:
    """An acknowledged submit that asked for more: its kind, and between which moments it was answered.

    `key` is that of the line or the uniqueness, with how long it holds; for an item of a batch, what becomes
    of it. `due` is the moment before which the job may not begin, `expires` one after which it may not.
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
class Moved:
    """What a client was told when it gave a job another moment, or had it run now: that it stands, or not.

    `known` is False where nobody told.
    """

    job: str
    due: float
    promoted: bool
    known: bool


@dataclass(frozen=True)
class Bulk:
    """What a client was told of a bulk that stands all or none."""

    jobs: tuple[str, ...]
    told: str


@dataclass(frozen=True)
class Pause:
    """A pause of a queue, from when a client was told so until one began to end it."""

    queue: str
    began: float
    ended: float


@dataclass(frozen=True)
class Broken:
    """What the nemesis did, between which moments; to which process, if to one."""

    what: str
    began: float
    ended: float
    pid: int = 0


@dataclass
class History:
    """One whole run.

    `ticks` are the ids of the jobs that its schedule was to submit, `doubled` the own ids that made a second
    job. `slot_lease` is the lease of the slots of the limited queues. `lease` is that of the queue where
    nothing but workers was killed, and 0 where more was broken.
    """

    submits: list[Submitted] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    bulks: list[Bulk] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    rates: Mapping[str, Rate] = field(default_factory=dict)
    """By the task whose starts they limit."""
    concurrency: Mapping[str, int] = field(default_factory=dict)
    """By the task whose runs it limits."""
    cancelled: set[str] = field(default_factory=set)
    replayed: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    kills: list[tuple[int, float]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    events: dict[str, list[LoggedEvent]] = field(default_factory=dict)
    view: dict[str, LoggedEvent] = field(default_factory=dict)
    letters: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    ticks: list[str] = field(default_factory=list)
    lease: float = 0.0
    slot_lease: float = 0.0


def read_effects(folder: Path) -> list[Effect]:
    """All effects, in the order of time."""
    found = []
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            word, job, token, pid, at = line.split()
            found.append(Effect(word, job, int(token), int(pid), float(at)))
    return sorted(found, key=lambda effect: effect.at)


def by_job(events: Iterable[LoggedEvent]) -> dict[str, list[LoggedEvent]]:
    """Events by their job, in the order of the log."""
    found: dict[str, list[LoggedEvent]] = defaultdict(list)
    for event in events:
        found[event.job].append(event)
    return dict(found)
