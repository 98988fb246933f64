"""Workflows: the job of a workflow submits its nodes and waits for them, and the nodes follow each other.

The job of a workflow has an attempt when it starts, and another one when its nodes have ended. In between it
is `waiting`: it holds no slot and no lease, and its message is parked in SCHEDULED. That message becomes due
from time to time, so that a worker checks what the workflow waits for.
"""

from dataclasses import replace
from datetime import UTC, datetime

from pydantic_core import to_json

from jsq.broker.jobs.wakeups import park_job
from jsq.broker.workflows.definitions import StoredFlow
from jsq.codec.workflows import resolved_arguments
from jsq.declaration import Declaration
from jsq.errors import BadArguments, BadEnvelope, NewerEnvelope
from jsq.model.job import Job
from jsq.model.outcome import Failed, Fault, Outcome, Waiting, describe_error
from jsq.model.revision import FINAL_STATES, Revision
from jsq.model.workflow import (
    FIRST_CHECK,
    HALTED,
    NODE_FAILED,
    PARKED,
    SKIPPED,
    WORKFLOW_TASK,
    FlowLink,
    NodeState,
    check_delay,
    failure_text,
    node_number,
    progress_of,
)
from jsq.task import AnyTask
from jsq.worker.run import checked_result, seconds_left, stopped_with
from jsq.worker.stages.base import Proceed, Requeue, Stage
from jsq.worker.state import AttemptState
from jsq.worker.transitions import next_attempt_of


class NodeStage(Stage):
    """Gives a node the results that it takes, and submits what follows when it has ended."""

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return bool(job.flow) and job.task != WORKFLOW_TASK

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        """Run the task with the results in its arguments. The next attempt, if any, reads them again."""
        job = attempt.job
        try:
            attempt.job = await with_results(attempt, job)
            return await proceed()
        except BadArguments as error:
            return Failed("bad_arguments", describe_error(error))
        finally:
            attempt.job = replace(attempt.job, arguments=job.arguments)

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        if event.state in FINAL_STATES and event.reason not in (SKIPPED, HALTED):
            found = NodeState(event.state, event.reason, event.error)
            await attempt.resources.broker.workflows.node_ended(attempt.job, found, attempt.has_lease)
        return None


async def with_results(attempt: AttemptState, job: Job) -> Job:
    """A node with the results of the nodes before it in its arguments. Raises `BadArguments`."""
    workflows, link = attempt.resources.broker.workflows, FlowLink.read(job.flow)
    number = node_number(job.id)
    flow = await workflows.definitions.read(link.queue, link.id)
    if flow is None or not 0 <= number < len(flow.graph.nodes):
        raise BadArguments(f"the workflow {link.id} of the node is not kept any more")
    shapes = {one.place: one.shape for one in flow.graph.nodes[number].references}
    if not shapes:
        return job
    values = await workflows.results(flow.graph, flow.id, shapes)
    return replace(job, arguments=resolved_arguments(job.arguments, values))


class WorkflowStage(Stage):
    """Runs the jobs of workflows. `_runs` has the workflow of each attempt, and whether it is a new one."""

    def __init__(self) -> None:
        self._runs: dict[AttemptState, tuple[StoredFlow, bool]] = {}

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return job.task == WORKFLOW_TASK

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        """Begin the workflow, or end it if its nodes have ended; it waits otherwise. Runs no function."""
        try:
            outcome = await self._outcome(attempt)
        except (BadEnvelope, NewerEnvelope) as error:
            return Failed("bad_arguments", describe_error(error))
        stopping = attempt.function.stopping
        return outcome if stopping is None else stopped_with(stopping)

    async def _outcome(self, attempt: AttemptState) -> Outcome:
        job, workflows = attempt.job, attempt.resources.broker.workflows
        if job.flow != PARKED:
            self._runs[attempt] = await workflows.begin(job)
            return Waiting(delay_of(attempt, FIRST_CHECK))
        flow = await workflows.definitions.read(job.queue, job.id)
        if flow is None:
            flow, _ = await workflows.definitions.create(job)
        self._runs[attempt] = flow, False
        found = await workflows.nodes(flow.graph, flow.id, settled=True)
        states = {
            n: NodeState(one.state, one.revision.reason, one.revision.error) for n, one in found.items()
        }
        progress = progress_of(flow.graph, states)
        if progress.failed >= 0:
            text = failure_text(flow.graph, flow.id, progress.failed, states[progress.failed])
            return Failed(NODE_FAILED, Fault(text))
        if not progress.is_over:
            age = attempt.resources.broker.wire.clock.now() - attempt.submitted / 1000
            return Waiting(delay_of(attempt, check_delay(age)))
        await workflows.skip(flow, progress.skipped)
        return await self._success(attempt, flow)

    async def _success(self, attempt: AttemptState, flow: StoredFlow) -> Outcome:
        """The success of a workflow whose nodes have ended, with its result."""
        workflows, resources = attempt.resources.broker.workflows, attempt.resources
        assert attempt.task is not None, "each worker knows the task of workflows"
        try:
            value = (await workflows.results(flow.graph, flow.id, {0: flow.graph.result}))[0]
        except BadArguments as error:
            return Failed("bad_result", Fault(str(error)))
        result = to_json({"result": value}, inf_nan_mode="constants")
        return checked_result(result, resources, attempt.task)

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        """Park the message of a waiting workflow and submit its nodes, or cancel those of an ended one."""
        workflows, job = attempt.resources.broker.workflows, attempt.job
        if event.state != "waiting" and (event.state not in FINAL_STATES or event.state == "succeeded"):
            return None
        flow, new = self._runs.get(attempt, (None, False))
        if flow is None:
            flow = await workflows.definitions.read(job.queue, job.id)
        if event.state == "waiting":
            await park(attempt, event)
            if flow is None:
                flow, new = await workflows.definitions.create(job)
            last = await attempt.resources.broker.records.last(job.id, job.queue)
            if last is None or last.state not in FINAL_STATES:  # it may be cancelled meanwhile
                await workflows.advance(flow, new=new, while_=attempt.has_lease)
        elif flow is not None:
            await workflows.halt(flow, running=event.state == "cancelled")
        return None

    async def close(self, attempt: AttemptState) -> None:
        self._runs.pop(attempt, None)


async def park(attempt: AttemptState, event: Revision) -> None:
    """Store the message of the next attempt in SCHEDULED, in place of an older one."""
    job, due = next_attempt_of(attempt.job, event, attempt.token), event.due or datetime.now(UTC)
    await park_job(attempt.resources.broker.namespace, job, due, while_=attempt.has_lease)


def delay_of(attempt: AttemptState, seconds: float) -> float:
    """Seconds until the next check of a workflow: not after its deadline."""
    left = seconds_left(attempt.resources, attempt.job)
    return seconds if left is None else min(seconds, max(0.0, left))
