"""Building workflows: steps, chains and groups, and the graph that they make.

Nothing here sends anything. A flow is a value: the same one may be submitted twice, or be a part of others.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, Unpack, overload

from jsq.codec import envelope
from jsq.codec.signature import Signature, pack_unknown
from jsq.errors import BadArguments, BadOption, BadResult, BadWorkflow
from jsq.model.job import Job
from jsq.model.options import Options, SubmitOptions
from jsq.model.workflow import (
    MAX_NODES,
    ON_ERROR,
    OUTCOME_FIELDS,
    Graph,
    Node,
    OnError,
    Reference,
    ResultShape,
    StepOutcome,
    nodes_of,
    unique_members,
)

R = TypeVar("R")
Result_co = TypeVar("Result_co", covariant=True)

KEPT_RESULT = 7 * 86_400.0
"""Seconds for which the result of a node is kept at least: the nodes after it read it."""

REFUSED_OPTIONS = ("id", "delay", "at", "expires", "wait_for_room", "unique", "debounce", "throttle")
"""Options that a node cannot have: its id and its start follow from the workflow."""

REFUSED_OF_FLOW = (
    *("key", "per_key", "slots", "retries", "backoff", "backoff_max", "jitter", "retry_for", "timeout"),
    *("hard_timeout", "executor", "fallback"),
)
"""Options that a workflow cannot have, because it runs no function."""


class FlowTarget(Protocol):
    """The task of a step."""

    name: str
    queue: str
    signature: Signature | None

    def pack(self, args: Sequence[object], named: Mapping[str, object]) -> bytes:
        """Encode the arguments of a call. Raises `BadArguments`."""
        ...


class ResultReader(Protocol):
    """Makes a result of its annotated type from JSON."""

    def read(self, value: object) -> Any:
        """The result. Raises `BadResult`."""
        ...


class Flow(Generic[Result_co]):
    """A workflow, or a part of one: a step, a chain or a group. `Result_co` is the type of its result."""

    given: Mapping[str, Any] = {}
    rule: OnError | None = None

    def options(self, **options: Unpack[SubmitOptions]) -> Self:
        """This workflow with options of its job, such as `id`, `unique`, `deadline`, `delay` or `tags`.

        They hold for the whole workflow; a step has the options of its task:
        `chain(fetch.options(retries=5).s(url), ...)`. Raises `BadOption`.
        """
        for name, value in options.items():
            if name in REFUSED_OF_FLOW:
                raise BadOption(
                    name, value, f"a workflow has no {name}; give it to a step: task.options(...).s(...)"
                )
        other = copy.copy(self)
        other.given = {**self.given, **options}
        return other

    def compile(self, graph: "GraphBuilder", place: "FlowPlace") -> ResultShape:
        """Add the nodes to a graph; returns the form of the result. Raises `BadWorkflow`."""
        raise NotImplementedError

    def reader(self) -> ResultReader:
        """Reads the result."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class FlowPlace:
    """Where a part of a workflow begins: after which nodes, with which result, and its `on_error`."""

    after: tuple[int, ...] = ()
    given: ResultShape | None = None
    on_error: OnError = "fail"


@dataclass(frozen=True, slots=True)
class NodeResult:
    """The result of a node, as an argument of a later one."""

    shape: ResultShape
    owner: object = None


class Step(Flow[Result_co]):
    """One call of a task in a workflow; `Submitter.s` makes it."""

    def __init__(
        self,
        target: FlowTarget,
        options: Options,
        args: Sequence[object],
        named: Mapping[str, object],
        *,
        takes_result: bool = True,
    ) -> None:
        self.target = target
        self.step_options = options
        self.args = tuple(args)
        self.named = dict(named)
        self.takes_result = takes_result

    def __repr__(self) -> str:
        return f"<Step {self.target.name}>"

    def on_error(self, rule: OnError) -> "Step[Result_co]":
        """This step with a rule for its failure: `fail` (the workflow), `continue` or `skip`; see `group`.

        Raises `BadOption`.
        """
        other = copy.copy(self)
        other.rule = read_on_error(rule)
        return other

    def compile(self, graph: "GraphBuilder", place: FlowPlace) -> ResultShape:
        return graph.add(self, replace(place, on_error=self.rule or place.on_error))

    def reader(self) -> ResultReader:
        return StepReader(self.target.signature)


@dataclass(frozen=True, slots=True)
class StepReader:
    """Reads the result of a step, which may be a `StepOutcome` in its place, or None if it was skipped."""

    signature: Signature | None

    def read(self, value: object) -> Any:
        if isinstance(value, dict) and value.keys() == OUTCOME_FIELDS:
            return StepOutcome(**value)
        if self.signature is None:
            return value
        try:
            return self.signature.unpack_result(value)
        except BadResult:
            if value is None:
                return None
            raise


