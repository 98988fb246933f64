"""Client operations of a chaos run that use flow control: delays, expiry, unique keys, keys and limits.

The operations note each request and its result. Jobs of one key are submitted one after another, so that the
order of the submits is known.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jsq import BrokerError, Client, JobNotFound, WrongState
from jsq.codec.envelope import new_id
from jsq.errors import BulkUnknown
from tests.chaos.history import Bulk, Edited, FlowSubmit, History, Pause, Rescheduled

KEYS = tuple(f"key-{number}" for number in range(8))
"""The keys of key groups."""

EDITED_KEYS = ("edited-0", "edited-1")
"""The keys of jobs that are edited while they wait."""

UNIQUE_WAYS: Mapping[str, Mapping[str, str]] = {
    "finish": {},
    "start": {"unique_until": "start"},
    "replace": {"on_duplicate": "replace"},
    "keep_last": {"on_duplicate": "keep_last"},
}
"""The options of a unique key, by the prefix of the key. The prefix decides when a job releases the key."""

UNIQUE_KEYS = 2
"""The number of unique keys for each entry of `UNIQUE_WAYS`."""

BULK = 20
RESUMED_SECONDS, PAUSED_SECONDS = (2.0, 5.0), (4.0, 9.0)
"""The shortest and the longest time that the paused queue is running, and that it is paused."""


@dataclass(frozen=True)
class Order:
    """A job to submit, with the kind and the key that are noted of it.

    Its options may have delay and expires.
    """

    task: str
    args: tuple[object, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    key: str = ""

    def acknowledged(self, job: str, first: float, began: float, *, duplicate: bool) -> FlowSubmit:
        """The note of an acknowledged submit. `first` is the time of the first try, `began` of the last."""
        delay, expires = self.options.get("delay"), self.options.get("expires")
        answered = time.time()
        return FlowSubmit(
            self.kind,
            job,
            began,
            answered,
            self.key,
            duplicate,
            due=first + delay if delay is not None else 0.0,
            expires=answered + expires if expires is not None else math.inf,
        )


Put = Callable[[Client, Order], Awaitable[str | None]]
"""Submits an order until it is acknowledged, and returns the id of the job; None after too many tries."""

Note = Callable[[str, str], None]
"""Notes the outcome of the submit of a job id."""


class Flow:
    """The operations with flow control."""

    def __init__(self, history: History, chance: random.Random, put: Put, note: Note) -> None:
        self._history = history
        self._chance = chance
        self._put = put
        self._note = note
        self._locks = {key: asyncio.Lock() for key in KEYS}
        self._acts: list[tuple[int, Callable[[Client], Awaitable[None]]]] = [
            (6, self._submit_keyed),
            (6, self._unique),
            (5, self._expiring),
            (3, self._limited),
            (4, self._narrowed),
            (4, self._moved),
            (4, self._edited),
            (5, self._batched),
            (3, self._gated),
            (1, self._all_or_nothing),
        ]

    async def act(self, client: Client) -> None:
        """Run one of the operations, chosen at random."""
        weights = [weight for weight, _ in self._acts]
        [(_, act)] = self._chance.choices(self._acts, weights)
        await act(client)

    # -- how many at once --------------------------------------------------------------------------------

    async def _submit_keyed(self, client: Client) -> None:
        free = [key for key, lock in self._locks.items() if not lock.locked()]
        if not free:
            return
        key = self._chance.choice(free)
        async with self._locks[key]:
            await self._put(client, self._keyed(key))

    def _keyed(self, key: str) -> Order:
        options: dict[str, Any] = {"queue": "groups", "key": key, "priority": self._priority()}
        if self._chance.random() < 0.1:
            options["delay"] = self._chance.uniform(0.1, 2)
        draw = self._chance.random()
        if draw < 0.1:
            return Order("flaky", (), options, "keyed", key)
        if draw < 0.2:
            return Order("snoozing", (time.time() + self._chance.uniform(0, 1),), options, "keyed", key)
        if draw < 0.25:
            return Order("doomed", (), options, "keyed", key)
        return Order("work", (self._chance.choice([0.0, 0.05, 0.2]),), options, "keyed", key)

    async def _limited(self, client: Client) -> None:
        """Submit one job, or sometimes more at once than the rate limit admits."""
        task = self._chance.choice(["limited", "metered"])
        queue = {"queue": "limited"} if task == "limited" else {}
        order = Order(task, (), queue, task)
        count = 15 if self._chance.random() < 0.1 else 1
        await asyncio.gather(*(self._put(client, order) for _ in range(count)))

    async def _narrowed(self, client: Client) -> None:
        """Submit one job, or sometimes more than may run at once."""
        count = 8 if self._chance.random() < 0.1 else 1
        for _ in range(count):
            options = {"queue": "narrow", "priority": self._priority()}
            await self._put(
                client, Order("narrowed", (self._chance.choice([0.0, 0.1, 1.0]),), options, "narrowed")
            )

    async def _gated(self, client: Client) -> None:
        seconds = self._chance.choice([0.0, 0.1, 1.0])
        await self._put(client, Order("work", (seconds,), {"queue": "gated"}, "gated"))

    # -- whether -----------------------------------------------------------------------------------------

    async def _unique(self, client: Client) -> None:
        way = self._chance.choice(list(UNIQUE_WAYS))
        key = f"{way}-{self._chance.randrange(UNIQUE_KEYS)}"
        options: dict[str, Any] = {"unique": key, **UNIQUE_WAYS[way]}
        if way == "finish" and self._chance.random() < 0.3:
            options["on_duplicate"] = "raise"
        if way != "keep_last" and self._chance.random() < 0.2:
            options["delay"] = self._chance.uniform(0.1, 2)
        seconds = self._chance.choice([0.0, 0.2, 1.0])
        await self._put(client, Order("work", (seconds,), options, "unique", key))

    async def _all_or_nothing(self, client: Client) -> None:
        ids: tuple[str, ...] | None = None
        if self._chance.random() < 0.5:
            ids = tuple(f"bulk/{new_id()}.*" for _ in range(BULK))
        for _ in range(3):
            try:
                calls = [(0.0,)] * BULK
                jobs = await client.task("work").submit_many(calls, ids=ids, all_or_nothing=True)
            except BulkUnknown as error:
                ids = error.ids
                self._note_bulk(ids, "unknown")
            except BrokerError as error:
                self._history.errors.append(f"{type(error).__name__}: {error}")
                self._note_bulk(ids or (), type(error).__name__)
                return
            else:
                self._note_bulk(tuple(job.id for job in jobs), "acknowledged")
                return
            if self._chance.random() < 0.3:
                return

    def _note_bulk(self, ids: tuple[str, ...], outcome: str) -> None:
        self._history.bulks.append(Bulk(ids, outcome))
        for id in ids:
            self._note(id, outcome)

    async def _batched(self, client: Client) -> None:
        count = self._chance.choice([1, 1, 5])
        orders = [self._item() for _ in range(count)]
        await asyncio.gather(*(self._put(client, order) for order in orders))

    def _item(self) -> Order:
        word = self._chance.choices(["good", "bad", "later"], [8, 1, 1])[0]
        return Order("batched", (word,), {}, "batched", word)

    # -- when --------------------------------------------------------------------------------------------

    async def _expiring(self, client: Client) -> None:
        options: dict[str, Any] = {
            "queue": self._chance.choice(["default", "gated"]),
            "expires": self._chance.uniform(0.3, 5),
            "priority": self._priority(),
        }
        if self._chance.random() < 0.3:
            options["delay"] = options["expires"] * self._chance.uniform(0.5, 0.95)
        await self._put(client, Order("work", (self._chance.choice([0.0, 0.5]),), options, "expiring"))

    async def _moved(self, client: Client) -> None:
        """Submit a delayed job, then promote or reschedule it once or twice."""
        options = {"delay": self._chance.uniform(1, 10)}
        id = await self._put(client, Order("work", (0.0,), options, "moved"))
        for _ in range(self._chance.choice([1, 1, 2])):
            if id is None:
                return
            await asyncio.sleep(self._chance.uniform(0, 1.5))
            delay = self._chance.uniform(0.2, 8) if self._chance.random() < 0.6 else None
            await self._move(client, id, delay)

    async def _move(self, client: Client, id: str, delay: float | None) -> None:
        moved = Rescheduled(id, time.time() + (delay or 0.0), promoted=delay is None, known=True)
        job = client.jobs.handle(id)
        try:
            await (job.promote() if delay is None else job.reschedule(delay=delay))
        except BrokerError:
            self._history.rescheduled.append(replace(moved, known=False))
        except WrongState:
            pass
        except JobNotFound:
            self._history.missing.append(id)
        else:
            self._history.rescheduled.append(moved)

    async def _edited(self, client: Client) -> None:
        """Change a job that waits: its argument or its queue, once or twice."""
        options: dict[str, Any] = {}
        if self._chance.random() < 0.6:
            options["delay"] = self._chance.uniform(0.3, 3)
        keyed = self._chance.random() < 0.3  # on another queue the order of a key does not apply
        if keyed:
            options |= {"queue": "groups", "key": self._chance.choice(EDITED_KEYS)}
        id = await self._put(client, Order("work", (0.0,), options, "edited"))
        for _ in range(self._chance.choice([1, 1, 2])):
            if id is None:
                return
            if not keyed and self._chance.random() < 0.3:
                edited = Edited(id, queue="apart")
            else:
                edited = Edited(id, value=round(self._chance.uniform(0.001, 0.05), 6))
            await self._edit(client, edited)
            await asyncio.sleep(self._chance.choice([0.0, 0.5]))

    async def _edit(self, client: Client, edited: Edited) -> None:
        job = client.jobs.handle(edited.job)
        try:
            await (job.move(queue=edited.queue) if edited.queue else job.edit([edited.value]))
        except (BrokerError, WrongState):  # an earlier try may have been stored
            self._history.edited.append(replace(edited, known=False))
        except JobNotFound:
            self._history.missing.append(edited.job)
        else:
            self._history.edited.append(edited)

    def _priority(self) -> str:
        return self._chance.choice(["high", "normal", "low"])

    # -- pauses ------------------------------------------------------------------------------------------

    async def gate(self, client: Client, seconds: float) -> None:
        """Pause and resume a queue repeatedly for `seconds`. At the end the queue is not paused."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(self._chance.uniform(*RESUMED_SECONDS))
            try:
                await client.queues.pause("gated")
            except BrokerError:
                began = math.inf
            else:
                began = time.time()
                await asyncio.sleep(self._chance.uniform(*PAUSED_SECONDS))
            ended = time.time()
            await resume_gate(client)
            if began < ended:
                self._history.pauses.append(Pause("gated", began, ended))


async def resume_gate(client: Client) -> None:
    """Resume the queue; try until it succeeds."""

    while True:
        try:
            return await client.queues.resume("gated")
        except BrokerError:
            await asyncio.sleep(0.2)
