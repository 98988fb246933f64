"""What one attempt keeps for those after it, and what those before it have kept.

Lives on the worker's loop; `ask` may be called from any thread. Whoever is told that his attempt is no longer
the job's last word keeps nothing any more, and his attempt ends.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from jsq.broker.answers import NoAnswer, WrongSequence
from jsq.broker.steps import Steps as Place
from jsq.codec.steps import decode
from jsq.errors import BadOption, LeaseLost
from jsq.job import Job
from jsq.step import CHECKPOINT, MOST_STEPS, is_step

SUPERSEDED = 50
"""Checkpoints of one attempt that may lie below the last one before they are removed."""

HEARD = 0.1
"""Seconds in which a task hears that its attempt is lost, before it is asked to end."""


class Steps:
    """What one attempt of a job keeps."""

    def __init__(
        self,
        place: Place,
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
        self._superseded = 0

    @property
    def checkpoint(self) -> bytes:
        """The job's last checkpoint, as JSON; empty where there is none."""
        return self._kept.get(CHECKPOINT, b"")

    async def recall(self) -> None:
        """Read what the attempts before have kept. From the start of ours on they keep nothing more."""
        job = self._job
        self._kept = await self._place.read(job.queue, job.id, token=self._token, until=self._holds)

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
                if place in self._kept and not decode(self._kept[place]).undone:
                    return self._kept[place]
                self._check_room(place)
            await self._write(place, body)
            self._superseded += place == CHECKPOINT and place in self._kept
            self._kept[place] = body
            if self._superseded >= SUPERSEDED:
                await self._tidy()
            return b""

    async def end(self, *, over: bool) -> None:
        """See to what is left behind: where the job is `over`, nothing."""
        if self._kept and over:
            await self._place.forget(self._job.queue, self._job.id)
        elif self._superseded:
            await self._tidy()

    def _check_room(self, place: str) -> None:
        steps = [one for one in self._kept if is_step(one)]
        if place not in steps and len(steps) >= MOST_STEPS:
            name = place.partition(".")[2]
            raise BadOption("once", name, f"a job takes {MOST_STEPS} steps at most, and has taken those")

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
        except NoAnswer as error:
            if self._holds():
                raise
            raise self._told() from error

    async def _tidy(self) -> None:
        self._superseded = 0
        await self._place.forget(self._job.queue, self._job.id, CHECKPOINT, but=1)

    def _told(self) -> LeaseLost:
        return LeaseLost(f"job {self._job.id} is no longer this attempt's: nothing of it is kept any more")
