"""Slots of a queue: how many of its jobs run at once, over all its priorities and workers.

A queue with a `concurrency` has one table of its slots, which its workers change by compare-and-set. Each
worker holds slots for the length of a lease, and starts no more jobs than it holds slots. So the limit costs
nothing per job, and it holds when workers die: their slots are free when their lease is over.

The table also contains how many slots each worker could use. Where there are fewer slots than that, each
worker has its share by max-min fairness. If there are fewer slots than workers, they take turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

LAPSE_MARGIN = 0.3
"""Seconds after its end from which other workers treat a lease as over.

The holder ends its jobs at the end of the lease, by its own clock, and notices that up to 0.2 s late.
"""

TURN_SECONDS = 2.0
"""Seconds after which a busy worker releases its slots to one that has none. A turn costs two writes."""


@dataclass(frozen=True, slots=True)
class SlotHolding:
    """A worker's entry in the table: the slots that it holds, and how many it could use (`wanted`).

    `since` is when it got the first of its slots, or when it began to wait for one. `until` is the end of
    its lease. Both are seconds since the epoch by the server's clock.
    """

    slots: int = 0
    wanted: int = 0
    since: float = 0.0
    until: float = 0.0


NO_HOLDING = SlotHolding()
"""The entry of a worker that is not in the table."""


@dataclass(frozen=True, slots=True)
class SlotUse:
    """How a worker uses its slots: `running` jobs, and how many slots it could use now (`wanted`).

    `backlog` is true if jobs wait that it could start. `least` is the number it keeps when no other worker
    needs slots, because it has just used them.
    """

    running: int = 0
    wanted: int = 0
    backlog: bool = False
    least: int = 0


@dataclass(frozen=True, slots=True)
class SlotTable:
    """The slots of one queue, by worker."""

    holders: Mapping[str, SlotHolding] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """How many slots are held by all workers together."""
        return sum(one.slots for one in self.holders.values())

    def of(self, worker: str) -> SlotHolding:
        return self.holders.get(worker, NO_HOLDING)

    def live(self, now: float) -> "SlotTable":
        """The table without the workers whose lease is over."""
        if all(now < one.until + LAPSE_MARGIN for one in self.holders.values()):
            return self
        return SlotTable({name: one for name, one in self.holders.items() if now < one.until + LAPSE_MARGIN})

    def shares(self, limit: int) -> dict[str, int]:
        """How many of `limit` slots each worker may have: at most as many as it wants, in equal shares.

        A remainder goes to the workers that hold it already, then to those that wait longest.
        """
        level, left = self._fair_level(limit)
        shares = {name: min(one.wanted, level) for name, one in self.holders.items()}
        more = [name for name, one in self.holders.items() if one.wanted > level]
        more.sort(key=lambda name: (self.of(name).slots <= level, self.of(name).since, name))
        for name in more[:left]:
            shares[name] += 1
        return shares

    def level(self, limit: int) -> int:
        """How many slots each worker may have if it wants as many; 0 if the workers take turns."""
        return self._fair_level(limit)[0]

    def missing(self, worker: str, limit: int) -> int:
        """How many slots the other workers lack of their shares, and cannot take because none is free."""
        shares = self.shares(limit)
        lacking = sum(
            max(0, shares[name] - one.slots) for name, one in self.holders.items() if name != worker
        )
        return max(0, lacking - max(0, limit - self.held))

    def has_waiting(self, worker: str) -> bool:
        """Whether another worker than this one wants slots and has none."""
        return any(one.wanted > 0 and not one.slots for name, one in self.holders.items() if name != worker)

    # -- changes -----------------------------------------------------------------------------------------

    def claim(self, worker: str, wanted: int, limit: int, *, now: float, until: float) -> "SlotTable":
        """Claim the free slots of a worker's share. The worker is in the table even if it gets none."""
        before = self.of(worker)
        waits_since = before.since if worker in self.holders else now
        asked = self.put(worker, SlotHolding(before.slots, wanted, waits_since, until))
        more = max(0, min(asked.shares(limit)[worker] - before.slots, limit - self.held))
        since = now if more and not before.slots else waits_since
        return self.put(worker, SlotHolding(before.slots + more, wanted, since, until))

    def give_back(self, worker: str, slots: int, wanted: int, *, now: float, until: float) -> "SlotTable":
        """Keep `slots` slots of a worker, and free its others."""
        before = self.of(worker)
        kept = min(slots, before.slots)
        since = now if before.slots and not kept else before.since
        return self.put(worker, SlotHolding(kept, wanted, since, until))

    def renew(self, worker: str, until: float) -> "SlotTable":
        """Extend the lease of a worker; the same table if it has no entry."""
        before = self.holders.get(worker)
        return self if before is None else self.put(worker, replace(before, until=until))

    def without(self, worker: str) -> "SlotTable":
        """Free all slots of a worker."""
        return SlotTable({name: one for name, one in self.holders.items() if name != worker})

    def _fair_level(self, limit: int) -> tuple[int, int]:
        return fair_level(sorted(one.wanted for one in self.holders.values()), limit)

    def put(self, worker: str, holder: SlotHolding) -> "SlotTable":
        """The table with another entry for a worker."""
        return SlotTable({**self.holders, worker: holder})


