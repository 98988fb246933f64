"""`client.workflows`: submit workflows, look at them node by node, cancel and retry them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Self, TypeVar, Unpack

from pydantic_core import to_json

from jsq.broker.workflows.workflows import states_of
from jsq.client.blocking import BlockingMethod, BlockingWrapper
from jsq.client.connection import Connection
from jsq.client.flows import (
    Flow,
    FlowPlace,
    GraphBuilder,
    NodeResult,
    ResultReader,
    Step,
    StepChain,
    StepGroup,
    compile_flow,
)
from jsq.client.handle import BlockingJobHandle, JobHandle
from jsq.client.jobs import JobRecords, JobsClient, queue_filter
from jsq.client.lookup import job_record
from jsq.client.submitter import SubmitTarget, Submitter
from jsq.codec.workflows import decode_graph, encode_graph
from jsq.errors import BadEnvelope, BadWorkflow, JobNotFound, UnknownTask, WrongState
from jsq.model.job import DEFAULT_QUEUE, JobRecord, check_id, check_name
from jsq.model.job_filter import JobFilter
from jsq.model.options import read_options
from jsq.model.revision import FINAL_STATES, Revision, StoredRevision
from jsq.model.workflow import (
    HALTED,
    WORKFLOW_TASK,
    Graph,
    OnError,
    ResultShape,
    WorkflowNode,
    node_id,
    progress_of,
    shown_state,
    unique_members,
)
from jsq.transport.replies import NoResponders

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """A workflow as it is now: the record of its job, its name, and its nodes.

    The nodes are missing if the workflow has not started and its definition takes more than 8 KiB.
    """

    job: JobRecord
    name: str
    nodes: tuple[WorkflowNode, ...] = ()


class WorkflowHandle(JobHandle[R]):
    """The handle of a submitted workflow, which knows the types of its results."""

    __slots__ = ("_reader",)

    def __init__(self, job: JobHandle[Any], connection: Connection, reader: ResultReader) -> None:
        super().__init__(connection, job.id, job.queue, duplicate=job.duplicate)
        self._reader = reader

    def result_of(self, found: Revision) -> Any:
        """The result of the workflow, from its final event. Raises the errors of `result`."""
        return self._reader.read(super().result_of(found))


class WorkflowsClient:
    """The workflows of a namespace. A workflow is a job too: the methods of `client.jobs` work for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs = JobsClient(connection)

    async def submit(self, flow: Flow[R], *, name: str | None = None) -> JobHandle[R]:
        """Submit a workflow; see `App.submit`."""
        return await self.send(compile_flow(flow, check_flow_name(name, flow)), flow, flow.reader())

    async def send(self, graph: Graph, flow: Flow[R], reader: ResultReader) -> JobHandle[R]:
        """Submit a workflow whose graph is built, with the options of a flow."""
        packed = encode_graph(graph)
        target = SubmitTarget(WORKFLOW_TASK, DEFAULT_QUEUE)
        options = read_options(datetime.now(UTC), **flow.given)
        submitter: Submitter[..., Any] = Submitter(self._connection, target, options, flow.given)
        return WorkflowHandle(await submitter.submit_packed(packed), self._connection, reader)

    async def list(self, *, limit: int | None = 100, **which: Unpack[JobFilter]) -> JobRecords:
        """The newest workflows that match, the newest last; see `JobsClient.list`. `task` cannot be given."""
        which["task"] = WORKFLOW_TASK
        return await self._jobs.list(limit=limit, **which)

    async def get(self, id: str, queue: str = "*") -> WorkflowRecord:
        """A workflow and its nodes. Raises `JobNotFound`; `WrongState` for a job that is no workflow."""
        check_id(id)
        broker = await self._connection.broker()
        found = await broker.job_reader.find(id, queue_filter(None if queue == "*" else queue), pending=True)
        if found is None:
            raise JobNotFound(id)
        if found.revision.task != WORKFLOW_TASK:
            raise WrongState(id, "no workflow", "shown as one")
        flow = await broker.workflows.definitions.read(found.queue, id)
        graph = flow.graph if flow is not None else recorded_graph(found.revision)
        if graph is None:
            return WorkflowRecord(job_record(found), "")
        try:
            nodes = await broker.workflows.nodes(graph, id)
        except NoResponders:
            nodes = {}
        return WorkflowRecord(job_record(found), graph.name, tuple(shown_nodes(graph, id, found, nodes)))

    async def cancel(self, id: str, queue: str = "*") -> JobRecord:
        """Cancel a workflow and its nodes, running ones too; see `JobHandle.cancel`."""
        return await self._jobs.cancel(id, queue)

    async def retry(self, id: str, queue: str = "*", *, again: bool = False) -> JobRecord:
        """Run a failed workflow again: only what has not succeeded. See `JobHandle.retry`."""
        return await self._jobs.retry(id, queue, again=again)


