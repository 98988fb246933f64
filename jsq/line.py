"""A line: the jobs of one key wait in it, and are let onto their queue in turn. Pure: it asks nobody.

Who was let on has a place in the key's turn, and who may be next is decided here. With `per_key`, a job keeps
its place to its end, so that no more than so many of the key's run at once; with `per_key=1` over its retries
too, so that they run in the order in which they came. Without it a job keeps its place until it begins: so
each key has one job, or as many as its weight, among those that wait on the queue, and the keys take turns.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from jsq.errors import BadOption

LONGEST_KEY = 256
MOST_PER_KEY = 1_000
MOST_WEIGHT = 1_000
MOST_WEIGHTS = 1_000

Place = Literal["strict", "held", "once"]
"""How long a job keeps its place: to its end, over its retries too; for an attempt; until it begins."""

PLACES: tuple[Place, ...] = get_args(Place)

_token = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a queue says of its keys: the default of `per_key`, and the weights of some (of the others: 1)."""

    per_key: int | None = None
    weights: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Waiter:
    """A job that waits in a line, at a `sequence` of it: what decides whether it may be let on."""

    id: str
    key: str
    per_key: int | None = None
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """Who of a key was let on: each job's id, with its kind of place.

    Those in `moving` were let on last, and may still have to be put on the queue. `after` is how far the line
    was let on; what still waits stands behind.
    """

    holders: tuple[tuple[str, Place], ...] = ()
    moving: tuple[str, ...] = ()
    after: int = 0

    def place(self, id: str) -> Place | None:
        """The place that a job has, None without one."""
        return next((place for holder, place in self.holders if holder == id), None)

    def without(self, ids: Collection[str]) -> "Turn":
        """The turn when some have left it."""
        left = tuple(one for one in self.holders if one[0] not in ids)
        return replace(self, holders=left, moving=tuple(one for one in self.moving if one not in ids))

    def settled(self) -> "Turn":
        """The turn when all who were let on stand on the queue."""
        return replace(self, moving=())

    def fits(self, waiter: Waiter, rule: Rule) -> bool:
        """Whether there is room for who is next."""
        place, limit = place_of(waiter, rule)
        if place == "once":
            return sum(one == "once" for _, one in self.holders) < limit
        return len(self.holders) < limit

    def taking(self, waiter: Waiter, rule: Rule) -> "Turn":
        """The turn when one more was let on."""
        holder: tuple[str, Place] = (waiter.id, place_of(waiter, rule)[0])
        holders = (*self.holders, holder)
        return Turn(holders, (*self.moving, waiter.id), max(self.after, waiter.sequence))


def place_of(waiter: Waiter, rule: Rule) -> tuple[Place, int]:
    """The kind of place that a job is given, and how many of its key may have one."""
    most = waiter.per_key or rule.per_key
    if most is None:
        return "once", (rule.weights or {}).get(waiter.key, 1)
    return ("strict" if most == 1 else "held"), most


def token_of(key: str) -> str:
    """A key as part of a subject: itself where it can be, else what stands for it."""
    if _token.fullmatch(key):
        return key
    return "~" + hashlib.sha256(key.encode()).hexdigest()[:40]


def check_key(key: object) -> None:
    if key is None:
        return
    if not isinstance(key, str) or not 1 <= len(key) <= LONGEST_KEY or not key.isprintable():
        raise BadOption("key", key, f"it takes printable text of 1 to {LONGEST_KEY} characters")


def check_per_key(number: object) -> None:
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_PER_KEY:
        raise BadOption("per_key", number, f"it takes a whole number of 1 to {MOST_PER_KEY:,}")


def check_weights(weights: object) -> None:
    if weights is None:
        return
    if not isinstance(weights, Mapping) or len(weights) > MOST_WEIGHTS:
        raise BadOption("weights", weights, f"it takes keys and their weights, {MOST_WEIGHTS:,} at most")
    for key, weight in weights.items():
        check_key(key)
        if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= MOST_WEIGHT:
            raise BadOption(f"weight of {key}", weight, f"it takes a whole number of 1 to {MOST_WEIGHT:,}")