class StepChain(Flow[Result_co]):
    """Steps that run one after the other; `chain` makes it."""

    def __init__(self, parts: Sequence[Flow[Any]]) -> None:
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        return f"<Chain of {len(self.parts)}>"

    def compile(self, graph: "GraphBuilder", place: FlowPlace) -> ResultShape:
        last = len(self.parts) - 1
        before: OnError = "skip" if place.on_error != "fail" else "fail"
        for index, part in enumerate(self.parts):
            graph.check_part(part)
            shape = part.compile(graph, place if index == last else replace(place, on_error=before))
            place = FlowPlace(unique_members(list(nodes_of(shape))), shape, place.on_error)
        assert place.given is not None, "a chain has a step"
        return place.given

    def reader(self) -> ResultReader:
        return self.parts[-1].reader()


class StepGroup(Flow[Result_co]):
    """Steps that run at the same time; `group` makes it. Its result is the list of their results."""

    def __init__(self, parts: Sequence[Flow[Any]], on_error: OnError | None) -> None:
        self.parts = tuple(parts)
        self.rule = on_error

    def __repr__(self) -> str:
        return f"<Group of {len(self.parts)}>"

    def compile(self, graph: "GraphBuilder", place: FlowPlace) -> ResultShape:
        inner = replace(place, on_error=self.rule or place.on_error)
        for part in self.parts:
            graph.check_part(part)
        return tuple(part.compile(graph, inner) for part in self.parts)

    def reader(self) -> ResultReader:
        return ListReader(tuple(part.reader() for part in self.parts))


@dataclass(frozen=True, slots=True)
class ListReader:
    """Reads the result of a group."""

    parts: tuple[ResultReader, ...]

    def read(self, value: object) -> Any:
        if not isinstance(value, list) or len(value) != len(self.parts):
            return value
        return [reader.read(one) for reader, one in zip(self.parts, value, strict=True)]


class GraphBuilder:
    """A graph under construction. Raises `BadWorkflow` with the node that is wrong."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self._templates: dict[object, int] = {}
        self._seen: dict[tuple[int, int], tuple[int, Step[Any]]] = {}
        self._jobs: list[Job] = []
        self._joins: dict[tuple[int, ...], int] = {}

    def check_part(self, part: object) -> None:
        """Raises `BadWorkflow` for a part that is no flow, or has options of a whole workflow."""
        if not isinstance(part, Flow):
            rule = f"must be made of steps such as task.s(...), chains and groups, got {part!r:.80}"
            raise BadWorkflow(self.name, rule)
        if part.given:
            names = ", ".join(part.given)
            rule = f"has options on a part of it ({names}); give them to the whole"
            raise BadWorkflow(self.name, f"{rule}, or to a task: task.options(...).s(...)")

    def add(self, step: Step[Any], place: FlowPlace, *, name: str = "") -> int:
        """Add a step; returns its number."""
        number = len(self.nodes)
        label = f"{number} ({name or step.target.name})"
        if number >= MAX_NODES:
            raise BadWorkflow(self.name, f"must have {MAX_NODES:,} nodes at most; {label} is one too many")
        takes = step.takes_result and place.given is not None
        args = (NodeResult(place.given), *step.args) if takes and place.given is not None else step.args
        try:
            packed, references = self._pack(step, args)
            template = self._template(step, references)
        except (BadArguments, BadOption) as error:
            raise BadWorkflow(self.name, f"cannot run: {error}", label) from error
        used = [one for reference in references for one in nodes_of(reference.shape)]
        members = unique_members([*place.after, *used])
        join = self._joins.setdefault(members, len(self._joins)) if members else -1
        node = Node(name or step.target.name, template, packed, references, join, place.on_error)
        self.nodes.append(node)
        return number

    def finish(self, result: ResultShape) -> Graph:
        """The graph whose result has this form."""
        followed = {member for members in self._joins for member in members}
        ends = unique_members([n for n in range(len(self.nodes)) if n not in followed])
        joins = (*self._joins, ends)
        return Graph(self.name, tuple(self._jobs), tuple(self.nodes), joins, result)

    # -- inside ------------------------------------------------------------------------------------------

    def _pack(self, step: Step[Any], args: Sequence[object]) -> tuple[bytes, tuple[Reference, ...]]:
        """The arguments of a step, and those of them that are results. Raises `BadArguments`."""
        args = [read_results(one) for one in args]
        named = {name: read_results(one) for name, one in step.named.items()}
        if not any(map(is_result, (*args, *named.values()))):
            return step.target.pack(args, named), ()
        signature = step.target.signature
        pack: Callable[..., Any] = pack_unknown if signature is None else signature.pack_known
        packed, left = pack(args, named, is_result)
        return packed, tuple(Reference(place, one.shape) for place, one in left.items())

    def _template(self, step: Step[Any], references: Sequence[Reference]) -> int:
        """The index of a step's job without id and arguments. Raises `BadOption`."""
        options, known = step.step_options, (id(step.target), id(step.step_options))
        if known in self._seen:
            return self._seen[known][0]
        for name in REFUSED_OPTIONS:
            value = getattr(options, name)
            if value not in (None, False):
                raise BadOption(name, value, f"a step of a workflow cannot have {name}")
        queue, priority = options.queue or step.target.queue, options.priority or "normal"
        fields = {**options.job_fields}
        kept = fields.get("keep_result")
        fields["keep_result"] = max(KEPT_RESULT, kept if kept is not None else declared_keep(step.target))
        job = Job("", step.target.name, queue, priority, retry_until=options.retry_until, **fields)
        job = replace(job, deadline=options.deadline)
        key = (queue, priority, *envelope.encode(job).items())
        if key not in self._templates:
            self._templates[key] = len(self._jobs)
            self._jobs.append(job)
        self._seen[known] = self._templates[key], step
        return self._templates[key]


