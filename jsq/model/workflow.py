"""A workflow: nodes, which run as jobs, and the joins between them.

A join is a set of nodes that must end before other nodes may start. Nodes that wait for the same nodes share
a join, so a group of ten thousand members followed by another group has one join instead of a hundred million
edges. The last join of a graph is its end: when all of its members have ended, the workflow has.

The rules here are functions of the states of the nodes, which their records hold. So every worker, and every
check of a workflow, makes the same decision, also after a crash.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

from jsq.errors import BadWorkflow
from jsq.model.job import MAX_ID_LENGTH, Job
from jsq.model.revision import FINAL_STATES

WORKFLOW_TASK = "jsq.workflow"
"""The name of the task of each workflow. Workers run it themselves."""

PARKED = "parked"
"""The value of `Job.flow` of a workflow that waits for its nodes."""

MAX_NODES = 10_000
MAX_JOINS = 10_000

SHARD_MEMBERS = 512
"""Members of a join whose bits are in one record. More shards have less contention, and take more writes."""

FIRST_CHECK, LAST_CHECK = 30.0, 3_600.0
"""Seconds until a waiting workflow is checked: at first, and at most."""

OnError = Literal["fail", "continue", "skip"]
"""The meaning of the failure of a node.

It ends the workflow (`fail`), gives the join an outcome (`continue`), or skips the nodes after it (`skip`).
"""

ON_ERROR: tuple[OnError, ...] = get_args(OnError)

NODE_FAILED = "node_failed"
"""The reason of a workflow that failed because a node of it did."""

SKIPPED, HALTED = "skipped", "workflow_ended"
"""Reasons of nodes that are cancelled: a predecessor failed, or the workflow ended before they began."""

ResultShape: TypeAlias = int | tuple["ResultShape", ...] | Mapping[str, "ResultShape"]
"""The form of a result: that of a node, a list, or a dictionary."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The value that a join receives in place of the result of a node that failed with `on_error="continue"`.

    `state` is that of the node's job: failed, cancelled or expired. `reason` and `error` are those of its
    record.
    """

    job: str
    task: str
    state: str
    reason: str = ""
    error: str = ""


OUTCOME_FIELDS = frozenset(StepOutcome.__annotations__)
"""The fields of a `StepOutcome`, by which its JSON is recognised."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An argument that is the result of a node: its position or name, and the nodes.

    A reference that is a `shape` other than one node is a list of results, or a dictionary of them.
    """

    place: int | str
    shape: ResultShape


@dataclass(frozen=True, slots=True)
class Node:
    """A node: a job of the workflow. `template` is the index of its job without id and arguments.

    `arguments` is JSON, `[positional, named]` or an object, with null in place of each of the `references`.
    `join` is the index of the join that it waits for, -1 for none.
    """

    name: str
    template: int
    arguments: bytes
    references: tuple[Reference, ...] = ()
    join: int = -1
    on_error: OnError = "fail"


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes of a workflow, and its joins: the members of each, the last of which is the end.

    `templates` are the jobs of the nodes without ids and arguments. `result` is the form of the result.
    `targets` are the nodes that wait for each join, `joins_of` the joins of each node.
    """

    name: str
    templates: tuple[Job, ...]
    nodes: tuple[Node, ...]
    joins: tuple[tuple[int, ...], ...]
    result: ResultShape
    targets: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    joins_of: Mapping[int, tuple[int, ...]] = field(init=False, repr=False, compare=False)
    order: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises `BadWorkflow`."""
        check_graph(self)
        targets: list[list[int]] = [[] for _ in self.joins]
        for number, node in enumerate(self.nodes):
            if node.join >= 0:
                targets[node.join].append(number)
        joins_of: dict[int, tuple[int, ...]] = {}
        for index, members in enumerate(self.joins):
            for member in members:
                joins_of[member] = (*joins_of.get(member, ()), index)
        object.__setattr__(self, "targets", tuple(map(tuple, targets)))
        object.__setattr__(self, "joins_of", joins_of)
        object.__setattr__(self, "order", ordered_joins(self))

    @property
    def end(self) -> int:
        """The index of the join that ends the workflow."""
        return len(self.joins) - 1

    @property
    def roots(self) -> tuple[int, ...]:
        """The nodes that wait for no other node."""
        return tuple(number for number, node in enumerate(self.nodes) if node.join < 0)

    def template(self, number: int) -> Job:
        """The job of a node without its id and its arguments."""
        return self.templates[self.nodes[number].template]

    def label(self, number: int) -> str:
        """A node for people: its number, and its name."""
        return f"{number} ({self.nodes[number].name})"


def check_graph(graph: Graph) -> None:
    """Raises `BadWorkflow` for a graph without nodes, with too many, or with numbers that do not exist."""
    if not graph.nodes:
        raise BadWorkflow(graph.name, "must have a node")
    if len(graph.nodes) > MAX_NODES:
        raise BadWorkflow(graph.name, f"must have {MAX_NODES:,} nodes at most, got {len(graph.nodes):,}")
    if not 1 <= len(graph.joins) <= MAX_JOINS:
        raise BadWorkflow(graph.name, f"must have 1 to {MAX_JOINS:,} joins, got {len(graph.joins):,}")
    numbers = range(len(graph.nodes))
    for members in graph.joins:
        if not members or members[0] not in numbers or members[-1] not in numbers:
            raise BadWorkflow(graph.name, "has a join of nodes that do not exist")
        if tuple(sorted(set(members))) != members:
            raise BadWorkflow(graph.name, "has a join whose members are not in order")
    for number, node in enumerate(graph.nodes):
        if rule := node_fault(graph, node):
            raise BadWorkflow(graph.name, rule, node_text(number, node))


def node_fault(graph: Graph, node: Node) -> str:
    """The rule that a node breaks; empty if it breaks none."""
    if not -1 <= node.join < len(graph.joins) - 1 or not 0 <= node.template < len(graph.templates):
        return "waits for nodes that do not exist"
    if node.on_error not in ON_ERROR:
        return "must have on_error fail, continue or skip"
    members = frozenset(graph.joins[node.join] if node.join >= 0 and node.references else ())
    if any(one not in members for reference in node.references for one in nodes_of(reference.shape)):
        return "takes a result that it does not wait for"
    return ""


def node_text(number: int, node: Node) -> str:
    return f"{number} ({node.name})"


def ordered_joins(graph: Graph) -> tuple[int, ...]:
    """The joins, each after those that its members wait for. Raises `BadWorkflow` for a cycle."""
    missing = dict.fromkeys(range(len(graph.joins)), 0)
    waits: dict[int, list[int]] = {index: [] for index in missing}
    for index, members in enumerate(graph.joins):
        before = {graph.nodes[member].join for member in members} - {-1}
        missing[index] = len(before)
        for one in before:
            waits[one].append(index)
    ready = [index for index, count in missing.items() if not count]
    order: list[int] = []
    while ready:
        index = ready.pop()
        order.append(index)
        for later in waits[index]:
            missing[later] -= 1
            if not missing[later]:
                ready.append(later)
    if len(order) < len(graph.joins):
        stuck = next(n for n, node in enumerate(graph.nodes) if node.join >= 0 and missing[node.join])
        raise BadWorkflow(graph.name, "waits for itself, in a circle", node_text(stuck, graph.nodes[stuck]))
    return tuple(order)


def nodes_of(shape: ResultShape) -> Iterator[int]:
    """The nodes in the form of a result."""
    if isinstance(shape, int):
        yield shape
        return
    for part in shape.values() if isinstance(shape, Mapping) else shape:
        yield from nodes_of(part)


def filled(shape: ResultShape, values: Mapping[int, Any]) -> Any:
    """A result of this form, from the results of the nodes."""
    if isinstance(shape, int):
        return values[shape]
    if isinstance(shape, Mapping):
        return {name: filled(part, values) for name, part in shape.items()}
    return [filled(part, values) for part in shape]


# -- ids -------------------------------------------------------------------------------------------------


def node_id(workflow: str, number: int) -> str:
    """The id of the job of a node. So a node that is submitted twice is stored once."""
    id = f"{workflow}-{number}"
    return id if len(id) <= MAX_ID_LENGTH else f"{hashlib.sha256(workflow.encode()).hexdigest()}-{number}"


def node_number(id: str) -> int:
    """The number of a node, from the id of its job; -1 for another id."""
    digits = id.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 7 else -1


@dataclass(frozen=True, slots=True)
class FlowLink:
    """The workflow of a node, as `Job.flow` names it: its queue, and its id."""

    queue: str
    id: str

    @classmethod
    def read(cls, text: str) -> "FlowLink":
        queue, _, id = text.partition(" ")
        return cls(queue, id)

    def __str__(self) -> str:
        return f"{self.queue} {self.id}"


# -- progress --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeState:
    """The state of a node's job, by its record."""

    state: str
    reason: str = ""
    error: str = ""


