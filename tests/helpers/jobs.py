"""The state of jobs on the server, read without the client API, and the moves of due jobs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from jsq import Client, JobHandle
from jsq.codec import envelope
from jsq.model.job import Job
from jsq.model.revision import FINAL_STATES
from jsq.worker.duties.due_jobs import DueJobMoves


async def final_states(job: JobHandle[object]) -> list[str]:
    history = await (await job._connection.broker()).records.history(job.id)
    return [event.state for event in history if event.state in FINAL_STATES]


async def queued_job(client: Client, id: str) -> Job:
    """The stored message of a waiting job, decoded."""
    broker = await client.broker()
    reply = await broker.reads.last(
        broker.subjects.streams.ready("default"), broker.subjects.ready("default", "*", id)
    )
    assert reply is not None
    return envelope.decode(reply.headers, reply.payload, id=id)


@contextlib.asynccontextmanager
async def moving_due_jobs(client: Client, *queues: str) -> AsyncIterator[None]:
    """Move the due jobs of these queues, as their workers do, and run none."""
    moves = DueJobMoves(await client.broker(), queues)
    running = asyncio.create_task(moves.run())
    yield
    await moves.close()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
