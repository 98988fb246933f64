"""`jsq workflow`: list workflows, show one node by node or as a graph, cancel and retry them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from jsq.cli.escaping import json_text, safe
from jsq.cli.filters import list_jobs
from jsq.cli.job_view import print_job
from jsq.cli.options import Group
from jsq.cli.printing import document
from jsq.cli.session import Session
from jsq.client.workflows import WorkflowRecord
from jsq.model.workflow import WorkflowNode

NODE_COLUMNS = ("node", "state", "task", "after", "seconds", "error")

WorkflowId = Annotated[str, typer.Argument(metavar="ID", help="the workflow's id")]
GraphForm = Annotated[
    Literal["mermaid", "dot"], typer.Option("--as", metavar="FORM", help="the language: mermaid or dot")
]

workflow = Group("List workflows, show their nodes; cancel and retry them.")


@workflow.adds("ls")
def ls(
    session: Session,
    *,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="only in this state; repeatable")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="how many of the newest workflows")
    ] = 100,
) -> None:
    """List the newest workflows, the newest last.

    \b
    jsq workflow ls --state waiting
    """
    found = session.run(lambda client: client.workflows.list(state=state or None, limit=limit))
    list_jobs(session, found, omit="result")


@workflow.adds("get")
def get(session: Session, id: WorkflowId) -> None:
    """Show the job of a workflow: its state, times, result or error.

    \b
    jsq workflow get order-17
    """
    print_job(session.printer, session.run(lambda client: client.workflows.get(id)).job, [])


@workflow.adds("tree")
def tree(session: Session, id: WorkflowId) -> None:
    """Show the nodes of a workflow, with the state of each and the nodes that it waits for.

    `pending` is a node that waits for others, `skipped` one that will never run.

    \b
    jsq workflow tree order-17
    """
    found = session.run(lambda client: client.workflows.get(id))
    rows = [node_row(node) for node in found.nodes]
    session.printer.all([node_document(one) for one in found.nodes], NODE_COLUMNS, rows=rows)


@workflow.adds("graph")
def graph(session: Session, id: WorkflowId, form: GraphForm = "mermaid") -> None:
    """Print a workflow as a graph in the language of Mermaid or of Graphviz.

    \b
    jsq workflow graph order-17
    jsq workflow graph order-17 --as dot > order.dot
    """
    found = session.run(lambda client: client.workflows.get(id))
    print("\n".join(mermaid(found) if form == "mermaid" else dot(found)))


@workflow.adds("cancel")
def cancel(session: Session, id: WorkflowId) -> None:
    """Cancel a workflow and its nodes, also those that run.

    \b
    jsq workflow cancel order-17
    """
    print_job(session.printer, session.run(lambda client: client.workflows.cancel(id)), [])


@workflow.adds("retry")
def retry(
    session: Session,
    id: WorkflowId,
    again: Annotated[
        bool, typer.Option("--again", help="also a workflow that was cancelled, or has expired")
    ] = False,
) -> None:
    """Run a failed workflow again: only the nodes that have not succeeded.

    \b
    jsq workflow retry order-17
    """
    print_job(session.printer, session.run(lambda client: client.workflows.retry(id, again=again)), [])


def node_document(node: WorkflowNode) -> dict[str, Any]:
    """A node with all its fields."""
    known: dict[str, Any] = document(node)
    return {"number": node.number, **known}


def node_row(node: WorkflowNode) -> dict[str, Any]:
    """A node as a row of a table."""
    ran = (node.ended - node.started).total_seconds() if node.ended and node.started else None
    return {
        **asdict(node),
        "node": f"{node.number} {node.name}",
        "after": runs_text(node.after),
        "seconds": "" if ran is None else f"{ran:.3f}",
    }


def runs_text(numbers: tuple[int, ...]) -> str:
    """Numbers with runs of them written as such: `0-99, 102`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def mermaid(found: WorkflowRecord) -> Iterator[str]:
    """The lines of a Mermaid flowchart."""
    yield "flowchart TD"
    for node in found.nodes:
        label = f"{node.number} {node.name}: {node.state}".replace('"', "'")
        yield f'    n{node.number}["{safe(label)}"]'
    for node in found.nodes:
        yield from (f"    n{before} --> n{node.number}" for before in node.after)


def dot(found: WorkflowRecord) -> Iterator[str]:
    """The lines of a graph for Graphviz."""
    yield f"digraph {json_text(found.name)} {{"
    for node in found.nodes:
        yield f"    n{node.number} [label={json_text(f'{node.number} {node.name}: {node.state}')}];"
    for node in found.nodes:
        yield from (f"    n{before} -> n{node.number};" for before in node.after)
    yield "}"