Effect = Literal["open", "done", "skip", "fail"]
"""The meaning of a node's state for its joins."""


def effect_of(node: Node, found: NodeState | None) -> Effect:
    """The meaning of a node's state for the nodes after it."""
    if found is None or found.state not in FINAL_STATES:
        return "open"
    if found.state == "succeeded" or node.on_error == "continue":
        return "done"
    if node.on_error == "skip" or (found.state, found.reason) == ("cancelled", SKIPPED):
        return "skip"
    return "fail"


@dataclass(frozen=True, slots=True)
class FlowProgress:
    """The next needs of a workflow.

    `failed` is a node whose failure ends the workflow, -1 for none. `is_over` is true once all have ended, or
    are `skipped` now.
    `ready` are nodes that may start and have no record, `skipped` those that never will.
    """

    failed: int = -1
    is_over: bool = False
    ready: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()


def progress_of(graph: Graph, states: Mapping[int, NodeState]) -> FlowProgress:
    """The next needs of a workflow, by the states of its nodes; nodes without a record have none."""
    known = dict(states)
    ready = [number for number in graph.roots if number not in known]
    skipped: list[int] = []
    failed = min((n for n, one in known.items() if effect_of(graph.nodes[n], one) == "fail"), default=-1)
    is_over = False
    for index in graph.order:
        effects = {effect_of(graph.nodes[member], known.get(member)) for member in graph.joins[index]}
        if effects & {"open", "fail"}:
            continue
        is_over = is_over or index == graph.end
        for number in graph.targets[index]:
            if number in known:
                continue
            if "skip" in effects:
                skipped.append(number)
                known[number] = NodeState("cancelled", SKIPPED)
            else:
                ready.append(number)
    return FlowProgress(failed, is_over and failed < 0, tuple(ready), tuple(skipped))