class BlockingWorkflows(BlockingWrapper[WorkflowsClient]):
    """`client.blocking.workflows`: the methods of `client.workflows`, which block."""

    list = BlockingMethod(WorkflowsClient.list)
    get = BlockingMethod(WorkflowsClient.get)
    cancel = BlockingMethod(WorkflowsClient.cancel)
    retry = BlockingMethod(WorkflowsClient.retry)

    def submit(self, flow: Flow[R], *, name: str | None = None) -> BlockingJobHandle[R]:
        """As `WorkflowsClient.submit`."""
        return self._call(self._wrapped.submit(flow, name=name), "submit").blocking


class NodeHandle(Generic[R]):
    """A node of a workflow that is being built, by its number."""

    def __init__(self, owner: "WorkflowBuilder", number: int) -> None:
        self.owner = owner
        self.number = number

    @property
    def result(self) -> NodeResult:
        """The result of the node: an argument of a later node, which then waits for this one."""
        return NodeResult(self.number, self.owner)


class WorkflowBuilder(Flow[Any]):
    """A workflow of any shape, built node by node.

        with app.workflow("order") as wf:
            page = wf.add(fetch, url)
            size = wf.add(measure, page.result)
            wf.add(report, size.result, after=[page])
        run = await wf.submit()

    The block only groups the lines: `submit` sends the workflow. A wrong node raises in the line that adds
    it. The result is that of the node that no other node waits for. If there are several such nodes, it is a
    dictionary of their results by the names of the nodes.
    """

    def __init__(self, name: str, client: WorkflowsClient, find: Callable[[str], Any]) -> None:
        self.name = check_name("workflow", name)
        self._client = client
        self._find = find
        self._graph = GraphBuilder(name)
        self._readers: dict[int, ResultReader] = {}
        self._names: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<WorkflowBuilder {self.name!r} of {len(self._graph.nodes)} nodes>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def add(
        self,
        task: Submitter[..., R] | Step[R] | str,
        /,
        *args: Any,
        after: Iterable[NodeHandle[Any]] = (),
        on_error: OnError | None = None,
        **named: Any,
    ) -> NodeHandle[R]:
        """Add a node: a call of a task, a task with options (`fetch.options(retries=5)`), or a step.

        A result of another node among the arguments is an edge: this node waits for that one. `after` are
        more nodes to wait for. An argument called `after` or `on_error` is given by a step:
        `wf.add(f.s(after=1))`.
        Raises `BadWorkflow`, `UnknownTask`.
        """
        step = self._step(task, args, named)
        step = step if on_error is None else step.on_error(on_error)
        members: list[int] = []
        for other in after:
            if not isinstance(other, NodeHandle) or other.owner is not self:
                rule = f"must wait for nodes of its own, got {other!r:.80}"
                raise BadWorkflow(self.name, rule, self._next(step))
            members.append(other.number)
        for value in (*step.args, *step.named.values()):
            self._check_owner(value, step)
        place = FlowPlace(unique_members(members), None, step.rule or "fail")
        number = self._graph.add(step, place, name=self._unique_name(step.target.name))
        self._readers[number] = step.reader()
        return NodeHandle(self, number)

    async def submit(self) -> JobHandle[Any]:
        """Submit the workflow; see `App.submit`."""
        return await self._client.submit(self)

    def compile(self, graph: GraphBuilder, place: FlowPlace) -> ResultShape:
        """Add the nodes to a graph. A built workflow cannot be a part of another one."""
        if place != FlowPlace() or graph.nodes:
            raise BadWorkflow(graph.name, f"cannot have the built workflow {self.name} as a part")
        if not self._graph.nodes:
            raise BadWorkflow(self.name, "must have a node")
        vars(graph).update(vars(self._graph))
        return self._result()

    def reader(self) -> ResultReader:
        return DictReader(self._ends(), self._result_names())

    # -- inside ------------------------------------------------------------------------------------------

    def _step(self, task: object, args: tuple[Any, ...], named: dict[str, Any]) -> Step[Any]:
        if isinstance(task, str):
            try:
                task = self._find(task)
            except UnknownTask as error:
                raise BadWorkflow(
                    self.name, f"has no task: {error}", f"{len(self._graph.nodes)} ({task})"
                ) from error
        if isinstance(task, Submitter):
            return task.s(*args, **named)
        if not isinstance(task, Step):
            raise BadWorkflow(self.name, f"must be made of tasks and steps, got {task!r:.80}")
        if args or named:
            raise BadWorkflow(self.name, "has arguments beside a step, which has its own", self._next(task))
        return task

    def _next(self, step: Step[Any]) -> str:
        return f"{len(self._graph.nodes)} ({step.target.name})"

    def _unique_name(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}-{count}"

    def _check_owner(self, value: object, step: Step[Any]) -> None:
        parts = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | tuple)
            else [value]
        )
        for one in parts:
            if isinstance(one, NodeHandle):
                raise BadWorkflow(
                    self.name, "takes a node as an argument; write node.result", self._next(step)
                )
            if isinstance(one, NodeResult) and one.owner is not self:
                raise BadWorkflow(
                    self.name, "takes the result of a node of another workflow", self._next(step)
                )

    def _ends(self) -> dict[int, ResultReader]:
        ends = self._graph.finish(0).joins[-1] if self._graph.nodes else ()
        return {number: self._readers[number] for number in ends}

    def _result_names(self) -> dict[str, int]:
        return {self._graph.nodes[number].name: number for number in self._ends()}

    def _result(self) -> ResultShape:
        names = self._result_names()
        return next(iter(names.values())) if len(names) == 1 else {**names}


