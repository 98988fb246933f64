"""The state of jobs on the server, read without the client API."""

from jsq import Client, JobHandle
from jsq.codec import envelope
from jsq.model.job import Job
from jsq.model.revision import FINAL_STATES


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
