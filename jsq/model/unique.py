"""Uniqueness: which submits are duplicates, which job holds a key, and what a duplicate submit does.

A key is claimed before its job is stored, and a claim is never released: a submit that finds one judges it by
the state of its job. Pure: the claim and the state of its job are read elsewhere.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, get_args

from jsq.errors import BadOption
from jsq.model.durations import check_seconds

UniqueUntil = Literal["finish", "start"]
UNIQUE_UNTIL: tuple[UniqueUntil, ...] = get_args(UniqueUntil)
"""How long a job holds its key: until its end, or until its first attempt starts."""

OnDuplicate = Literal["return", "raise", "replace", "keep_last"]
ON_DUPLICATE: tuple[OnDuplicate, ...] = get_args(OnDuplicate)
"""The handling of a submit whose key is held."""

MIN_WINDOW = 1.0
"""The shortest window in seconds. The server deletes claims at whole seconds, up to a second late."""


@dataclass(frozen=True, slots=True)
class Unique:
    """The unique options of one submit: its key (a hash), how long it holds it, and what a duplicate does.

    The key is held until `held_until`: the job's finish, its start, or its due time (for a debounced job); or
    for a `window` of seconds, whatever happens to the job. `on_duplicate` is the option of that name, or
    `debounce`.
    """

    key: str
    held_until: Literal["finish", "start", "due"] = "finish"
    window: float | None = None
    on_duplicate: Literal["return", "raise", "replace", "keep_last", "debounce"] = "return"


@dataclass(frozen=True, slots=True)
class UniqueClaim:
    """The holder of a key: a job of a queue, and the `successor` that waits for its end, if any.

    `revision` is the one that the next write of the claim expects. `stored` is true if the job was stored: a
    claim with a window may outlive the record of its job. `expired` is true if the server should have deleted
    the claim, and has not.
    """

    job: str
    queue: str
    held_until: str = "finish"
    window: float | None = None
    successor: str = ""
    revision: int = 0
    stored: bool = False
    expired: bool = False

    def passed_to_successor(self) -> "UniqueClaim":
        """The claim once its job has ended: its successor holds it."""
        return replace(self, job=self.successor, successor="")


class JobLife(Enum):
    """The state of the job of a claim."""

    MISSING = "missing"  # neither message nor record: its submitter is storing it, or died
    DELAYED = "delayed"  # due later
    WAITING = "waiting"  # on its queue
    STARTED = "started"  # it has run; it may wait for another attempt
    ENDED = "ended"


class UniqueVerdict(Enum):
    """The verdict on a claim."""

    FREE = "free"
    HELD = "held"
    UNKNOWN = "unknown"


class UniqueAction(Enum):
    """The action of a submit that finds a claim."""

    CLAIM = "claim"  # the key is free: claim it
    STORE = "store"  # the claimed job is missing, or the submit's own: store it under its id
    RETURN_EXISTING = "return existing"  # return the job that holds the key
    RAISE = "raise"
    REPLACE = "replace"  # cancel the job that waits, and take the key
    RESCHEDULE = "reschedule"  # replace the job that is due later by this one
    QUEUE_SUCCESSOR = (
        "queue successor"  # wait for the end of the job that runs, instead of any earlier successor
    )


def judge_claim(claim: UniqueClaim, life: JobLife) -> UniqueVerdict:
    """Judge a claim by the state of its job. A claim whose window has passed does not exist any more."""
    if claim.expired:
        return UniqueVerdict.FREE
    if claim.window is not None and (claim.stored or life is not JobLife.MISSING):
        return UniqueVerdict.HELD
    if life is JobLife.MISSING:
        return UniqueVerdict.UNKNOWN
    ends = {"finish": (JobLife.ENDED,), "start": (JobLife.ENDED, JobLife.STARTED)}
    free = ends.get(claim.held_until, (JobLife.ENDED, JobLife.STARTED, JobLife.WAITING))
    return UniqueVerdict.FREE if life in free else UniqueVerdict.HELD


def decide_submit(unique: Unique, claim: UniqueClaim, life: JobLife, *, id: str) -> UniqueAction:
    """The action of the submit of the job `id` that finds a claim."""
    verdict = judge_claim(claim, life)
    if verdict is UniqueVerdict.UNKNOWN or claim.job == id:
        return UniqueAction.STORE
    if verdict is UniqueVerdict.FREE:
        return UniqueAction.CLAIM
    waits = life in (JobLife.DELAYED, JobLife.WAITING)
    match unique.on_duplicate:
        case "raise":
            return UniqueAction.RAISE
        case "replace" | "keep_last" if waits:
            return UniqueAction.REPLACE
        case "keep_last" if life is JobLife.STARTED:
            return UniqueAction.QUEUE_SUCCESSOR
        case "debounce" if life is JobLife.DELAYED:
            return UniqueAction.RESCHEDULE
        case _:
            return UniqueAction.RETURN_EXISTING


# -- keys ------------------------------------------------------------------------------------------------


def unique_hash(task: str, key: str | bytes) -> str:
    """The hash of a key, of any size, among those of its task. Text and its UTF-8 are the same key."""
    given = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else bytes(key)
    return hashlib.sha256(task.encode() + b"\0" + given).hexdigest()[:40]


def arguments_key(packed: bytes) -> bytes:
    """The key made of encoded arguments, the same for every order of names.

    If all arguments are named, it is also the same with and without the code of the task.
    """
    found = json.loads(packed)
    if isinstance(found, list) and not found[0]:
        found = found[1]
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


# -- what a user wrote -----------------------------------------------------------------------------------


def check_unique_key(key: object) -> None:
    """Raises `BadOption` unless the key is text, bytes, True for all arguments, or False for none."""
    if not isinstance(key, str | bytes | bool):
        raise BadOption(
            "unique", key, "must be text, bytes, or True for all arguments; False makes the job not unique"
        )
    if key in ("", b""):
        raise BadOption("unique", key, "must not be empty: all jobs of the task would have the same key")


def check_unique(
    unique: object,
    until: str | None,
    window: float | None,
    way: str | None,
    debounce: float | None,
    throttle: float | None,
) -> None:
    """Raises `BadOption` for wrong options, or options that cannot be combined."""
    if unique is not None:
        check_unique_key(unique)
    if until is not None and until not in UNIQUE_UNTIL:
        raise BadOption("unique_until", until, f"must be {' or '.join(UNIQUE_UNTIL)}")
    if way is not None and way not in ON_DUPLICATE:
        raise BadOption("on_duplicate", way, f"must be one of {', '.join(ON_DUPLICATE)}")
    check_seconds("unique_for", window, least=MIN_WINDOW)
    check_seconds("throttle", throttle, least=MIN_WINDOW)
    check_seconds("debounce", debounce, least=0.001)
    given = {
        "unique_until": until,
        "unique_for": window,
        "on_duplicate": way,
        "debounce": debounce,
        "throttle": throttle,
    }
    said = [name for name, value in given.items() if value is not None]
    if said and unique is None:
        raise BadOption(said[0], given[said[0]], "must be used together with unique=, the key of the job")
    if not unique:
        return
    for name, others in _EXCLUSIVE.items():
        _check_exclusive(name, given, others)
    if way == "keep_last" and (until == "start" or window is not None):
        raise BadOption(
            "on_duplicate",
            way,
            "must not be keep_last together with unique_until='start' or a window",
        )
    if throttle is not None and way not in (None, "return", "raise"):
        raise BadOption(
            "on_duplicate", way, "must be return or raise together with throttle, which keeps the first job"
        )


_EXCLUSIVE = {
    "debounce": ("throttle", "unique_until", "unique_for", "on_duplicate"),
    "throttle": ("unique_until", "unique_for"),
    "unique_for": ("unique_until",),
}
"""Options that exclude each other: each sets how long a key is held, or what a duplicate does."""


def _check_exclusive(name: str, given: Mapping[str, object], others: tuple[str, ...]) -> None:
    for other in others:
        if given[name] is not None and given[other] is not None:
            raise BadOption(other, given[other], f"must not be combined with {name}, which sets it already")


def unique_request(
    key: str,
    until: UniqueUntil | None,
    window: float | None,
    way: OnDuplicate | None,
    debounce: float | None,
    throttle: float | None,
) -> Unique:
    """The unique request of a submit, from checked options."""
    if debounce is not None:
        return Unique(key, "due", on_duplicate="debounce")
    return Unique(key, until or "finish", window or throttle, way or "return")