@dataclass(frozen=True, slots=True)
class DictReader:
    """Reads the result of a built workflow: that of its last node, or a dictionary of several."""

    readers: dict[int, ResultReader]
    names: dict[str, int]

    def read(self, value: object) -> Any:
        if len(self.names) == 1:
            return self.readers[next(iter(self.names.values()))].read(value)
        if not isinstance(value, dict):
            return value
        return {name: self.readers[number].read(value[name]) for name, number in self.names.items()}


def check_flow_name(name: str | None, flow: Flow[Any]) -> str:
    """The name of a workflow: the given one, or what it is made of. Raises `BadName`."""
    if name is not None:
        return check_name("workflow", name)
    if isinstance(flow, WorkflowBuilder):
        return flow.name
    return "chain" if isinstance(flow, StepChain) else "group" if isinstance(flow, StepGroup) else "step"


def recorded_graph(event: Revision) -> Graph | None:
    """The graph of a workflow, from its record or its message; None if that does not hold it."""
    if not event.has_arguments:
        return None
    try:
        return decode_graph(to_json(event.arguments))
    except BadEnvelope:
        return None


def shown_nodes(
    graph: Graph, id: str, workflow: StoredRevision, found: dict[int, StoredRevision]
) -> Iterable[WorkflowNode]:
    """The nodes of a workflow for people."""
    states = states_of(found)
    begun = workflow.state not in ("queued", "scheduled")
    ready = (
        frozenset(progress_of(graph, states).ready) if begun and workflow.state not in FINAL_STATES else ()
    )
    for number, node in enumerate(graph.nodes):
        stored, template = found.get(number), graph.template(number)
        state = shown_state(states.get(number), ready=number in ready)
        event = stored.revision if stored is not None else Revision("")
        ended = stored.at if stored is not None and stored.state in FINAL_STATES else None
        yield WorkflowNode(
            number,
            node_id(id, number),
            node.name,
            template.task,
            template.queue,
            state,
            graph.joins[node.join] if node.join >= 0 else (),
            event.reason,
            "the workflow ended before it began" if event.reason == HALTED else event.error,
            event.started,
            ended,
        )
