"""Clients of a chaos run: they submit, repeat, cancel, retry and read jobs, and note each result."""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable

from jsq import BrokerError, Client, DuplicateJob, JobNotFound, SubmitUnknown, WrongState
from jsq.codec.envelope import new_id
from jsq.errors import JsqError, PartlySubmitted
from tests.chaos.flow import Flow, Order
from tests.chaos.history import History, Submitted
from tests.chaos.hooks import REFUSED, HookError
from tests.chaos.tasks import HOOKED
from tests.chaos.workflows import chord

MAX_CONCURRENT = 200
BULK_SIZE = 20
RECENT = 200


class Load:
    """Several clients that share a history."""

    def __init__(self, clients: list[Client], history: History, chance: random.Random, rate: float) -> None:
        self._clients = clients
        self._history = history
        self._chance = chance
        self._rate = rate
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._own: deque[tuple[str, str]] = deque(maxlen=RECENT)
        self._plain: deque[str] = deque(maxlen=RECENT)
        self._doomed: deque[str] = deque(maxlen=RECENT)
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._flow = Flow(history, chance, self._put, self._note)
        self.last_acknowledged = time.monotonic()
        self.longest_gap = 0.0

    async def run(self, seconds: float) -> None:
        """Keep up the rate for `seconds`; operations that the clients cannot start in time are skipped."""
        began, made = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            group.create_task(self._noted(self._flow.gate(self._clients[0], seconds)))
            while (passed := time.monotonic() - began) < seconds:
                while made < passed * self._rate:
                    made += 1
                    if not self._slots.locked():
                        group.create_task(self._act())
                await asyncio.sleep(0.005)

    async def _act(self) -> None:
        async with self._slots:
            client, draw = self._chance.choice(self._clients), self._chance.random()
            if draw < 0.01:
                await self._noted(self._submit_many(client))
            elif draw < 0.03:
                await self._noted(self._submit_workflow(client))
            elif draw < 0.3:
                await self._noted(self._flow.act(client))
            elif draw < 0.95 or not self._recent:
                await self._noted(self._submit(client))
            elif draw < 0.97:
                await self._noted(self._cancel(client, self._chance.choice(self._recent)))
            elif draw < 0.98:
                await self._noted(
                    self._retry_dead_letter(client, self._chance.choice(self._doomed or self._recent))
                )
            elif draw < 0.99 and self._plain:
                await self._noted(self._run_again(client, self._chance.choice(self._plain)))
            elif draw < 0.994 and self._own:
                await self._noted(self._submit_again(client, *self._chance.choice(self._own)))
            else:
                await self._noted(self._read_status(client, self._chance.choice(self._recent)))

    async def _noted(self, act: Awaitable[None]) -> None:
        """Await an operation and note errors that no user should ever see."""
        try:
            await act
        except Exception as error:
            self._history.unexpected_errors.append(f"{type(error).__name__}: {error}")

    async def _submit(self, client: Client) -> None:
        await self._put(client, self._order())

    async def _put(self, client: Client, order: Order) -> str | None:
        """Submit a job, with the same id again if the outcome is unknown; return the acknowledged id."""
        own = order.task == "plain" or self._chance.random() < 0.4
        id = f"own:{new_id()}.*.>" if own else None  # of characters that subjects hold encoded
        if order.task == REFUSED:
            client = self._clients[0]  # the one with middleware
        args = (id, *order.args) if order.task == "plain" else order.args
        first, deadline = time.time(), time.monotonic() + 60
        while True:
            began = time.time()
            try:
                job = await client.task(order.task).options(id=id, **order.options).submit(*args)
            except SubmitUnknown as error:
                id = error.id
                self._note(id, "unknown")
            except BrokerError as error:
                self._refused(id or "", error)
            except HookError as error:
                self._note(id or "", type(error).__name__)
                return None
            except DuplicateJob as error:
                return self._acknowledged(order, error.id, first, began, duplicate=True)
            else:
                if own and not order.kind and order.task != "plain":
                    self._own.append((job.id, order.task))
                duplicate = job.duplicate and job.id != id
                return self._acknowledged(order, job.id, first, began, duplicate=duplicate)
            if time.monotonic() > deadline or self._chance.random() < 0.3:
                return None

    async def _submit_again(self, client: Client, id: str, task: str) -> None:
        """Repeat a submit that was acknowledged, as a client does whose own caller repeats a request."""
        with contextlib.suppress(BrokerError):
            if not (await client.task(task).options(id=id).submit()).duplicate:
                self._history.doubled.append(id)

    def _order(self) -> Order:
        chance, draw = self._chance, self._chance.random()
        options: dict[str, object] = {"priority": chance.choice(["high", "normal", "normal", "low"])}
        if chance.random() < 0.1:
            options["delay"] = chance.uniform(0.1, 5)
        if chance.random() < 0.05:
            options["deadline"] = 5 + chance.uniform(0.5, 10)
        if draw < 0.001:
            return Order("poison")
        if draw < 0.08:
            return Order("flaky", (), options)
        if draw < 0.11:
            return Order("snoozing", (time.time() + chance.uniform(0, 2),), options)
        if draw < 0.13:
            return Order("doomed", (), options)
        if draw < 0.135:
            return Order(REFUSED)
        if draw < 0.16:
            return Order(chance.choice(HOOKED), (), options)
        if draw < 0.21:
            return Order("stepping", (chance.choice([0.0, 0.1, 1.0]),), options)
        seconds = chance.choice([0.0, 0.0, 0.0, 0.01, 0.1, 1.0])
        return Order(chance.choice(["work", "plain", "plain", "work_in_a_thread"]), (seconds,), options)

    async def _submit_many(self, client: Client) -> None:
        try:
            for job in await client.task("work").submit_many([(0.0,)] * BULK_SIZE):
                self._acknowledged_as(job.id)
        except PartlySubmitted as partly:
            for id in partly.stored:
                self._acknowledged_as(id)
            for error in partly.refused.values():
                if isinstance(error, SubmitUnknown):
                    self._note(error.id, "unknown")
                else:
                    self._refused("", error)
        except BrokerError as error:
            self._refused("", error)

    async def _submit_workflow(self, client: Client) -> None:
        """Submit a workflow, again under its id while the outcome is unknown."""
        flow, made = chord(client, self._chance)
        for _ in range(10):
            try:
                await client.workflows.submit(flow)
            except BrokerError as error:
                self._refused(made.job, error)
            else:
                self._history.flows.append(made)
                self._acknowledged_as(made.job)
                return
        self._history.maybe_flows.append(made)

    async def _cancel(self, client: Client, id: str) -> None:
        try:
            if (await client.jobs.handle(id).cancel()).state == "cancelled":
                self._history.cancelled.add(id)
        except (BrokerError, WrongState):
            pass
        except JobNotFound:
            self._history.missing.append(id)

    async def _retry_dead_letter(self, client: Client, id: str) -> None:
        try:
            await client.dead_letters.retry(id)
            self._history.replayed.add(id)
        except (BrokerError, WrongState):
            pass
        except JobNotFound:
            self._history.missing.append(id)

    async def _run_again(self, client: Client, id: str) -> None:
        """Run a job again that has ended, however it did."""
        self._history.again.setdefault(id, False)
        try:
            await client.jobs.handle(id).retry(again=True)
            self._history.again[id] = True
        except (BrokerError, WrongState):
            pass
        except JobNotFound:
            self._history.missing.append(id)

    async def _read_status(self, client: Client, id: str) -> None:
        try:
            await client.jobs.handle(id).status()
        except BrokerError:
            pass
        except JobNotFound:
            self._history.missing.append(id)

    def _acknowledged(self, order: Order, id: str, first: float, began: float, *, duplicate: bool) -> str:
        self._history.flow_submits.append(order.acknowledged(id, first, began, duplicate=duplicate))
        self._acknowledged_as(id)
        if order.task in ("work", "plain", "work_in_a_thread") and not order.kind:
            self._plain.append(id)
        if order.task == "doomed":
            self._doomed.append(id)
        return id

    def _acknowledged_as(self, id: str) -> None:
        now = time.monotonic()
        self.longest_gap = max(self.longest_gap, now - self.last_acknowledged)
        self.last_acknowledged = now
        self._recent.append(id)
        self._note(id, "acknowledged")

    def _refused(self, id: str, error: JsqError) -> None:
        self._history.errors.append(f"{type(error).__name__}: {error}")
        self._note(id, type(error).__name__)

    def _note(self, id: str, outcome: str) -> None:
        self._history.submits.append(Submitted(id, outcome, time.time()))
