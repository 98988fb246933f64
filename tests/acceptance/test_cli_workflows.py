"""`jsq workflow`: lists, shows, cancels and retries workflows."""

import pytest

from jsq import App, JobFailed, chain, group
from tests.acceptance.conftest import Command
from tests.helpers.workers import Working


async def test_a_workflow_is_listed_shown_and_retried(jsq: Command, app: App, working: Working) -> None:
    broken = True

    @app.task(retries=0)
    async def part(n: int) -> int:
        if n == 2 and broken:
            raise ValueError("no")
        return n

    @app.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    async with working():
        flow = chain(group(part.s(n) for n in (1, 2, 3)), total.s())
        job = await app.submit(flow.options(id="sums"), name="sums")
        with pytest.raises(JobFailed):
            await job.result(20)

        assert [one["id"] for one in (await jsq("workflow", "ls", "--state", "failed")).lines] == ["sums"]
        shown = (await jsq("workflow", "get", "sums")).json
        assert (shown["state"], shown["reason"]) == ("failed", "node_failed")
        nodes = (await jsq("workflow", "tree", "sums")).lines
        assert [node["number"] for node in nodes] == [0, 1, 2, 3]
        assert (nodes[1]["state"], nodes[1]["error"], nodes[3]["after"]) == (
            "failed",
            "ValueError: no",
            [0, 1, 2],
        )
        table = (await jsq("workflow", "tree", "sums", "-o", "table")).out.splitlines()
        assert table[0].split() == ["NODE", "STATE", "TASK", "AFTER", "SECONDS", "ERROR"]
        assert table[4].split()[:5] == ["3", "total", "cancelled", "total", "0-2"]

        broken = False
        assert (await jsq("workflow", "retry", "sums")).code == 0
        assert await job.result(20) == 6

    mermaid = (await jsq("workflow", "graph", "sums")).out.splitlines()
    assert mermaid[:2] == ["flowchart TD", '    n0["0 part: succeeded"]']
    assert "    n2 --> n3" in mermaid
    dot = (await jsq("workflow", "graph", "sums", "--as", "dot")).out.splitlines()
    assert (dot[0], dot[1]) == ('digraph "sums" {', '    n0 [label="0 part: succeeded"];')


async def test_a_workflow_is_cancelled_and_another_job_is_none(jsq: Command, app: App) -> None:
    @app.task
    async def part(n: int) -> int:
        return n

    job = await app.submit(chain(part.s(1), part.s()))
    plain = await part.submit(1)

    assert (await jsq("workflow", "cancel", job.id)).json["state"] == "cancelled"
    refused = await jsq("workflow", "tree", plain.id)
    assert (refused.code, "no workflow" in refused.err) == (6, True)
    assert (await jsq("workflow", "get", "absent")).code == 5
