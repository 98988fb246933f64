"""The rules of workflows: graphs, progress, joins, and what is stored of them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.codec.workflows import decode_graph, encode_graph, resolved_arguments
from jsq.errors import BadEnvelope, BadWorkflow, NewerEnvelope
from jsq.model.job import Job
from jsq.model.workflow import (
    FIRST_CHECK,
    LAST_CHECK,
    SHARD_MEMBERS,
    SKIPPED,
    FlowLink,
    Graph,
    JoinState,
    Node,
    NodeState,
    OnError,
    Reference,
    check_delay,
    effect_of,
    node_id,
    node_number,
    progress_of,
    shard_count,
    shard_size,
    unique_members,
)

JOB = Job("", "add")
ENDS = {
    "succeeded": NodeState("succeeded"),
    "failed": NodeState("failed", "error", "ValueError: no"),
    "cancelled": NodeState("cancelled"),
    "expired": NodeState("expired"),
}


def graph_of(before: list[set[int]], rules: list[OnError]) -> Graph:
    """A graph in which each node waits for some of those before it."""
    joins: dict[tuple[int, ...], int] = {}
    nodes = []
    for number, waits in enumerate(before):
        members = unique_members([one % number for one in waits]) if number else ()
        join = joins.setdefault(members, len(joins)) if members else -1
        shapes = tuple(Reference(place, member) for place, member in enumerate(members[:2]))
        nodes.append(Node(f"n{number}", 0, b"[[null,null],{}]", shapes, join, rules[number]))
    followed = {member for members in joins for member in members}
    ends = unique_members([n for n in range(len(nodes)) if n not in followed])
    return Graph("w", (JOB,), tuple(nodes), (*joins, ends), ends)


@st.composite
def graphs(draw: Callable[..., object]) -> Graph:
    size = draw(st.integers(1, 12))
    assert isinstance(size, int)
    before = draw(st.lists(st.sets(st.integers(0, 11), max_size=4), min_size=size, max_size=size))
    rules = draw(st.lists(st.sampled_from(["fail", "continue", "skip"]), min_size=size, max_size=size))
    return graph_of(before, rules)  # type: ignore[arg-type]  # `draw` returns what the strategies make


@given(graph=graphs(), data=st.data())
def test_every_workflow_ends_and_starts_each_node_once_after_those_that_it_waits_for(
    graph: Graph, data: st.DataObject
) -> None:
    states: dict[int, NodeState] = {}
    started: list[int] = []
    running: list[int] = []
    for _ in range(4 * len(graph.nodes) + 4):
        progress = progress_of(graph, states)
        assert progress == progress_of(graph, dict(reversed(states.items())))
        if progress.failed >= 0 or progress.is_over:
            break
        for number in progress.skipped:
            states[number] = NodeState("cancelled", SKIPPED)
        for number in progress.ready:
            if number not in running:
                assert number not in started
                members = graph.joins[graph.nodes[number].join] if graph.nodes[number].join >= 0 else ()
                assert all(effect_of(graph.nodes[one], states.get(one)) == "done" for one in members)
                started.append(number)
                running.append(number)
        assert running or progress.skipped, "the workflow waits for nothing"
        if running:
            number = running.pop(data.draw(st.integers(0, len(running) - 1)))
            states[number] = ENDS[data.draw(st.sampled_from(sorted(ENDS)))]
    last = progress_of(graph, states)
    assert last.is_over != (last.failed >= 0)
    if last.failed >= 0:
        assert states[last.failed].state != "succeeded"
        assert graph.nodes[last.failed].on_error == "fail"
    else:
        assert len(states) + len(last.skipped) == len(graph.nodes)


@given(graph=graphs())
def test_a_graph_comes_back_from_its_definition(graph: Graph) -> None:
    assert decode_graph(encode_graph(graph)) == graph


@given(graph=graphs())
def test_a_join_comes_after_the_joins_of_its_members(graph: Graph) -> None:
    places = {join: place for place, join in enumerate(graph.order)}
    for join, members in enumerate(graph.joins):
        for member in members:
            before = graph.nodes[member].join
            assert before < 0 or places[before] < places[join]


@given(size=st.integers(1, 40), arrivals=st.lists(st.tuples(st.sets(st.integers(0, 39)), st.booleans())))
def test_a_join_is_full_when_each_member_has_ended_however_often_it_is_noted(
    size: int, arrivals: list[tuple[set[int], bool]]
) -> None:
    state, ended, skips = JoinState(), set[int](), False
    for members, skip in arrivals:
        some = {member % size for member in members}
        ended |= some
        skips = skips or skip
        state = JoinState.decode(state.with_members(sum(1 << member for member in some), skips=skip).encode())
        assert state.is_full(size) is (len(ended) == size)
        assert state.skips is skips


@pytest.mark.parametrize("members", [1, 511, 512, 513, 1024, 10_000])
def test_the_shards_of_a_join_hold_all_members(members: int) -> None:
    sizes = [shard_size(members, shard) for shard in range(shard_count(members))]

    assert sum(sizes) == members
    assert all(0 < size <= SHARD_MEMBERS for size in sizes)


def test_a_node_has_an_id_that_follows_from_the_workflow() -> None:
    assert node_id("order-17", 3) == "order-17-3"
    assert node_number("order-17-3") == 3
    assert node_number(node_id("x" * 128, 12)) == 12
    assert len(node_id("x" * 128, 12)) <= 128
    assert node_number("order") == node_number("order-") == node_number("order-1234567") == -1
    assert FlowLink.read(str(FlowLink("q", "my own id"))) == FlowLink("q", "my own id")


def test_a_cycle_is_refused_with_a_node_of_it() -> None:
    nodes = (
        Node("a", 0, b"{}"),
        Node("b", 0, b"{}", join=1),
        Node("c", 0, b"{}", join=0),
    )
    with pytest.raises(BadWorkflow, match=r"node 1 \(b\) of workflow 'w' waits for itself, in a circle"):
        Graph("w", (JOB,), nodes, ((0, 1), (2,), (2,)), 2)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"nodes": ()}, "must have a node"),
        ({"joins": ()}, "must have 1 to"),
        ({"joins": ((7,),)}, "nodes that do not exist"),
        ({"joins": ((1, 0),)}, "not in order"),
        ({"nodes": (Node("a", 1, b"{}"), Node("b", 0, b"{}"))}, r"node 0 \(a\) .* do not exist"),
        ({"nodes": (Node("a", 0, b"{}", join=0), Node("b", 0, b"{}"))}, r"node 0 \(a\)"),
        ({"nodes": (Node("a", 0, b"{}", (Reference(0, 1),)), Node("b", 0, b"{}"))}, "does not wait for"),
    ],
)
def test_a_graph_that_cannot_work_is_refused(changes: dict[str, object], why: str) -> None:
    good = Graph("w", (JOB,), (Node("a", 0, b"{}"), Node("b", 0, b"{}")), ((0, 1),), (0, 1))
    with pytest.raises(BadWorkflow, match=why):
        replace(good, **changes)  # type: ignore[arg-type]  # of the right types


def test_a_definition_that_is_none_is_refused() -> None:
    for text in (
        b"",
        b"{}",
        b"[]",
        b'{"v":1}',
        b'{"v":1,"name":"w","templates":[],"nodes":[],"joins":[],"result":0}',
    ):
        with pytest.raises(BadEnvelope):
            decode_graph(text)
    with pytest.raises(BadEnvelope):
        decode_graph(b'{"v":1,"name":"w","templates":[],"nodes":[],"joins":[[[0,99999999]]],"result":0}')
    with pytest.raises(NewerEnvelope):
        decode_graph(b'{"v":2}')


def test_results_take_their_places() -> None:
    assert resolved_arguments(b"[[null,2],{}]", {0: [1]}) == b"[[[1],2],{}]"
    assert resolved_arguments(b'[[],{"a":null}]', {"a": 1}) == b'[[],{"a":1}]'
    assert resolved_arguments(b'{"a":null,"b":2}', {"a": None}) == b'{"a":null,"b":2}'


def test_a_workflow_is_checked_less_often_as_it_grows_older() -> None:
    delays = [check_delay(age) for age in (0, 10, 100, 1e4, 1e9)]

    assert delays[0] == FIRST_CHECK
    assert delays[-1] == LAST_CHECK
    assert all(one <= later for one, later in pairwise(delays))
