"""What a chaos run leaves to be judged: plain values, gathered from everyone who saw something."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jsq.event import LoggedEvent


@dataclass(frozen=True)
class Effect:
    """A line that a task wrote: `begin`, `step` or `end`."""

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


@dataclass
class History:
    """One whole run."""

    submits: list[Submitted] = field(default_factory=list)
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
