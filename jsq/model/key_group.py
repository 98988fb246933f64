"""A key group: the jobs of one key wait in it, and are admitted to their queue in order. Pure: no I/O.

An admitted job has a slot of the group, and this module decides which job is next. With `per_key`, a job
keeps its slot to its end, so that no more than that many jobs of the key run at once. With `per_key=1` it
keeps the slot over its retries too, so that the jobs run in the order of their submits. Without `per_key` a
job keeps its slot until it starts: each key has a few jobs (`READY_PER_KEY` times its weight) on the queue,
and keys take turns.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from jsq.errors import BadOption

MAX_KEY_LENGTH = 256
READY_PER_KEY = 4
"""Jobs of a key on the queue at once: with one, a single key would wait for each admission."""

MAX_PER_KEY = 1_000
MAX_WEIGHT = 1_000
MAX_WEIGHTS = 1_000

SlotKind = Literal["job", "attempt", "start"]
"""How long a job keeps its slot: to its end, including retries; for an attempt; until it starts."""

SLOT_KINDS: tuple[SlotKind, ...] = get_args(SlotKind)

_token = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The limits of the keys of a queue: the default of `per_key`, and the weights of some keys (else 1)."""

    per_key: int | None = None
    weights: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that waits in a key group: its `sequence` there, and the values that decide its admission.

    `previous_sequence` is the revision that its next attempt builds on. It rises each time that the job
    returns.
    """

    id: str
    key: str
    per_key: int | None = None
    sequence: int = 0
    previous_sequence: int = 0


class SlotHolder(NamedTuple):
    """An admitted job: its id, its slot, and the revision that its attempt builds on.

    This `previous_sequence` distinguishes the slot from an earlier one of the same job, so that a late
    release of the earlier slot does not release this one.
    """

    id: str
    kind: SlotKind
    previous_sequence: int = 0


@dataclass(frozen=True, slots=True)
class GroupState:
    """The admitted jobs of a key.

    Those in `admitting` were admitted last, and may not be on the queue yet. `admitted_up_to` is the last
    sequence of the group that was admitted; waiting jobs have higher sequences.
    """

    slots: tuple[SlotHolder, ...] = ()
    admitting: tuple[str, ...] = ()
    admitted_up_to: int = 0

    def slot_of(self, id: str) -> SlotHolder | None:
        """The slot of a job; None if it has none."""
        return next((one for one in self.slots if one.id == id), None)

    def without(self, leaving: Mapping[str, int]) -> "GroupState":
        """The state without the slots of jobs whose attempts on a revision, or an earlier one, are over."""
        left = tuple(one for one in self.slots if one.previous_sequence > leaving.get(one.id, -1))
        stay = {one.id for one in left}
        return replace(self, slots=left, admitting=tuple(id for id in self.admitting if id in stay))

    def without_admitting(self) -> "GroupState":
        """The state when all admitted jobs are on the queue."""
        return replace(self, admitting=())

    def already_admitted(self, waiter: WaitingJob) -> bool:
        """Whether a job was admitted already, and its message is still in the group."""
        found = self.slot_of(waiter.id)
        return found is not None and waiter.previous_sequence <= found.previous_sequence

    def has_room_for(self, waiter: WaitingJob, rule: GroupLimits) -> bool:
        """Whether there is a slot for the next job. A returned job waits until its old slot is released."""
        if self.slot_of(waiter.id) is not None:
            return False
        place, limit = slot_for(waiter, rule)
        if place == "start":
            return sum(one.kind == "start" for one in self.slots) < limit
        return len(self.slots) < limit

    def with_slot_for(self, waiter: WaitingJob, rule: GroupLimits) -> "GroupState":
        """The state with one more admitted job."""
        holders = (*self.slots, SlotHolder(waiter.id, slot_for(waiter, rule)[0], waiter.previous_sequence))
        return GroupState(holders, (*self.admitting, waiter.id), max(self.admitted_up_to, waiter.sequence))


def slot_for(waiter: WaitingJob, rule: GroupLimits) -> tuple[SlotKind, int]:
    """The kind of slot that a job gets, and how many jobs of its key may have one."""
    most = waiter.per_key or rule.per_key
    if most is None:
        return "start", READY_PER_KEY * (rule.weights or {}).get(waiter.key, 1)
    return ("job" if most == 1 else "attempt"), most


def key_token(key: str) -> str:
    """A key as a token of a subject: the key itself if possible, else its hash."""
    if _token.fullmatch(key):
        return key
    return "~" + hashlib.sha256(key.encode()).hexdigest()[:40]


def check_key(key: object) -> None:
    if key is None:
        return
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise BadOption("key", key, f"must be printable text of 1 to {MAX_KEY_LENGTH} characters")


def check_per_key(number: object) -> None:
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_PER_KEY:
        raise BadOption("per_key", number, f"must be a whole number from 1 to {MAX_PER_KEY:,}")


def check_weights(weights: object) -> None:
    if weights is None:
        return
    if not isinstance(weights, Mapping) or len(weights) > MAX_WEIGHTS:
        raise BadOption("weights", weights, f"must map keys to weights, {MAX_WEIGHTS:,} keys at most")
    for key, weight in weights.items():
        check_key(key)
        if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= MAX_WEIGHT:
            raise BadOption(f"weight of {key}", weight, f"must be a whole number from 1 to {MAX_WEIGHT:,}")
