"""Runs workflows: submits nodes, notes their ends, and ends workflows.

The worker that records the end of a node submits what that unlocks, after the record and before it settles
the delivery. After a crash in between, the delivery is repeated, and submits the same ids again. Every
decision follows from the records of the nodes, so a check of a waiting workflow finds what was not submitted.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from jsq.broker.jobs.store import JobStore
from jsq.broker.jobs.wakeups import wake_job
from jsq.broker.operations.cancel import Canceller
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.remove import Remover
from jsq.broker.submit.bulk import BulkSubmit
from jsq.broker.topology.namespace import Namespace
from jsq.broker.workflows.definitions import Definitions, StoredFlow
from jsq.broker.workflows.joins import Joins
from jsq.codec import revisions
from jsq.errors import BadArguments, JobNotFound, JsqError, WrongState, shorten
from jsq.model.job import Job
from jsq.model.outcome import MAX_ERROR_LENGTH
from jsq.model.revision import FINAL_STATES, Revision, StoredRevision, first_revision
from jsq.model.workflow import (
    HALTED,
    SKIPPED,
    Effect,
    FlowLink,
    FlowProgress,
    Graph,
    NodeState,
    ResultShape,
    StepOutcome,
    effect_of,
    filled,
    node_id,
    node_number,
    nodes_of,
    progress_of,
)
from jsq.transport.replies import WrongSequence
from jsq.transport.retrying import While

log = logging.getLogger("jsq.workflow")

FEW_NODES = 8
"""Nodes that are submitted one by one; more of one kind are submitted in bulk."""

MOST_READ_AGAIN = 200
"""Nodes whose records are read from the leader, if a replica does not have their ends."""

CONCURRENT_NODES = 100
"""Nodes that are written, cancelled or removed concurrently."""

Ended = list[tuple[int, Effect]]
"""Nodes that have ended, and what that means for their joins."""


class Workflows:
    """Runs the workflows of one namespace."""

    def __init__(
        self,
        namespace: Namespace,
        store: JobStore,
        bulk: BulkSubmit,
        dead_letters: DeadLetterStore,
        cancels: Canceller,
    ) -> None:
        self._namespace = namespace
        self._subjects = namespace.subjects
        self._records = store.records
        self._writer = store.writer
        self._bulk = bulk
        self._dead_letters = dead_letters
        self._remover = Remover(store, dead_letters)
        self._cancels = cancels
        self._joins = Joins(namespace, store.writer)
        self.definitions = Definitions(namespace, store.writer)

    # -- read --------------------------------------------------------------------------------------------

    async def nodes(
        self, graph: Graph, id: str, *, only: Iterable[int] | None = None, settled: bool = False
    ) -> dict[int, StoredRevision]:
        """The last revisions of the nodes of a workflow, without those that have no record.

        With `settled`, nodes that have not ended are read again from the leader, unless they are many.
        """
        queues: dict[str, list[str]] = {}
        wanted = range(len(graph.nodes)) if only is None else sorted(set(only))
        for number in wanted:
            queues.setdefault(graph.template(number).queue, []).append(node_id(id, number))
        found: dict[int, StoredRevision] = {}
        for queue, ids in queues.items():
            last = await self._records.last_each(queue, ids)
            found |= {node_number(one): stored for one, stored in last.items()}
        if settled:
            left = [n for n in wanted if n not in found or found[n].state not in FINAL_STATES]
            if len(left) <= MOST_READ_AGAIN:
                read = [self._records.last(*self._place(graph, id, n), consistent=True) for n in left]
                again = await asyncio.gather(*read)
                found |= {node_number(one.job): one for one in again if one is not None}
        return found

    async def results(self, graph: Graph, id: str, shapes: Mapping[Any, ResultShape]) -> dict[Any, Any]:
        """The results of nodes in some forms. Raises `BadArguments` if one is not there any more."""
        numbers = {number for shape in shapes.values() for number in nodes_of(shape)}
        found = await self.nodes(graph, id, only=numbers, settled=True)
        values = {n: await self._value(graph, id, n, found.get(n)) for n in numbers}
        return {place: filled(shape, values) for place, shape in shapes.items()}

    async def _value(self, graph: Graph, id: str, number: int, found: StoredRevision | None) -> Any:
        """The value that the nodes after a node receive from it."""
        if found is not None and found.state == "succeeded":
            if found.revision.separate_result:
                found = await self._records.with_result(found)
            if found.revision.has_result:
                return found.revision.result
        elif found is not None and graph.nodes[number].on_error == "continue":
            event = found.revision
            state = SKIPPED if event.reason == SKIPPED else event.state
            reason = "" if event.reason == SKIPPED else event.reason
            return asdict(StepOutcome(found.job, event.task, state, reason, event.error))
        elif found is not None and found.state in FINAL_STATES:
            return None
        why = found.revision.result_dropped if found is not None else ""
        text = f"the result of node {graph.label(number)} is not kept (job {node_id(id, number)})"
        raise BadArguments(f"{text}: {why or 'it has expired, or was removed'}")

    # -- run ---------------------------------------------------------------------------------------------

    async def begin(self, job: Job) -> tuple[StoredFlow, bool]:
        """Prepare the run of a workflow; False if it ran before.

        Nodes of an earlier run that have not succeeded are removed, so that they run again. Raises
        `BadEnvelope`, `NewerEnvelope`.
        """
        flow, new = await self.definitions.create(job)
        if new:
            return flow, True
        found = await self.nodes(flow.graph, flow.id, settled=True)
        ended = [one for one in found.values() if one.state in FINAL_STATES and one.state != "succeeded"]
        await each(ended, self._remove)
        return await self.definitions.replace(job), False

    async def submit(self, flow: StoredFlow, numbers: Sequence[int], while_: While | None = None) -> Ended:
        """Submit nodes; a second call submits nothing twice. Returns those that can never be submitted.

        Raises errors that may pass (`QueueFull`, no answer of the server), so that the delivery is repeated.
        """
        kinds: dict[int, list[int]] = {}
        for number in numbers:
            kinds.setdefault(flow.graph.nodes[number].template, []).append(number)
        refused: dict[int, JsqError] = {}
        for some in kinds.values():
            few = len(some) <= FEW_NODES
            refused |= await (self._submit_few(flow, some, while_) if few else self._submit_many(flow, some))
        for error in refused.values():
            if error.retryable:
                raise error
        for number, error in refused.items():
            await self._refuse(node_job(flow, number), error)
        failed = NodeState("failed")
        return [(number, effect_of(flow.graph.nodes[number], failed)) for number in refused]

    async def node_ended(self, job: Job, found: NodeState, while_: While | None = None) -> None:
        """Note the end of a node, and submit what it unlocks. May run twice."""
        link, number = FlowLink.read(job.flow), node_number(job.id)
        flow = await self.definitions.read(link.queue, link.id)
        if flow is None or not 0 <= number < len(flow.graph.nodes):
            log.error("workflow not found", extra={"job": job.id, "workflow": link.id})
            return
        await self._follow(flow, [(number, effect_of(flow.graph.nodes[number], found))], while_)

    async def advance(self, flow: StoredFlow, *, new: bool, while_: While | None = None) -> None:
        """Submit what a waiting workflow lacks: of a `new` one the first nodes."""
        if new:
            await self._follow(flow, await self.submit(flow, flow.graph.roots, while_), while_)
            return
        states = states_of(await self.nodes(flow.graph, flow.id, settled=True))
        progress = progress_of(flow.graph, states)
        await self.skip(flow, progress.skipped if progress.failed < 0 else ())
        if progress.failed >= 0 or progress.is_over:
            await self.wake(flow.queue, flow.id, while_)
            return
        ended = await self.submit(flow, progress.ready, while_)
        await self._note_ended(flow, progress, states, while_)
        await self._follow(flow, ended, while_)

    async def skip(self, flow: StoredFlow, numbers: Iterable[int]) -> None:
        """Record that nodes never run, because a node before them failed."""
        await each(numbers, lambda number: self._close(flow, number, SKIPPED, None))

    async def wake(self, queue: str, id: str, while_: While | None = None) -> None:
        """Let a worker end a waiting workflow."""
        await wake_job(self._namespace, queue, id, while_=while_)

    async def halt(self, flow: StoredFlow, *, running: bool) -> None:
        """Cancel the nodes of a workflow that has ended: those that have not begun, or also `running` ones.

        A node without a record gets one: its message, queued or stored later, starts nothing.
        """
        found = await self.nodes(flow.graph, flow.id)

        async def cancel(number: int) -> None:
            last = found.get(number)
            if last is not None and last.state == "running":
                if running:
                    await self._cancel_running(last)
                return
            await self._close(flow, number, HALTED, last)

        open_ = (n for n in range(len(flow.graph.nodes)) if n not in found or is_open(found[n]))
        await each(open_, cancel)

    async def cancel_nodes(self, queue: str, id: str) -> None:
        """Cancel all nodes of a workflow that was cancelled, running ones too."""
        flow = await self.definitions.read(queue, id)
        if flow is not None:
            await self.halt(flow, running=True)

    # -- inside ------------------------------------------------------------------------------------------

    async def _follow(self, flow: StoredFlow, ended: Ended, while_: While | None) -> None:
        """Note the ends of nodes in their joins, and submit what these unlock."""
        left = list(ended)
        while left:
            number, effect = left.pop()
            if effect == "fail":
                await self.wake(flow.queue, flow.id, while_)
                continue
            for join in flow.graph.joins_of.get(number, ()):
                full = await self._joins.arrive(flow, join, (number,), skips=effect == "skip")
                if full is not None:
                    left += await self._fire(flow, join, skips=full.skips, while_=while_)

    async def _fire(self, flow: StoredFlow, join: int, *, skips: bool, while_: While | None) -> Ended:
        """Submit the nodes that wait for a full join; returns those that have ended instead."""
        if join == flow.graph.end:
            await self.wake(flow.queue, flow.id, while_)
            return []
        targets = flow.graph.targets[join]
        if not skips:
            return await self.submit(flow, targets, while_)
        await self.skip(flow, targets)
        skipped = NodeState("cancelled", SKIPPED)
        return [(number, effect_of(flow.graph.nodes[number], skipped)) for number in targets]

    async def _note_ended(
        self, flow: StoredFlow, progress: FlowProgress, states: Mapping[int, NodeState], while_: While | None
    ) -> None:
        """Set the bits of all ended nodes, in the joins that still wait for others."""
        graph = flow.graph
        known = dict(states) | dict.fromkeys(progress.skipped, NodeState("cancelled", SKIPPED))
        for join, members in enumerate(graph.joins):
            effects = {member: effect_of(graph.nodes[member], known.get(member)) for member in members}
            if len(members) == 1 or "open" not in effects.values():
                continue
            for effect in ("done", "skip"):
                some = [member for member, one in effects.items() if one == effect]
                full = await self._joins.arrive(flow, join, some, skips=effect == "skip") if some else None
                if full is not None:
                    ended = await self._fire(flow, join, skips=full.skips, while_=while_)
                    await self._follow(flow, ended, while_)

    async def _submit_few(
        self, flow: StoredFlow, numbers: Sequence[int], while_: While | None
    ) -> dict[int, JsqError]:
        """Submit nodes one by one; returns the errors of those that were not stored."""
        refused: dict[int, JsqError] = {}

        async def submit(number: int) -> None:
            try:
                await self._writer.enqueue_once(node_job(flow, number), while_=while_ or always)
            except JsqError as error:
                refused[number] = error

        await asyncio.gather(*map(submit, numbers))
        return refused

    async def _submit_many(self, flow: StoredFlow, numbers: Sequence[int]) -> Mapping[int, JsqError]:
        """Submit nodes with the same template in bulk; returns the errors of those that were not stored."""
        nodes = flow.graph.nodes
        calls = [(node_id(flow.id, number), nodes[number].arguments) for number in numbers]
        try:
            refused, _ = await self._bulk.submit(node_job(flow, numbers[0]), calls, ids_are_new=False)
        except BadArguments as error:
            return {numbers[error.index]: error}
        return {numbers[index]: error for index, error in refused.items()}

    async def _close(self, flow: StoredFlow, number: int, reason: str, last: StoredRevision | None) -> None:
        """Record a node as cancelled, unless it has started or ended meanwhile."""
        job = node_job(flow, number)
        event = first_revision(job, "cancelled") if last is None else last.revision
        event = replace(event, state="cancelled", reason=reason, due=None, progress=None, text="", token=0)
        try:
            expect = last.sequence if last is not None else 0
            await self._records.write(job.queue, job.id, event, expect=expect)
        except WrongSequence:
            return

    async def _refuse(self, job: Job, error: JsqError) -> None:
        """Record a node as failed that the server does not accept, with its dead letter."""
        text = shorten(f"{type(error).__name__}: {error}", MAX_ERROR_LENGTH)
        event = replace(first_revision(job, "failed"), reason="error", error=f"not submitted: {text}")
        event = revisions.with_arguments(event, job.arguments)
        letter = self._dead_letters.message(job, event)
        log.error("node not submitted", extra={"job": job.id, "task": job.task, "why": str(error)})
        try:
            await self._records.put_with(job.queue, job.id, revisions.encode(event), [letter], expect=0)
        except WrongSequence:
            return

    async def _cancel_running(self, found: StoredRevision) -> None:
        try:
            await self._cancels.cancel(found.job, found.queue)
        except (JobNotFound, WrongState):
            return

    async def _remove(self, found: StoredRevision) -> None:
        """Remove a node that has ended, so that another job can have its id."""
        try:
            await self._remover.remove(found.job, found.queue)
        except (JobNotFound, WrongState):
            return

    def _place(self, graph: Graph, id: str, number: int) -> tuple[str, str]:
        """The id and the queue of a node's job."""
        return node_id(id, number), graph.template(number).queue


def node_job(flow: StoredFlow, number: int) -> Job:
    """The job of a node."""
    template, node = flow.graph.template(number), flow.graph.nodes[number]
    deadline = flow.deadline if template.deadline is None else template.deadline
    return replace(
        template,
        id=node_id(flow.id, number),
        arguments=node.arguments,
        flow=flow.link,
        deadline=deadline,
    )


def states_of(found: Mapping[int, StoredRevision]) -> dict[int, NodeState]:
    """The states of nodes, from their records."""
    return {number: state_of_node(one.revision) for number, one in found.items()}


def state_of_node(event: Revision) -> NodeState:
    return NodeState(event.state, event.reason, event.error)


def is_open(found: StoredRevision) -> bool:
    return found.state not in FINAL_STATES


def always() -> bool:
    """The lease of a caller that has none."""
    return True


async def each(things: Iterable[Any], act: Callable[[Any], Any]) -> None:
    """Await `act` for each thing, `CONCURRENT_NODES` at the same time."""
    left = iter(things)

    async def act_on_next() -> None:
        for thing in left:
            await act(thing)

    await asyncio.gather(*(act_on_next() for _ in range(CONCURRENT_NODES)))
