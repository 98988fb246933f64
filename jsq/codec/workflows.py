"""A workflow as JSON: the arguments of its job, and the definition that workers read.

    {"v":1,"name":"order",
     "templates":[{"queue":"default","priority":"normal","headers":{"Jsq-Job":"..."}}],
     "nodes":[{"t":0,"name":"fetch","a":{"url":"..."}},
              {"t":1,"name":"publish","a":[[null],{}],"r":[[0,0]],"j":0}],
     "joins":[[[0,1]],[[1,1]]],
     "result":1}

A join is a list of runs of nodes: the first one, and how many there are. `r` are the references of a node,
`j` is its join, `e` its `on_error`. Fields that are empty are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from jsq.codec import envelope
from jsq.errors import BadArguments, BadEnvelope, BadWorkflow, NewerEnvelope
from jsq.model.job import Job
from jsq.model.workflow import MAX_NODES, Graph, Node, Reference, ResultShape

DEFINITION_VERSION = 1


def encode_graph(graph: Graph) -> bytes:
    """Encode a graph. Raises `BadArguments` if arguments are nested too deep to be a part of it."""
    written = {
        "v": DEFINITION_VERSION,
        "name": graph.name,
        "templates": [template_fields(job) for job in graph.templates],
        "nodes": [node_fields(node) for node in graph.nodes],
        "joins": [list(runs(members)) for members in graph.joins],
        "result": shape_fields(graph.result),
    }
    packed = to_json(written, inf_nan_mode="constants")
    try:
        from_json(packed)
    except ValueError as error:
        raise BadArguments(f"the arguments of a node are nested too deep for a workflow: {error}") from error
    return packed


def decode_graph(packed: bytes) -> Graph:
    """Decode a graph. Raises `BadEnvelope`; `NewerEnvelope` if a later release encoded it."""
    try:
        found = from_json(packed)
        if found["v"] > DEFINITION_VERSION:
            raise NewerEnvelope(f"the workflow has version {found['v']}; this release reads 1")
        return Graph(
            found["name"],
            tuple(read_template(one) for one in found["templates"]),
            tuple(read_node(one) for one in found["nodes"]),
            tuple(tuple(members_of(one)) for one in found["joins"]),
            read_shape(found["result"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError, BadWorkflow) as error:
        raise BadEnvelope(f"not a workflow: {type(error).__name__} {error}") from error


def template_fields(job: Job) -> dict[str, Any]:
    return {"queue": job.queue, "priority": job.priority, "headers": envelope.encode(job)}


def read_template(found: Mapping[str, Any]) -> Job:
    headers, priority = found["headers"], envelope.read_priority(found["priority"])
    return envelope.decode(headers, b"{}", id="", queue=found["queue"], priority=priority)


def node_fields(node: Node) -> dict[str, Any]:
    written: dict[str, Any] = {"t": node.template, "name": node.name, "a": from_json(node.arguments)}
    if node.references:
        written["r"] = [[one.place, shape_fields(one.shape)] for one in node.references]
    if node.join >= 0:
        written["j"] = node.join
    if node.on_error != "fail":
        written["e"] = node.on_error
    return written


def read_node(found: Mapping[str, Any]) -> Node:
    return Node(
        found["name"],
        found["t"],
        to_json(found["a"], inf_nan_mode="constants"),
        tuple(Reference(place, read_shape(shape)) for place, shape in found.get("r", ())),
        found.get("j", -1),
        found.get("e", "fail"),
    )


def shape_fields(shape: ResultShape) -> Any:
    """The form of a result as JSON. A list of nodes that follow each other is written as a run of them."""
    if isinstance(shape, int):
        return shape
    if isinstance(shape, Mapping):
        return {"named": {name: shape_fields(part) for name, part in shape.items()}}
    if len(shape) > 1 and all(isinstance(one, int) for one in shape):
        numbers = [one for one in shape if isinstance(one, int)]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            return {"run": [numbers[0], len(numbers)]}
    return [shape_fields(part) for part in shape]


def read_shape(found: Any) -> ResultShape:
    if isinstance(found, int):
        return found
    if isinstance(found, dict):
        if "run" in found:
            first, count = found["run"]
            return tuple(run_of(first, count))
        return {name: read_shape(part) for name, part in found["named"].items()}
    return tuple(read_shape(part) for part in found)


def runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Sorted numbers as runs: the first number of each, and how many there are."""
    run: list[int] = []
    for number in numbers:
        if run and number == run[0] + run[1]:
            run[1] += 1
            continue
        if run:
            yield run
        run = [number, 1]
    if run:
        yield run


def members_of(found: Sequence[Sequence[int]]) -> Iterator[int]:
    for first, count in found:
        yield from run_of(first, count)


def run_of(first: int, count: int) -> range:
    """A run of nodes. Raises `ValueError` if it has more than a workflow may have."""
    if not 0 <= count <= MAX_NODES:
        raise ValueError(f"a run must have {MAX_NODES} nodes at most, got {count}")
    return range(first, first + count)


def resolved_arguments(packed: bytes, values: Mapping[int | str, Any]) -> bytes:
    """The arguments of a node, with the values in their places."""
    found = from_json(packed)
    if isinstance(found, dict):
        return to_json({**found, **values}, inf_nan_mode="constants")
    positional, named = found
    for place, value in values.items():
        if isinstance(place, int):
            positional[place] = value
        else:
            named[place] = value
    return to_json([positional, named], inf_nan_mode="constants")
