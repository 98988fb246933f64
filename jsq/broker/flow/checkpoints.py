"""Values that jobs keep between their attempts, under subjects below the subject of their record.

A write expects that the last revision of the record is the start of the attempt that writes. So the server
refuses the write of a worker that lost its lease. No status and no list of jobs shows these values.
"""

import logging
from collections.abc import Callable

from jsq.broker.jobs.records import expectation_lines
from jsq.broker.topology.namespace import Namespace
from jsq.errors import BrokerError, NotAllowed, Refused
from jsq.model.checkpoint import CHECKPOINT
from jsq.transport.replies import NoReply, NoResponders, WrongSequence, block
from jsq.transport.retrying import publish_with_retry, with_retry

log = logging.getLogger("jsq.broker")


class CheckpointStore:
    """Writes and reads the values that jobs keep."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._may_delete = True

    async def write(
        self, queue: str, id: str, name: str, body: bytes, *, token: int, while_: Callable[[], bool]
    ) -> None:
        """Store `body` under a name, for the attempt with this token. A second call has no effect.

        Raises `WrongSequence` if the record has another revision, and what `publish_with_retry` raises after
        `while_` has returned False.
        """
        headers = block(expectation_lines(token, self._subjects.record(queue, id)))
        await publish_with_retry(
            self._wire, self._subjects.checkpoint(queue, id, name), body, headers, while_=while_
        )

    async def read(self, queue: str, id: str, name: str, *, token: int, while_: Callable[[], bool]) -> bytes:
        """The value under a name, for the attempt with this token; empty if there is none.

        Earlier attempts can write nothing since this attempt has started. If the name has wildcards, returns
        the value that was written last.
        """
        subject = self._subjects.checkpoint(queue, id, name)
        newest = await self.latest_sequence(queue, id, name, token=token, while_=while_)

        async def once() -> bytes:
            found = await self._reads.last(self._subjects.streams.records, subject)
            if found is None or int(found.headers["Nats-Sequence"]) < newest:
                raise NoReply(f"a replica of {self._subjects.streams.records} is behind", sent=False)
            return found.payload

        return await with_retry(self._wire, once) if newest else b""

    async def checkpoint(self, queue: str, id: str) -> bytes:
        """A job's last checkpoint, as JSON; empty if there is none. A replica that is behind may answer."""
        stream = self._subjects.streams.records
        try:
            found = await self._reads.last(stream, self._subjects.checkpoint(queue, id, CHECKPOINT))
        except NoResponders:
            await self._jetstream.check_absent(stream)
            return b""
        return found.payload if found is not None else b""

    async def latest_sequence(
        self, queue: str, id: str, name: str, *, token: int, while_: Callable[[], bool]
    ) -> int:
        """The sequence of the last value under a name, from the stream leader; 0 if there is none.

        A replica that is behind may answer a read. So this method makes a write with an expectation that
        cannot be true: that the name has the sequence of the record's revision. The leader refuses the write,
        and its refusal has the actual sequence.
        """
        subjects = self._subjects
        headers = block(expectation_lines(token, subjects.checkpoint(queue, id, name)))
        try:
            await publish_with_retry(
                self._wire, subjects.checkpoint(queue, id, "asked"), b"", headers, while_=while_
            )
        except WrongSequence as refused:
            return refused.last
        raise Refused(f"the server accepted a write for job {id} whose expected sequence cannot exist")

    async def delete(self, queue: str, id: str, name: str = ">", *, but: int = 0) -> None:
        """Delete the values that a job keeps, except for the last `but` of them under a name.

        If the login may not, the server deletes them after `max_age`.
        """
        if not self._may_delete:
            return
        subject = self._subjects.checkpoint(queue, id, name)
        try:
            await self._jetstream.purge(self._subjects.streams.records, subject, keep=but)
        except BrokerError as error:
            self._may_delete = not isinstance(error, NotAllowed)
            log.debug("job data not deleted", extra={"job": id, "subject": subject, "why": str(error)})
