"""`client.dead_letters`: list the dead letters of failed jobs, retry their jobs, and purge them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias, TypedDict, Unpack

from jsq.broker.operations.dead_letters import DeadLetter, DeadLetterCriteria
from jsq.client.blocking import BlockingMethod, BlockingWrapper
from jsq.client.bulk import pack_calls
from jsq.client.connection import Connection
from jsq.client.jobs import count_acted, count_unless_gone, queue_filter
from jsq.codec.signature import pack_call
from jsq.errors import JobNotFound, NoDeadLetter, WrongState
from jsq.model.job import check_id
from jsq.model.job_filter import read_texts
from jsq.model.options import check_known
from jsq.model.peer_terms import NO_TERMS

DeadLetters: TypeAlias = list[DeadLetter]


class DeadLetterFilter(TypedDict, total=False):
    """Criteria for dead letters. A dead letter must match all of them; None matches every one.

    `reason` is one of `jsq.model.revision.REASONS`, `error` the name of an exception's type.
    `tag` is one tag, or several, all of which a job must have.
    `since` and `until` limit the time of the death; they are aware, and `until` is not included.
    """

    queue: str | None
    task: str | None
    reason: str | None
    error: str | None
    tag: str | Iterable[str] | None
    since: datetime | None
    until: datetime | None


def read_dead_letter_criteria(**which: Unpack[DeadLetterFilter]) -> DeadLetterCriteria:
    """The criteria of a filter, checked. Raises `BadOption`, `BadName`."""
    check_known(which, [*DeadLetterFilter.__annotations__], NO_TERMS)
    return DeadLetterCriteria(
        queue=which.get("queue"),
        task=which.get("task"),
        reason=which.get("reason"),
        error=which.get("error"),
        tags=read_texts("tag", which.get("tag")),
        since=which.get("since"),
        until=which.get("until"),
    )


class DeadLettersClient:
    """The dead letters of a namespace: one for each job that failed for good."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self, *, limit: int | None = None, **which: Unpack[DeadLetterFilter]) -> DeadLetters:
        """The dead letters that match, oldest first. Raises `BadOption`, `BadName`."""
        criteria = read_dead_letter_criteria(**which)
        return await (await self._connection.broker()).dead_letters.list(criteria, limit)

    async def get(self, id: str) -> DeadLetter:
        """The dead letter of a job. Raises `JobNotFound`; `NoDeadLetter` if the job exists without one."""
        broker = await self._connection.broker()
        found = await broker.dead_letters.find(check_id(id))
        if found is None:
            job = await broker.job_reader.find(id)
            raise NoDeadLetter(id, job.state) if job is not None else JobNotFound(id)
        return found

    async def retry(self, id: str, arguments: Sequence[object] | Mapping[str, object] | None = None) -> None:
        """Run a dead job again under its id, with all its retries. Its history stays; its deadline is
        dropped.

        `arguments` replace the job's own: a list of positional ones, or a dictionary of named ones. The
        client checks that they can be sent; the worker checks that they fit the task. Raises `JobNotFound`,
        `WrongState`, `BadArguments`.
        """
        packed = None if arguments is None else pack_calls(id, [arguments], pack_call)[0]
        await (await self._connection.broker()).dead_letters.retry(check_id(id), arguments=packed)

    async def retry_many(self, **which: Unpack[DeadLetterFilter]) -> int:
        """Run every dead job that matches again; returns how many.

        Dead letters of messages that were no jobs, and of jobs that were retried already, are skipped.
        """
        criteria = read_dead_letter_criteria(**which)
        dead = (await self._connection.broker()).dead_letters
        return await count_acted(
            lambda dead_letter: count_unless_gone(dead.retry(dead_letter.id, dead_letter.queue)),
            await dead.list(criteria),
        )

    async def purge(
        self, *, id: str | None = None, free_ids: bool = False, **which: Unpack[DeadLetterFilter]
    ) -> int:
        """Remove the dead letters that match; returns how many.

        The records of their jobs stay `failed`, and ids that callers chose stay taken. With `free_ids` the
        records and all other data of the jobs are removed too, and their ids can be submitted again. Raises
        `WrongState` if the job named by `id` was retried already.
        """
        criteria = read_dead_letter_criteria(**which)
        dead = (await self._connection.broker()).dead_letters
        if id is None:
            letters = await dead.list(criteria)
        else:
            one = await dead.find(check_id(id), queue_filter(criteria.queue))
            letters = [one] if one is not None and criteria.matches(one) else []
            if one is None and free_ids and await dead.finish_removal(id, queue_filter(criteria.queue)):
                return 1  # an earlier call broke off

        async def purge(dead_letter: DeadLetter) -> int:
            if not free_ids:
                return await dead.delete(dead_letter)
            try:
                return await dead.delete_job(dead_letter)
            except WrongState:
                if id is not None:
                    raise
                return 0

        return await count_acted(purge, letters)


class BlockingDeadLetters(BlockingWrapper[DeadLettersClient]):
    """`client.blocking.dead_letters`: the methods of `client.dead_letters`, which block."""

    list = BlockingMethod(DeadLettersClient.list)
    get = BlockingMethod(DeadLettersClient.get)
    retry = BlockingMethod(DeadLettersClient.retry)
    retry_many = BlockingMethod(DeadLettersClient.retry_many)
    purge = BlockingMethod(DeadLettersClient.purge)
