"""The baseline of `jsq bench`: the same messages without the work of jsq around them.

A bare loop submits, pulls, starts, finishes and acknowledges jobs with the messages that jsq sends, in the
same order and with the same conditions. It extends no lease, checks no arguments, judges no outcome, and
stops at the first error. Its speed is the best that the server and this connection allow.
"""

import asyncio
import json
import time
from collections.abc import Callable

from jsq.broker.jobs.records import RECORD_SECONDS, expectation_lines, is_final, own_expectation_lines
from jsq.broker.topology.subjects import Subjects
from jsq.codec import envelope, revisions
from jsq.codec.envelope import new_ids
from jsq.codec.subject_token import STEM
from jsq.model.job import Job
from jsq.model.revision import DeliveryInfo
from jsq.transport.batch_publish import OutgoingMessage, fast_ingest, parts
from jsq.transport.replies import Reply, acknowledged, block, header_line
from jsq.transport.wire import Subscription, Wire

PULL_SECONDS = 600


class Baseline:
    """A connection with a callback for each reply, and nothing else."""

    def __init__(self, wire: Wire, subjects: Subjects, queue: str, task: str) -> None:
        self.wire = wire
        self.names = subjects
        self.queue = queue
        self.task = task
        self._order = header_line(envelope.JOB, envelope.encode_order(Job("", task)))
        self._inbox = ""
        self._callbacks: dict[str, Callable[[Reply], None]] = {}
        self._number = 0
        self._pulls = ""
        self._listening: list[Subscription] = []

    async def open(self) -> "Baseline":
        self._inbox = self.wire.new_inbox()
        self._listening.append(await self.wire.subscribe(f"{self._inbox}.*", self._answered))
        return self

    async def close(self) -> None:
        for subscription in self._listening:
            await self.wire.unsubscribe(subscription)

    # -- the submitter's side ----------------------------------------------------------------------------

    async def submit(self, count: int, payload: bytes, *, window: int = 100) -> None:
        """Submit jobs with one message each, `window` of them at a time."""
        ids = iter(new_ids(count))
        left, done = count, asyncio.get_running_loop().create_future()

        def next_one(reply: Reply | None = None) -> None:
            nonlocal left
            if reply is not None:
                acknowledged(reply.payload, "")
                left -= 1
                if not left:
                    done.set_result(None)
            if (id := next(ids, None)) is not None:
                self.put(id, payload, next_one)

        for _ in range(min(window, count)):
            next_one()
        await done

    def put(self, id: str, payload: bytes, answered: Callable[[Reply], None]) -> None:
        """Submit one job."""
        names, queue = self.names, self.queue
        headers = block(self._order, expectation_lines(0, names.ready(queue, "*", id)))
        self._ask(names.ready(queue, "normal", id), payload, headers, answered)

    async def submit_batches(self, count: int, payload: bytes) -> None:
        """Submit jobs in pipelined batches."""
        stem = self.names.ready(self.queue, "normal", STEM)
        messages = [OutgoingMessage(stem + id, payload, self._order) for id in new_ids(count)]
        for part in parts(messages):
            await fast_ingest(self.wire, part)

    async def outcome(self, id: str, payload: bytes) -> None:
        """Submit one job, and wait for its outcome."""
        ended = asyncio.get_running_loop().create_future()

        def on_revision(message: Reply) -> None:
            if is_final(message.payload) and not ended.done():
                ended.set_result(None)

        subscription = await self.wire.subscribe(self.names.stored_record(self.queue, id), on_revision)
        self.put(id, payload, lambda _: None)
        await ended
        await self.wire.unsubscribe(subscription)

    # -- the worker's side -------------------------------------------------------------------------------

    async def work(self, concurrency: int, seconds: float, ran: Callable[[bytes], None]) -> None:
        """Run jobs until cancelled. Each lasts `seconds`; its start calls `ran` with its arguments."""
        wanted = max(1, concurrency // 2)
        credit = 0

        def fill() -> None:
            nonlocal credit
            while credit <= concurrency - wanted:
                credit += wanted
                self._pull(wanted)

        def done(reply: str, answer: Reply) -> None:
            nonlocal credit
            acknowledged(answer.payload, "")
            self.wire.send(reply, b"+ACK")
            credit -= 1
            fill()

        def finish(id: str, reply: str, running: bytes, token: int, arguments: bytes) -> None:
            body = revisions.encode_succeeded(running, token, arguments, b'{"result":null}')
            self._record(id, body, token, lambda answer: done(reply, answer))

        def started(message: Reply, id: str, running: bytes, answer: Reply) -> None:
            token = acknowledged(answer.payload, "")
            ran(message.payload)
            arguments = revisions.argument_members(message.payload)
            if seconds:
                loop.call_later(seconds, finish, id, message.reply, running, token, arguments)
            else:
                finish(id, message.reply, running, token, arguments)

        def delivered(message: Reply) -> None:
            if not message.reply:
                return
            id = message.subject.rpartition(".")[2]
            tokens = message.reply.split(".")
            delivery = DeliveryInfo("baseline", int(tokens[5]), int(tokens[4]))
            now = int(1000 * time.time())
            running = revisions.encode_running(Job(id, self.task), delivery, now, now)
            self._record(id, running, 0, lambda answer: started(message, id, running, answer))

        loop = asyncio.get_running_loop()
        self._pulls = self.wire.new_inbox()
        self._listening.append(await self.wire.subscribe(f"{self._pulls}.*", delivered))
        fill()
        await asyncio.get_running_loop().create_future()

    # -- inside ------------------------------------------------------------------------------------------

    def _record(self, id: str, body: bytes, expect: int, answered: Callable[[Reply], None]) -> None:
        headers = block(own_expectation_lines(expect, RECORD_SECONDS))
        self._ask(self.names.record(self.queue, id), body, headers, answered)

    def _pull(self, count: int) -> None:
        stream = self.names.streams.ready(self.queue)
        request = json.dumps({"batch": count, "expires": PULL_SECONDS * 10**9}).encode()
        self._number += 1
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.normal"
        self.wire.send(subject, request, reply=f"{self._pulls}.{self._number}")

    def _ask(self, subject: str, body: bytes, headers: bytes, answered: Callable[[Reply], None]) -> None:
        self._number += 1
        reply = f"{self._inbox}.{self._number}"
        self._callbacks[reply] = answered
        self.wire.send(subject, body, headers, reply)

    def _answered(self, reply: Reply) -> None:
        self._callbacks.pop(reply.subject)(reply)