def declared_keep(target: FlowTarget) -> float:
    """How long a task keeps its results by its declaration, if that is known here."""
    declaration = getattr(target, "declaration", None)
    return float(getattr(declaration, "keep_result", 0.0))


def is_result(value: object) -> bool:
    return isinstance(value, NodeResult)


def read_results(value: object) -> object:
    """An argument; a list or a dictionary of results becomes one result. Raises `BadArguments`."""
    parts = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(parts, list | tuple) or not any(map(is_result, parts)):
        return value
    shapes = [one.shape for one in parts if isinstance(one, NodeResult)]
    if len(shapes) < len(parts):
        raise BadArguments("a list or dictionary with the result of a node must have no other values")
    if isinstance(value, dict):
        return NodeResult(dict(zip(map(str, value), shapes, strict=True)))
    return NodeResult(tuple(shapes))


def compile_flow(flow: Flow[Any], name: str) -> Graph:
    """The graph of a flow. Raises `BadWorkflow`."""
    builder = GraphBuilder(name)
    builder.check_part(flow if not flow.given else without_options(flow))
    return builder.finish(flow.compile(builder, FlowPlace()))


def without_options(flow: Flow[R]) -> Flow[R]:
    """A flow without the options of its job."""
    other = copy.copy(flow)
    other.given = {}
    return other


def read_on_error(on_error: OnError | None) -> OnError | None:
    """Check the option `on_error`. Raises `BadOption`."""
    if on_error is not None and on_error not in ON_ERROR:
        raise BadOption("on_error", on_error, f"must be one of {', '.join(ON_ERROR)}")
    return on_error


@overload
def chain(a: Flow[R], /) -> StepChain[R]: ...
@overload
def chain(a: Flow[Any], b: Flow[R], /) -> StepChain[R]: ...
@overload
def chain(a: Flow[Any], b: Flow[Any], c: Flow[R], /) -> StepChain[R]: ...
@overload
def chain(a: Flow[Any], b: Flow[Any], c: Flow[Any], d: Flow[R], /) -> StepChain[R]: ...
@overload
def chain(a: Flow[Any], b: Flow[Any], c: Flow[Any], d: Flow[Any], e: Flow[R], /) -> StepChain[R]: ...
@overload
def chain(
    a: Flow[Any], b: Flow[Any], c: Flow[Any], d: Flow[Any], e: Flow[Any], f: Flow[R], /
) -> StepChain[R]: ...
@overload
def chain(*parts: Flow[Any]) -> StepChain[Any]: ...


def chain(*parts: Flow[Any]) -> StepChain[Any]:
    """A workflow whose parts run one after the other: `chain(fetch.s(url), store.s(to="disk"))`.

    The result of each part is the first argument of the next one (see `Submitter.s`), and the result of the
    last one is that of the chain. A group gives the list of its results. Type checkers know the type of the
    result for up to six parts. Raises `BadOption` without a part.
    """
    if not parts:
        raise BadOption("chain", parts, "must have a step")
    return StepChain(parts)


@overload
def group(parts: Iterable[Flow[R]], /, *, on_error: Literal["fail"] | None = None) -> StepGroup[list[R]]: ...
@overload
def group(
    parts: Iterable[Flow[R]], /, *, on_error: Literal["continue"]
) -> StepGroup[list[R | StepOutcome]]: ...
@overload
def group(parts: Iterable[Flow[R]], /, *, on_error: Literal["skip"]) -> StepGroup[list[R | None]]: ...
@overload
def group(*parts: Flow[R], on_error: Literal["fail"] | None = None) -> StepGroup[list[R]]: ...
@overload
def group(*parts: Flow[R], on_error: Literal["continue"]) -> StepGroup[list[R | StepOutcome]]: ...
@overload
def group(*parts: Flow[R], on_error: Literal["skip"]) -> StepGroup[list[R | None]]: ...


def group(*parts: Any, on_error: OnError | None = None) -> StepGroup[Any]:
    """A workflow whose parts run at the same time: `group(resize.s(path, size) for size in sizes)`.

    Its result is the list of their results, in their order. A step after a group in a chain starts when all
    parts have ended, and takes the list. `on_error` is what the failure of a part means. `fail` (the default)
    ends the workflow. `continue` gives the next step a `StepOutcome` in place of the result. `skip` skips the
    steps after the group. Raises `BadOption` without a part.
    """
    only = parts[0] if len(parts) == 1 and not isinstance(parts[0], Flow) else parts
    found = tuple(only) if isinstance(only, Iterable) else (only,)
    if not found:
        raise BadOption("group", parts, "must have a step")
    return StepGroup(found, read_on_error(on_error))
