"""Workflows in a chaos run: they are submitted under load, and each join must fire once."""

import random
from collections.abc import Iterator

from jsq import Client, chain, group
from jsq.client.flows import Flow, Step
from jsq.codec.envelope import new_id
from jsq.model.revision import FINAL_STATES, StoredRevision
from jsq.model.workflow import HALTED, SKIPPED, WORKFLOW_TASK, node_id
from tests.chaos.history import History, SubmittedFlow

MEMBERS = (2, 3, 8)
"""The numbers of members of a group."""


def chord(client: Client, chance: random.Random) -> tuple[Flow[object], SubmittedFlow]:
    """A workflow of a node, a group, a node that joins it, and one more; one member may fail."""
    members = chance.choice(MEMBERS)
    fails = 1 + chance.randrange(members) if chance.random() < 0.2 else -1
    link: Step[object] = client.task("link").s()
    doomed: Step[object] = client.task("doomed").si()
    flow = chain(link, group(doomed if n == fails else link for n in range(1, members + 1)), link, link)
    group_of = tuple(range(1, members + 1))
    waits = ((), *[(0,)] * members, group_of, (members + 1,))
    job = f"flow:{new_id()}"
    return flow.options(id=job), SubmittedFlow(job, waits, fails)


def joins_fire_once(history: History) -> Iterator[str]:
    """I14: each workflow ends; a node starts once, after all that it waits for; no other node exists."""
    started = {effect.job for effect in history.effects}
    for flow in history.flows:
        states = [event.state for event in history.events.get(flow.job, ())]
        if not states or states[-1] not in FINAL_STATES:
            yield f"the workflow {flow.job} has not ended: {states or 'missing'}"
            continue
        nodes = [history.events.get(node_id(flow.job, n), []) for n in range(len(flow.waits))]
        yield from early_starts(flow, nodes)
        wanted = "failed" if flow.fails >= 0 else "succeeded"
        if flow.job not in history.cancelled and states[-1] != wanted and not crashed(nodes):
            yield f"the workflow {flow.job} has {states[-1]}, and should have {wanted}"
        if states[-1] == "succeeded" and any(not one or one[-1].state != "succeeded" for one in nodes):
            yield f"the workflow {flow.job} succeeded without all of its nodes"
        known = {node_id(flow.job, n) for n in range(len(flow.waits))}
        for job in {job for job in history.events if job.startswith(f"{flow.job}-")} - known:
            yield f"{job} is no node of {flow.job}"
        for n, events in enumerate(nodes):
            if events and events[-1].revision.reason in (HALTED, SKIPPED) and node_id(flow.job, n) in started:
                yield f"{events[-1].job} never began, and ran"


def early_starts(flow: SubmittedFlow, nodes: list[list[StoredRevision]]) -> Iterator[str]:
    """The nodes that started before a node that they wait for had ended."""
    for n, events in enumerate(nodes):
        start = next((one.sequence for one in events if one.state == "running"), None)
        for before in flow.waits[n] if start is not None else ():
            ended = [one.sequence for one in nodes[before] if one.state == "succeeded"]
            if not ended or (start is not None and min(ended) > start):
                yield f"{node_id(flow.job, n)} started before {node_id(flow.job, before)} had succeeded"


def crashed(nodes: list[list[StoredRevision]]) -> bool:
    """Whether a node failed because its workers died."""
    return any(events and events[-1].revision.reason == "crashed" for events in nodes)


def is_of_workflow(history: History, job: str) -> bool:
    """Whether a job is a workflow or a node of one that was submitted."""
    known = {flow.job for flow in (*history.flows, *history.maybe_flows)}
    return job in known or job.rpartition("-")[0] in known


def is_workflow(events: list[StoredRevision]) -> bool:
    return any(event.revision.task == WORKFLOW_TASK for event in events)
