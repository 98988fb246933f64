"""The place of a job in its key's turn: given up in time; and the knocks of those who wait: answered.

Given up before the delivery is settled: a crash between the two brings the delivery back, and it is done
again.
"""

import asyncio
import logging
from collections.abc import Callable

from jsq.broker import Broker, Delivery, Puller
from jsq.broker.topology.configs import WAKEUP_LEASE, WAKEUPS
from jsq.errors import BrokerError
from jsq.model.job import Job
from jsq.model.key_group import SlotKind
from jsq.model.outcome import Interrupted, Outcome, TryAgain

log = logging.getLogger("jsq.worker")

AT_ONCE = 50
"""Keys of one queue that a worker looks after at the same time."""


def keeps(place: SlotKind, outcome: Outcome) -> bool:
    """Whether a job keeps its place when an attempt has come to this."""
    match outcome:
        case Interrupted():
            return place != "once"
        case TryAgain():
            return place == "strict"
    return False


class GroupSlot:
    """Gives up the place of one job."""

    def __init__(self, broker: Broker, job: Job, until: Callable[[], bool]) -> None:
        self._broker = broker
        self._job = job
        self._until = until
        self._beside: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Give the place up while the task runs, if it was kept until that begins."""
        if self._job.group_slot == "once" and self._beside is None:
            self._beside = asyncio.get_running_loop().create_task(self.give_up(self._job.previous_sequence))

    async def end(self, outcome: Outcome) -> None:
        """See that the place is given up, unless the job keeps it."""
        place = self._job.group_slot
        if place is None or keeps(place, outcome):
            return
        if self._beside is None or not await left(self._beside):
            await self.give_up(self._job.previous_sequence)

    async def give_up(self, over: int) -> None:
        """Give up the place of an attempt on top of the log's sequence `over`, or less."""
        job = self._job
        await self._broker.key_groups.leave(job.queue, job.key_token, job.id, over=over, until=self._until)

    async def close(self) -> None:
        """Leave nothing under way."""
        if self._beside is not None:
            self._beside.cancel()
            await asyncio.gather(self._beside, return_exceptions=True)


async def left(leaving: asyncio.Task[None]) -> bool:
    """Whether a place was given up; if not, it has to be tried again."""
    try:
        await leaving
    except BrokerError:
        return False
    return True


class GroupWakeups:
    """Answers the knocks of a queue: each says that someone came into the line of a key."""

    def __init__(self, broker: Broker, queue: str, group: asyncio.TaskGroup) -> None:
        self._broker = broker
        self._queue = queue
        self._group = group
        self._answering: set[asyncio.Task[None]] = set()
        self._told = asyncio.Event()
        self._puller: Puller | None = None
        self._over = False

    async def keep_answering(self) -> None:
        """Answer from when the queue has lines; that is said to all its workers. Runs until cancelled."""
        wire, names = self._broker.wire, self._broker.subjects
        hearing = await wire.listen(names.groups_created(self._queue), lambda message: self._told.set())
        try:
            if await self._broker.streams.has_line(self._queue):
                self._told.set()
            await self._lines_stand()
            self._puller = puller = Puller(
                wire,
                names.group_state_stream(self._queue),
                self._queue,
                WAKEUPS,
                WAKEUP_LEASE,
                taken=self._taken,
                wanted=lambda puller: AT_ONCE - len(self._answering),
                emptied=lambda: None,
            )
            await puller.open()
            await puller.watch()
        finally:
            self._over = True
            await wire.stop_listening(hearing)

    async def look(self) -> None:
        """See whether there are lines by now, though nobody told us, and whether their consumer stands."""
        streams, stream = self._broker.streams, self._broker.subjects.group_state_stream(self._queue)
        if not self._told.is_set():
            if await streams.has_line(self._queue):
                self._told.set()
        elif await streams.consumer_info(stream, WAKEUPS) is None:
            streams.forget()
            await streams.ensure_line(self._queue)

    async def close(self) -> None:
        """Ask for no more. What is not answered yet, another will."""
        if self._puller is not None:
            await self._puller.close()
        for answering in self._answering:
            answering.cancel()

    async def _lines_stand(self) -> None:
        """Wait until the queue has lines, and see that they are whole."""
        while True:
            await self._told.wait()
            try:
                return await self._broker.streams.ensure_line(self._queue)
            except BrokerError as error:
                log.warning("lines not made", extra={"queue": self._queue, "why": str(error)})
                self._told.clear()

    def _taken(self, delivery: Delivery) -> None:
        if self._over:
            return  # the knock comes to another in a moment: we are about to close the connection
        answering = self._group.create_task(self._answer(delivery))
        self._answering.add(answering)
        answering.add_done_callback(self._answered)

    async def _answer(self, delivery: Delivery) -> None:
        lease = delivery.lease
        try:
            await self._broker.key_groups.admit(self._queue, delivery.id, until=lambda: not lease.lapsed())
        except BrokerError as error:
            log.info("knock not answered", extra={"queue": self._queue, "why": str(error)})
        except Exception:
            # What stands in the line of one key is not to end a worker, nor the next one after it.
            log.exception("knock not answered", extra={"queue": self._queue, "token": delivery.id})
        else:
            self._broker.wire.send(delivery.reply, b"+ACK")

    def _answered(self, answering: asyncio.Task[None]) -> None:
        self._answering.discard(answering)
        if self._puller is not None:
            self._puller.ask()
