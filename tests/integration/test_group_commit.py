"""Group commits: a write that fails does not fail the others of its group."""

import asyncio

from jsq import Client, UsageError
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.group_commit import GroupCommit


async def test_a_message_that_is_too_large_does_not_fail_the_others_of_its_group(client: Client) -> None:
    broker = await client.broker()
    await broker.streams.ensure_shared()
    commits, names = GroupCommit(broker.wire, "always"), broker.subjects
    bodies = [b"{}", b"x" * (broker.wire.max_payload + 1), b"{}"]
    subjects = [names.record("default", f"job{number}") for number in range(len(bodies))]

    writes = [commits.store(OutgoingMessage(*one)) for one in zip(subjects, bodies, strict=True)]
    behind = commits.store(
        OutgoingMessage(subjects[0], b"{}")
    )  # of a job that is in the first group: in the next
    async with asyncio.timeout(10):
        first, large, second, last = await asyncio.gather(*writes, behind, return_exceptions=True)

    assert isinstance(large, UsageError)
    assert {type(one) for one in (first, second, last)} == {int}
