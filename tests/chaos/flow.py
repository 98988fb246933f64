"""Clients of a chaos run that say when, whether and how many at once; they note what they asked for and got.

Of a key with a line one client submits at a time, so that the order of its submits is known.
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
from tests.chaos.history import Asked, Bulk, History, Moved, Pause

KEYS = tuple(f"key-{number}" for number in range(8))
"""Those that have a line."""

UNIQUE_WAYS: Mapping[str, Mapping[str, str]] = {
    "finish": {},
    "start": {"unique_until": "start"},
    "replace": {"on_duplicate": "replace"},
    "keep_last": {"on_duplicate": "keep_last"},
}
"""What is asked for with a unique key, by its name: who holds a key is judged by what it was taken with."""

UNIQUE_KEYS = 2
"""Of each of these ways."""

BULK = 20
OPEN_SECONDS, SHUT_SECONDS = (2.0, 5.0), (4.0, 9.0)
"""How long the gate is open, and how long it is shut, at least and at most."""


@dataclass(frozen=True)
class Order:
    """What is to be submitted, and what is noted of it; `delay` and `expires` are among its options too."""

    task: str
    args: tuple[object, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    key: str = ""

    def asked(self, job: str, first: float, began: float, *, duplicate: bool) -> Asked:
        """What is noted of it when it has been acknowledged, after a `first` try."""
        delay, expires = self.options.get("delay"), self.options.get("expires")
        answered = time.time()
        return Asked(
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
"""Submits until it is acknowledged, or enough was tried; returns the job's id in the first case."""

Note = Callable[[str, str], None]
"""Notes of a job's id what was told of its submit."""


class Flow:
    """What the clients of a load do besides."""

    def __init__(self, history: History, chance: random.Random, put: Put, note: Note) -> None:
        self._history = history
        self._chance = chance
        self._put = put
        self._note = note
        self._lines = {key: asyncio.Lock() for key in KEYS}
        self._acts: list[tuple[int, Callable[[Client], Awaitable[None]]]] = [
            (6, self._line_up),
            (6, self._unique),
            (5, self._expiring),
            (3, self._limited),
            (4, self._narrowed),
            (4, self._moved),
            (5, self._batched),
            (3, self._gated),
            (1, self._all_or_nothing),
        ]

    async def act(self, client: Client) -> None:
        """Do one of these things, by chance."""
        weights = [weight for weight, _ in self._acts]
        [(_, act)] = self._chance.choices(self._acts, weights)
        await act(client)

    # -- how many at once --------------------------------------------------------------------------------

    async def _line_up(self, client: Client) -> None:
        free = [key for key, lock in self._lines.items() if not lock.locked()]
        if not free:
            return
        key = self._chance.choice(free)
        async with self._lines[key]:
            await self._put(client, self._lined(key))

    def _lined(self, key: str) -> Order:
        options: dict[str, Any] = {"queue": "lines", "key": key, "priority": self._priority()}
        if self._chance.random() < 0.1:
            options["delay"] = self._chance.uniform(0.1, 2)
        draw = self._chance.random()
        if draw < 0.1:
            return Order("flaky", (), options, "lined", key)
        if draw < 0.2:
            return Order("snoozing", (time.time() + self._chance.uniform(0, 1),), options, "lined", key)
        if draw < 0.25:
            return Order("doomed", (), options, "lined", key)
        return Order("work", (self._chance.choice([0.0, 0.05, 0.2]),), options, "lined", key)

    async def _limited(self, client: Client) -> None:
        """Now and then more at once than the rate lets through."""
        task = self._chance.choice(["limited", "metered"])
        queue = {"queue": "limited"} if task == "limited" else {}
        order = Order(task, (), queue, task)
        count = 15 if self._chance.random() < 0.1 else 1
        await asyncio.gather(*(self._put(client, order) for _ in range(count)))

    async def _narrowed(self, client: Client) -> None:
        """Now and then more at once than may run."""
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

    def _note_bulk(self, ids: tuple[str, ...], told: str) -> None:
        self._history.bulks.append(Bulk(ids, told))
        for id in ids:
            self._note(id, told)

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
        """Have a delayed job run now, or at another moment; perhaps twice."""
        options = {"delay": self._chance.uniform(1, 10)}
        id = await self._put(client, Order("work", (0.0,), options, "moved"))
        for _ in range(self._chance.choice([1, 1, 2])):
            if id is None:
                return
            await asyncio.sleep(self._chance.uniform(0, 1.5))
            delay = self._chance.uniform(0.2, 8) if self._chance.random() < 0.6 else None
            await self._move(client, id, delay)

    async def _move(self, client: Client, id: str, delay: float | None) -> None:
        moved = Moved(id, time.time() + (delay or 0.0), promoted=delay is None, known=True)
        job = client.jobs.handle(id)
        try:
            await (job.promote() if delay is None else job.reschedule(delay=delay))
        except BrokerError:
            self._history.moved.append(replace(moved, known=False))
        except WrongState:
            pass
        except JobNotFound:
            self._history.missing.append(id)
        else:
            self._history.moved.append(moved)

    def _priority(self) -> str:
        return self._chance.choice(["high", "normal", "low"])

    # -- a gate ------------------------------------------------------------------------------------------

    async def gate(self, client: Client, seconds: float) -> None:
        """Pause a queue and let it go on, again and again for so long. It is left open."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(self._chance.uniform(*OPEN_SECONDS))
            try:
                await client.queues.pause("gated")
            except BrokerError:
                began = math.inf
            else:
                began = time.time()
                await asyncio.sleep(self._chance.uniform(*SHUT_SECONDS))
            ended = time.time()
            await open_gate(client)
            if began < ended:
                self._history.pauses.append(Pause("gated", began, ended))


async def open_gate(client: Client) -> None:
    """Resume the queue, for as long as it takes."""
    while True:
        try:
            return await client.queues.resume("gated")
        except BrokerError:
            await asyncio.sleep(0.2)
