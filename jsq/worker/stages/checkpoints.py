"""What one attempt keeps for those after it, and what those before it have kept.

Lives on the worker's loop; `ask` may be called from any thread. Whoever is told that his attempt is no longer
the job's last word keeps nothing any more, and his attempt ends.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from jsq.broker.flow.checkpoints import CheckpointStore
from jsq.codec.checkpoints import decode, with_number
from jsq.errors import BadOption, LeaseLost
from jsq.model.checkpoint import ALL_STEPS, CHECKPOINT, MAX_STEPS, is_step
from jsq.model.job import Job
from jsq.transport.replies import NoReply, WrongSequence

SUPERSEDED = 50
"""Checkpoints of one attempt that may lie below the last one before they are removed."""

HEARD = 0.1
"""Seconds in which a task hears that its attempt is lost, before it is asked to end."""


class Checkpoints:
    """What one attempt of a job keeps."""

    def __init__(
        self,
        place: CheckpointStore,
        job: Job,
        token: int,
        *,
        holds: Callable[[], bool],
        lost: Callable[[LeaseLost], None],
    ) -> None:
        self._place = place
        self._job = job
        self._token = token
        self._holds = holds
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._kept: dict[str, bytes] = {}
        self._inherits = False
        self._number: int | None = 0
        self._superseded = 0

    @property
    def checkpoint(self) -> bytes:
        """The job's last checkpoint, as JSON; empty where there is none."""
        return self._kept.get(CHECKPOINT, b"")

    async def recall(self) -> None:
        """Look for what the attempts before have kept, and read the checkpoint; steps are read when taken.

        From the start of our attempt on they keep nothing more.
        """
        job = self._job
        self._inherits = (
            await self._place.newest(job.queue, job.id, ">", token=self._token, until=self._holds) > 0
        )
        if self._inherits:
            self._number = None
            await self._find(CHECKPOINT)

    def ask(self, what: str, place: str, body: bytes) -> Future[bytes]:
        """Have something kept, from any thread: see `act`."""
        coming = self.act(what, place, body)
        try:
            return asyncio.run_coroutine_threadsafe(coming, self._loop)
        except RuntimeError as error:  # the loop has ended, and the worker with it
            coming.close()
            raise self._told() from error

    async def act(self, what: str, place: str, body: bytes) -> bytes:
        """As `ask`, on the loop. Raises `LeaseLost`, and what else the broker raises.

        `keep` writes, whatever stood there. `claim` writes where nothing stands, or what is undone, and gives
        nothing back; else it gives back what stands there. Nobody but us can have written meanwhile.
        """
        async with self._turn:
            if what == "claim":
                found = await self._find(place)
                if found and not decode(found).undone:
                    return found
                if not found:
                    await self._make_room(place)
            if is_step(place):
                body = with_number(body, self._number or 0)
            await self._write(place, body)
            self._superseded += place == CHECKPOINT and bool(self.checkpoint)
            self._kept[place] = body
            if self._superseded >= SUPERSEDED:
                await self._tidy()
            return b""

    async def end(self, *, over: bool) -> None:
        """See to what is left behind: where the job is `over`, nothing."""
        if over and (self._inherits or any(self._kept.values())):
            await self._place.forget(self._job.queue, self._job.id)
        elif self._superseded:
            await self._tidy()

    async def _find(self, place: str) -> bytes:
        """What stands at a place, by us or by an attempt before; empty where nothing does."""
        if place not in self._kept:
            self._kept[place] = await self._read(place) if self._inherits else b""
        return self._kept[place]

    async def _make_room(self, place: str) -> None:
        """Count one more step of the job. Raises `BadOption` for one too many."""
        if self._number is None:
            last = await self._read(ALL_STEPS)
            self._number = decode(last).number if last else 0
        if self._number >= MAX_STEPS:
            name = place.partition(".")[2]
            raise BadOption("once", name, f"a job takes {MAX_STEPS} steps at most, and has taken those")
        self._number += 1

    async def _read(self, place: str) -> bytes:
        job = self._job
        return await self._place.read(job.queue, job.id, place, token=self._token, until=self._holds)

    async def _write(self, place: str, body: bytes) -> None:
        job = self._job
        try:
            if not self._holds():
                raise self._told()
            await self._place.write(job.queue, job.id, place, body, token=self._token, until=self._holds)
        except WrongSequence as refused:
            lost = self._told()
            self._loop.call_later(HEARD, self._lost, lost)
            raise lost from refused
        except NoReply as error:
            if self._holds():
                raise
            raise self._told() from error

    async def _tidy(self) -> None:
        self._superseded = 0
        await self._place.forget(self._job.queue, self._job.id, CHECKPOINT, but=1)

    def _told(self) -> LeaseLost:
        return LeaseLost(f"job {self._job.id} is no longer this attempt's: nothing of it is kept any more")
