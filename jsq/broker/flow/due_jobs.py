"""Moves a due job from the SCHEDULED stream to its queue, or to its key group.

The server publishes a scheduled job to a subject of due jobs when it is due. Workers take these messages from
a consumer and store them in the READY or GROUPS stream.

The server could do this itself, because a stream can source another one. But a sourced work queue with
several replicas may lose messages (nats-server 2.15.1). If a message is deleted that the sourcing stream has
not acknowledged yet, the server deletes the unacknowledged messages before it too. So each cancel of a due
job of a full queue deleted other due jobs. A source is also silent for ten seconds after a restart.
"""

import enum

from jsq.broker.delivery.delivery import Delivery
from jsq.broker.jobs.records import RecordStore, expectation_headers
from jsq.broker.topology.namespace import Namespace
from jsq.codec.envelope import ORIGIN_QUEUE, parse_origin
from jsq.codec.subject_token import STEM
from jsq.errors import BrokerFull, QueueFull
from jsq.model.revision import FINAL_STATES
from jsq.transport.replies import WrongSequence, own_headers
from jsq.transport.retrying import publish_with_retry


class MoveResult(enum.Enum):
    """How the move of a due job ended.

    `MOVED`: the job needs the message of the SCHEDULED stream no more. `NO_ROOM`: the stream is full where
    the job waits next. `WAITS_ALREADY`: that stream has a message of the job, which has not started.
    """

    MOVED = enum.auto()
    NO_ROOM = enum.auto()
    WAITS_ALREADY = enum.auto()


class DueJobs:
    """The due jobs of a namespace."""

    def __init__(self, namespace: Namespace, records: RecordStore) -> None:
        self._wire = namespace.wire
        self._subjects = namespace.subjects
        self._records = records

    async def move(self, due: Delivery) -> MoveResult:
        """Store a due job in the stream where it waits now.

        A job that has started needs no message: that of an earlier delivery was stored, so the job is moved.

        Two messages of a job do no harm, because its record lets one of them run. So the first delivery
        expects nothing of the queue, which may still hold the message of the job's last attempt.

        Raises `NoReply` and the other errors of a publish.
        """
        subjects, (*_, group, token) = self._subjects, due.subject.split(".")
        of_groups = subjects.groups.due(due.queue, "", STEM).removesuffix(".")
        is_keyed = due.subject.startswith(of_groups)
        stem = subjects.groups.job(due.queue, "", STEM) if is_keyed else subjects.ready(due.queue, "", STEM)
        target, headers = stem.removesuffix("."), own_headers(due.headers)
        if due.number > 1:
            if await self._has_started(due):
                return MoveResult.MOVED
            headers |= expectation_headers(0, f"{target}*.{token}")
        try:
            await publish_with_retry(self._wire, f"{target}{group}.{token}", due.payload, headers)
        except WrongSequence:
            return MoveResult.WAITS_ALREADY
        except (QueueFull, BrokerFull):
            return MoveResult.NO_ROOM
        return MoveResult.MOVED

    async def _has_started(self, due: Delivery) -> bool:
        """Whether a job runs or has ended. While it waits to be due, its record shows neither."""
        queue, _ = parse_origin(due.headers.get(ORIGIN_QUEUE), due.queue)
        last = await self._records.last(due.id, queue, consistent=True)
        return last is not None and (last.state == "running" or last.state in FINAL_STATES)