def fair_level(wants: list[int], limit: int) -> tuple[int, int]:
    """The level to which `limit` slots fill all `wants`, which are in rising order; and what is left.

    No worker gets more than it wants; a worker that wants more than the level gets the level.
    """
    level, left = 0, limit
    for place, want in enumerate(wants):
        others = len(wants) - place
        if (want - level) * others > left:
            return level + left // others, left % others
        left -= (want - level) * others
        level = want
    return level, 0


def settle_slots(
    table: SlotTable, worker: str, use: SlotUse, limit: int, *, now: float, until: float
) -> SlotTable:
    """The table after a worker's next change: it claims slots, releases some, or waits for others.

    The same table if there is nothing to do. `until` is the end of its lease if it is renewed.
    """
    live = table.live(now)
    mine = live.of(worker)
    kept = slots_to_keep(live, worker, use, limit, now)
    if kept < mine.slots:
        return live.give_back(worker, kept, use.wanted, now=now, until=until)
    claimed = live.claim(worker, use.wanted, limit, now=now, until=until)
    if claimed.of(worker).slots > mine.slots:
        return claimed
    if worker not in live.holders:
        return claimed if use.wanted else table
    grows = use.wanted > mine.wanted and use.running >= mine.slots
    shrinks = max(use.wanted, use.least) < mine.wanted
    return claimed if grows or shrinks else table


def slots_to_keep(live: SlotTable, worker: str, use: SlotUse, limit: int, now: float) -> int:
    """How many of its slots a worker keeps. A slot in which a job runs is kept in any case."""
    mine = live.of(worker)
    if mine.slots <= use.running:
        return mine.slots
    if is_turn_over(live, worker, use, limit, now):
        return use.running
    asked = live.put(worker, replace(mine, wanted=use.wanted))
    share = max(asked.shares(limit)[worker], use.running)
    excess = max(live.held - limit, asked.missing(worker, limit))
    return min(mine.slots - min(excess, max(0, mine.slots - share)), max(use.least, use.running, share))


def is_turn_over(live: SlotTable, worker: str, use: SlotUse, limit: int, now: float) -> bool:
    """Whether a busy worker has had its slots so long that a worker without slots is next."""
    mine = live.of(worker)
    return (
        use.backlog
        and mine.slots > 0
        and now - mine.since >= TURN_SECONDS
        and live.level(limit) == 0
        and live.has_waiting(worker)
    )


def usable_slots(live: SlotTable, worker: str, use: SlotUse, limit: int, now: float) -> int:
    """How many jobs a worker may have started by now: no more than it will keep."""
    kept = slots_to_keep(live, worker, replace(use, running=0, least=limit), limit, now)
    return min(live.of(worker).slots, kept)


def may_grow(live: SlotTable, worker: str, most: int, limit: int) -> bool:
    """Whether a worker that could use `most` slots may get more of them."""
    mine = live.of(worker)
    if mine.slots >= limit:
        return False
    asked = live.put(worker, replace(mine, wanted=max(mine.wanted, most)))
    return most > mine.wanted or asked.shares(limit)[worker] > mine.slots
