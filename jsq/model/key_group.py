"""A line: the jobs of one key wait in it, and are let onto their queue in turn. Pure: it asks nobody.

Who was let on has a place in the key's turn, and who may be next is decided here. With `per_key`, a job keeps
its place to its end, so that no more than so many of the key's run at once; with `per_key=1` over its retries
too, so that they run in the order in which they came. Without it a job keeps its place until it begins: so
each key has a few jobs (`READY_PER_KEY` times its weight) among those that wait on the queue, and keys take
turns.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from jsq.errors import BadOption

MAX_KEY_LENGTH = 256
READY_PER_KEY = 4
"""Jobs of a key that wait on the queue together: with one, a key alone would wait for each to be let on."""

MAX_PER_KEY = 1_000
MAX_WEIGHT = 1_000
MAX_WEIGHTS = 1_000

SlotKind = Literal["job", "attempt", "start"]
"""How long a job keeps its place: to its end, over its retries too; for an attempt; until it begins."""

SLOT_KINDS: tuple[SlotKind, ...] = get_args(SlotKind)

_token = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What a queue says of its keys: the default of `per_key`, and the weights of some (of the others: 1)."""

    per_key: int | None = None
    weights: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that waits in a line, at a `sequence` of it: what decides whether it may be let on.

    `previous_sequence` is the log's sequence that its next attempt builds on: it rises each time that it
    comes back.
    """

    id: str
    key: str
    per_key: int | None = None
    sequence: int = 0
    previous_sequence: int = 0


class SlotHolder(NamedTuple):
    """One who was let on: the id of a job, its place, and what the attempt builds on that it was let on for.

    By this `previous_sequence` a place is told from the one that the same job had before, so that who is late
    to give that one up does not give up this one.
    """

    id: str
    kind: SlotKind
    previous_sequence: int = 0


@dataclass(frozen=True, slots=True)
class GroupState:
    """Who of a key was let on.

    Those in `admitting` were let on last, and may still have to be put on the queue. `admitted_up_to` is how
    far the line was let on; what still waits stands behind.
    """

    slots: tuple[SlotHolder, ...] = ()
    admitting: tuple[str, ...] = ()
    admitted_up_to: int = 0

    def slot_of(self, id: str) -> SlotHolder | None:
        """What a job holds, None where that is nothing."""
        return next((one for one in self.slots if one.id == id), None)

    def without(self, leaving: Mapping[str, int]) -> "GroupState":
        """The turn when some jobs have left it whose attempts on top of a sequence, or less, are over."""
        left = tuple(one for one in self.slots if one.previous_sequence > leaving.get(one.id, -1))
        stay = {one.id for one in left}
        return replace(self, slots=left, admitting=tuple(id for id in self.admitting if id in stay))

    def without_admitting(self) -> "GroupState":
        """The turn when all who were let on stand on the queue."""
        return replace(self, admitting=())

    def already_admitted(self, waiter: WaitingJob) -> bool:
        """Whether it was let on already, and still stands in the line."""
        found = self.slot_of(waiter.id)
        return found is not None and waiter.previous_sequence <= found.previous_sequence

    def has_room_for(self, waiter: WaitingJob, rule: GroupLimits) -> bool:
        """Whether there is room for who is next. One that came back waits until it has left."""
        if self.slot_of(waiter.id) is not None:
            return False
        place, limit = slot_for(waiter, rule)
        if place == "start":
            return sum(one.kind == "start" for one in self.slots) < limit
        return len(self.slots) < limit

    def with_slot_for(self, waiter: WaitingJob, rule: GroupLimits) -> "GroupState":
        """The turn when one more was let on."""
        holders = (*self.slots, SlotHolder(waiter.id, slot_for(waiter, rule)[0], waiter.previous_sequence))
        return GroupState(holders, (*self.admitting, waiter.id), max(self.admitted_up_to, waiter.sequence))


def slot_for(waiter: WaitingJob, rule: GroupLimits) -> tuple[SlotKind, int]:
    """The kind of place that a job is given, and how many of its key may have one."""
    most = waiter.per_key or rule.per_key
    if most is None:
        return "start", READY_PER_KEY * (rule.weights or {}).get(waiter.key, 1)
    return ("job" if most == 1 else "attempt"), most


def key_token(key: str) -> str:
    """A key as part of a subject: itself where it can be, else what stands for it."""
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