def check_delay(age: float) -> float:
    """Seconds until the next check of a workflow that is `age` seconds old."""
    return min(LAST_CHECK, max(FIRST_CHECK, age))


# -- joins -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinState:
    """The members of a join, or of a shard of it, that have ended: a bit for each. `skips` if one skips."""

    bits: int = 0
    skips: bool = False

    def with_members(self, bits: int, *, skips: bool) -> "JoinState":
        """The state in which these members have ended too."""
        return replace(self, bits=self.bits | bits, skips=self.skips or skips)

    def is_full(self, members: int) -> bool:
        return self.bits == (1 << members) - 1

    def encode(self) -> bytes:
        size = (self.bits.bit_length() + 7) // 8
        return bytes([self.skips]) + self.bits.to_bytes(size, "big")

    @classmethod
    def decode(cls, body: bytes) -> "JoinState":
        return cls(int.from_bytes(body[1:], "big"), bool(body[:1] and body[0]))


def shard_count(members: int) -> int:
    """The number of records of a join."""
    return (members + SHARD_MEMBERS - 1) // SHARD_MEMBERS


def shard_size(members: int, shard: int) -> int:
    """The number of members in one shard of a join."""
    return min(SHARD_MEMBERS, members - shard * SHARD_MEMBERS)


# -- people ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkflowNode:
    """A node of a workflow as it is now. `after` are the numbers of the nodes that it waits for.

    `state` is that of its job; `pending` if it is not submitted yet, `skipped` if it never will be.
    """

    number: int
    id: str
    name: str
    task: str
    queue: str
    state: str
    after: tuple[int, ...] = ()
    reason: str = ""
    error: str = ""
    started: datetime | None = None
    ended: datetime | None = None


def shown_state(found: NodeState | None, *, ready: bool) -> str:
    """The state of a node for people."""
    if found is None:
        return "queued" if ready else "pending"
    return SKIPPED if (found.state, found.reason) == ("cancelled", SKIPPED) else found.state


def failure_text(graph: Graph, workflow: str, number: int, found: NodeState) -> str:
    """Why a workflow failed: the node, its job, and its error."""
    why = f": {found.error}" if found.error else ""
    text = f"node {graph.label(number)} of the workflow {'was ' if found.state == 'cancelled' else ''}"
    has = {"failed": "failed", "cancelled": "cancelled", "expired": "expired"}.get(found.state, found.state)
    return f"{text}{has}{why} (job {node_id(workflow, number)})"


def unique_members(numbers: Sequence[int]) -> tuple[int, ...]:
    """The members of a join, each once, in order."""
    return tuple(sorted(set(numbers)))
