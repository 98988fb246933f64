"""Checkpoints: what one attempt stores for the next ones, and what the earlier ones have stored.

It runs on the worker's loop; `ask` may be called from any thread. An attempt that is no longer the job's
newest stores nothing more, and ends.
"""

import asyncio
from concurrent.futures import Future

from jsq.broker.flow.checkpoints import CheckpointStore
from jsq.codec.checkpoints import decode, step_name, with_number
from jsq.declaration import Declaration
from jsq.errors import BadOption, LeaseLost
from jsq.model.checkpoint import ALL_STEPS, CHECKPOINT, MAX_STEPS, is_step
from jsq.model.job import Job
from jsq.model.outcome import Outcome
from jsq.model.revision import Revision
from jsq.task import AnyTask
from jsq.transport.replies import NoReply, WrongSequence
from jsq.worker.stages.base import Requeue, Stage
from jsq.worker.state import AttemptState

SUPERSEDED = 50
"""How many superseded checkpoints of one attempt may exist before they are removed."""

NOTICE = 0.1
"""Seconds for a task to handle the lost lease of its attempt before it is cancelled."""

OVER = ("succeeded", "cancelled", "expired")
"""States after which a job keeps no checkpoint. A failed job keeps its checkpoints for a retry."""


class CheckpointStage(Stage):
    """Loads the checkpoints of a job, and removes them at its end.

    Exceptional, because an earlier attempt may have stored checkpoints on a worker with other code.
    """

    exceptional = True

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return task is not None and task.uses_context(job.queue)

    async def started(self, attempt: AttemptState) -> Outcome | None:
        if attempt.task is None or not attempt.task.uses_context(attempt.job.queue):
            return None
        memory = Checkpoints(attempt.resources.broker.checkpoints, attempt)
        attempt.function.memory = memory
        if attempt.continues:  # a first attempt has no earlier checkpoints
            await memory.load()
        return None

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        memory, over = attempt.function.memory, event.state in OVER
        if isinstance(memory, Checkpoints):
            await memory.end(over=over)
        elif over and attempt.continues:
            await attempt.resources.broker.checkpoints.delete(attempt.job.queue, attempt.job.id)
        return None


class Checkpoints:
    """The checkpoints and steps of a job, as one attempt reads and writes them."""

    def __init__(self, store: CheckpointStore, attempt: AttemptState) -> None:
        self._store = store
        self._attempt = attempt
        self._job = attempt.job
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._kept: dict[str, bytes] = {}
        self._inherits = False
        self._number: int | None = 0
        self._superseded = 0

    @property
    def checkpoint(self) -> bytes:
        """The job's last checkpoint, as JSON; empty if there is none."""
        return self._kept.get(CHECKPOINT, b"")

    async def load(self) -> None:
        """Check whether earlier attempts have stored anything, and read the checkpoint.

        Steps are read when they are called. Since this attempt has started, earlier ones store nothing more.
        """
        job, has_lease = self._job, self._attempt.has_lease
        newest = await self._store.latest_sequence(
            job.queue, job.id, ">", token=self._attempt.token, while_=has_lease
        )
        self._inherits = newest > 0
        if self._inherits:
            self._number = None
            await self._find(CHECKPOINT)

    def ask(self, what: str, place: str, body: bytes) -> Future[bytes]:
        """Store or claim a value, from any thread; see `act`."""
        coming = self.act(what, place, body)
        try:
            return asyncio.run_coroutine_threadsafe(coming, self._loop)
        except RuntimeError as error:  # the loop has ended, and the worker with it
            coming.close()
            raise self._lost() from error

    async def act(self, what: str, place: str, body: bytes) -> bytes:
        """As `ask`, on the event loop. Raises `LeaseLost`, and the errors of the broker.

        `keep` writes in any case. `claim` writes if there is no value, or if the step is undone, and returns
        nothing; otherwise it returns the stored value. No other attempt can have written meanwhile. `header`
        changes the job of this attempt, and stores nothing.
        """
        if what == "header":
            self._attempt.add_header(place, body.decode())
            return b""
        async with self._lock:
            if what == "claim":
                found = await self._find(place)
                if found and not decode(found).not_executed:
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
        """Remove superseded checkpoints, and all checkpoints and steps if the job is `over`."""
        if over and (self._inherits or any(self._kept.values())):
            await self._store.delete(self._job.queue, self._job.id)
        elif self._superseded:
            await self._tidy()

    async def _find(self, place: str) -> bytes:
        """The value that this or an earlier attempt has stored under a key; empty if there is none."""
        if place not in self._kept:
            self._kept[place] = await self._read(place) if self._inherits else b""
        return self._kept[place]

    async def _make_room(self, place: str) -> None:
        """Count one more step of the job. Raises `BadOption` if there are too many."""
        if self._number is None:
            last = await self._read(ALL_STEPS)
            self._number = decode(last).number if last else 0
        if self._number >= MAX_STEPS:
            name = step_name(place)
            raise BadOption(
                "once", name, f"must be one of {MAX_STEPS} steps at most, which the job has already"
            )
        self._number += 1

    async def _read(self, place: str) -> bytes:
        job = self._job
        return await self._store.read(
            job.queue, job.id, place, token=self._attempt.token, while_=self._attempt.has_lease
        )

    async def _write(self, place: str, body: bytes) -> None:
        job, has_lease, token = self._job, self._attempt.has_lease, self._attempt.token
        try:
            if not has_lease():
                raise self._lost()
            await self._store.write(job.queue, job.id, place, body, token=token, while_=has_lease)
        except WrongSequence as refused:
            if await self._attempt.was_renewed(token):
                await self._write(place, body)
                return
            lost = self._lost()
            self._loop.call_later(NOTICE, self._attempt.stop, lost)
            raise lost from refused
        except NoReply as error:
            if self._attempt.has_lease():
                raise
            raise self._lost() from error

    async def _tidy(self) -> None:
        self._superseded = 0
        await self._store.delete(self._job.queue, self._job.id, CHECKPOINT, but=1)

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"the lease of job {self._job.id} is lost: nothing more of this attempt is stored")
