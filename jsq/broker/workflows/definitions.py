"""The definitions of workflows: their graphs, in the bucket `flows`, for the workers that run their nodes."""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.broker.jobs.writer import JobWriter
from jsq.broker.topology.configs import RECORD_DAYS
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import flow_key
from jsq.codec.envelope import DEADLINE, format_deadline, parse_deadline
from jsq.codec.workflows import decode_graph
from jsq.model.job import Job
from jsq.model.workflow import FlowLink, Graph
from jsq.transport.replies import NoResponders, Reply, WrongSequence, sequence_of

DEFINITION = "definition"

FLOW_SECONDS = RECORD_DAYS * 86_400
"""Seconds for which the server keeps a definition and its joins: as long as a record of the workflow."""

MOST_CACHED_NODES = 50_000
"""Nodes of the graphs that one connection keeps."""


@dataclass(frozen=True, slots=True)
class StoredFlow:
    """A workflow that runs: its definition, and its deadline.

    `sequence` is that of the definition. Each run of the workflow stores a definition of its own, so it has
    joins of its own.
    """

    queue: str
    id: str
    sequence: int
    graph: Graph
    deadline: datetime | None = None

    @property
    def link(self) -> str:
        """The value of `Job.flow` for its nodes."""
        return str(FlowLink(self.queue, self.id))


class Definitions:
    """Stores and reads the definitions of workflows. They do not change during a run, so they are cached."""

    def __init__(self, namespace: Namespace, writer: JobWriter) -> None:
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._stream = namespace.subjects.streams.bucket("flows")
        self._writer = writer
        self._cached: OrderedDict[tuple[str, str], StoredFlow] = OrderedDict()
        self._nodes = 0

    async def create(self, job: Job) -> tuple[StoredFlow, bool]:
        """Store the definition of a workflow that starts; False if it had one before.

        Raises `BadEnvelope`, `NewerEnvelope`.
        """
        try:
            return await self._put(job, {EXPECTED: "0"}), True
        except WrongSequence:
            found = await self.read(job.queue, job.id, cached=False)
            return found or await self.replace(job), False

    async def replace(self, job: Job) -> StoredFlow:
        """Store the definition of a workflow that runs again."""
        return await self._put(job, {})

    async def _put(self, job: Job, headers: dict[str, str]) -> StoredFlow:
        graph = decode_graph(job.arguments)
        deadline = job.deadline if isinstance(job.deadline, datetime) else None
        headers = headers | {TTL: str(FLOW_SECONDS)}
        if deadline is not None:
            headers[DEADLINE] = format_deadline(deadline)
        subject = flow_key(self._subjects, job.queue, job.id, DEFINITION)
        sequence = await self._writer.publish_shared(subject, job.arguments, headers)
        return self._remember(StoredFlow(job.queue, job.id, sequence, graph, deadline))

    async def read(self, queue: str, id: str, *, cached: bool = True) -> StoredFlow | None:
        """The workflow with an id; None if it does not run, or if its definition has expired."""
        found = self._cached.get((queue, id))
        if found is not None and cached:
            self._cached.move_to_end((queue, id))
            return found
        subject = flow_key(self._subjects, queue, id, DEFINITION)
        try:
            reply = await self._reads.last(self._stream, subject)
            if reply is None and self._reads.may_ask_leader(self._stream):
                reply = await self._reads.last(self._stream, subject, consistent=True)
        except NoResponders:
            return None
        return None if reply is None else self._remember(read_flow(queue, id, reply))

    def _remember(self, flow: StoredFlow) -> StoredFlow:
        self.forget(flow.queue, flow.id)
        self._cached[flow.queue, flow.id] = flow
        self._nodes += len(flow.graph.nodes)
        while self._nodes > MOST_CACHED_NODES and len(self._cached) > 1:
            _, oldest = self._cached.popitem(last=False)
            self._nodes -= len(oldest.graph.nodes)
        return flow

    def forget(self, queue: str, id: str) -> None:
        """Remove a workflow from the cache."""
        found = self._cached.pop((queue, id), None)
        if found is not None:
            self._nodes -= len(found.graph.nodes)


def read_flow(queue: str, id: str, reply: Reply) -> StoredFlow:
    """A workflow, from its stored definition."""
    deadline = parse_deadline(reply.headers.get(DEADLINE))
    graph = decode_graph(reply.payload)
    return StoredFlow(
        queue, id, sequence_of(reply), graph, deadline if isinstance(deadline, datetime) else None
    )
