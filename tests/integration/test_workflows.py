"""Workflows on a real server: chains, groups, joins, graphs, failures, cancels, retries, and two workers."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    BadWorkflow,
    Context,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobHandle,
    StepOutcome,
    WrongState,
    chain,
    group,
)
from jsq.model.workflow import node_id
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker

WAIT = 30.0


class Tasks:
    """The tasks of these tests, and what they noted."""

    def __init__(self, app: App) -> None:
        self.ran: Counter[str] = Counter()
        self.started: list[str] = []
        self.broken = True
        self.open = asyncio.Event()

        @app.task
        async def add(a: int, b: int = 0) -> int:
            self.started.append("add")
            return a + b

        @app.task
        async def total(numbers: list[int]) -> int:
            self.started.append("total")
            return sum(numbers)

        @app.task(retries=0)
        async def fail(n: int = 0) -> int:
            self.started.append("fail")
            if self.broken:
                raise ValueError(f"no {n}")
            return n

        @app.task
        async def outcomes(found: list[int | StepOutcome]) -> list[str]:
            return [one.error if isinstance(one, StepOutcome) else str(one) for one in found]

        @app.task
        async def note(ctx: Context, word: str = "") -> str:
            self.ran[ctx.id] += 1
            self.started.append(word or "note")
            return word

        @app.task(retries=0)
        async def wait(word: str = "") -> str:
            self.started.append("wait")
            await self.open.wait()
            return word

        self.add, self.total, self.fail, self.outcomes = add, total, fail, outcomes
        self.note, self.wait = note, wait


@pytest.fixture
def tasks(app: App) -> Tasks:
    return Tasks(app)


async def failure(job: JobHandle[Any]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await job.result(WAIT)
    return caught.value


async def states(app: App, job: JobHandle[Any]) -> list[str]:
    return [node.state for node in (await app.client.workflows.get(job.id)).nodes]


async def test_each_step_of_a_chain_takes_the_result_of_the_one_before(
    app: App, tasks: Tasks, working: Working
) -> None:
    flow = chain(tasks.add.s(1, 2), tasks.add.s(10), tasks.note.si("aside"), tasks.note.s())
    async with working():
        job = await app.submit(flow)

        assert await job.result(WAIT) == "aside"
        assert (await job.status()).state == "succeeded"
        shown = await app.client.workflows.get(job.id)
        nodes = [await app.client.jobs.get(node.id) for node in shown.nodes]
        assert [node.result for node in nodes] == [3, 13, "aside", "aside"]
        assert {node.parent for node in nodes} == {job.id}
        assert [node.after for node in shown.nodes] == [(), (0,), (1,), (2,)]


async def test_a_group_gives_its_results_in_order_and_a_step_after_it_takes_the_list(
    app: App, tasks: Tasks, working: Working
) -> None:
    async with working():
        alone = await app.submit(group(tasks.add.s(n, 1) for n in range(20)))
        chord = await app.submit(chain(group(tasks.add.s(n, 1) for n in range(20)), tasks.total.s()))

        assert await alone.result(WAIT) == list(range(1, 21))
        assert await chord.result(WAIT) == 210


async def test_flows_are_nested(app: App, tasks: Tasks, working: Working) -> None:
    flow = chain(
        tasks.add.s(1),
        group(
            chain(tasks.add.s(1), group(tasks.add.s(1), tasks.add.s(2)), tasks.total.s()),
            tasks.add.s(5),
        ),
        tasks.total.s(),
        group(tasks.add.s(n) for n in range(3)),
        group(tasks.total.s(), tasks.total.s()),
    )
    async with working():
        # 1 -> [(2 -> [3, 4] -> 7), 6] -> 13 -> [13, 14, 15] -> [42, 42]
        assert await (await app.submit(flow)).result(WAIT) == [42, 42]


async def test_a_step_alone_is_a_workflow(app: App, tasks: Tasks, working: Working) -> None:
    async with working():
        assert await (await app.submit(tasks.add.s(1, 2))).result(WAIT) == 3


async def test_a_graph_waits_for_the_results_that_it_uses_and_for_other_nodes(
    app: App, tasks: Tasks, working: Working
) -> None:
    with app.workflow("diamond") as wf:
        first = wf.add(tasks.add, 1, 2)
        left = wf.add(tasks.add, first.result, 10)
        right = wf.add(tasks.add, b=first.result, a=20)
        aside = wf.add(tasks.note, "aside", after=[left])
        last = wf.add(tasks.total, [left.result, right.result, first.result], after=[aside])
    async with working():
        job = await wf.submit()

        assert await job.result(WAIT) == 13 + 23 + 3
        shown = await app.client.workflows.get(job.id)
        assert shown.name == "diamond"
        assert shown.nodes[last.number].after == (0, 1, 2, 3)
        assert tasks.started.index("aside") > 1


async def test_a_graph_with_several_ends_has_their_results_by_name(
    app: App, tasks: Tasks, working: Working
) -> None:
    with app.workflow("ends") as wf:
        first = wf.add(tasks.add, 1, 2)
        wf.add(tasks.add, first.result, 10)
        wf.add(tasks.note, "x", after=[first])
    async with working():
        assert await (await app.submit(wf)).result(WAIT) == {"add-2": 13, "note": "x"}


async def test_a_failed_node_fails_the_workflow_and_cancels_what_has_not_begun(
    app: App, tasks: Tasks, working: Working
) -> None:
    flow = chain(tasks.add.s(1), tasks.fail.s(), group(tasks.add.s(n) for n in range(3)), tasks.total.s())
    async with working():
        job = await app.submit(flow)

        error = await failure(job)
        assert error.reason == "node_failed"
        assert (
            f"node 1 (fail) of the workflow failed: ValueError: no 1 (job {node_id(job.id, 1)})"
            in error.error
        )
        broker = await app.client.broker()
        record = await broker.job_reader.find(node_id(job.id, 5))
        while record is None or record.state != "cancelled":
            record = await broker.job_reader.find(node_id(job.id, 5))
        assert await states(app, job) == ["succeeded", "failed", *["cancelled"] * 4]
        letters = {letter.id for letter in await app.client.dead_letters.list()}
        assert letters == {job.id, node_id(job.id, 1)}
    assert "total" not in tasks.started


async def test_a_member_that_may_fail_gives_its_outcome_to_the_join(
    app: App, tasks: Tasks, working: Working
) -> None:
    members = [tasks.add.s(1), tasks.fail.s(7), tasks.add.s(3)]
    async with working():
        joined = await app.submit(chain(group(*members, on_error="continue"), tasks.outcomes.s()))
        alone = await app.submit(group(*members, on_error="continue"))

        assert await joined.result(WAIT) == ["1", "ValueError: no 7", "3"]
        first, second, third = await alone.result(WAIT)
        assert (first, third) == (1, 3)
        assert second == StepOutcome(node_id(alone.id, 1), "fail", "failed", "error", "ValueError: no 7")
        assert len(await app.client.dead_letters.list()) == 2


async def test_a_chain_in_a_group_that_continues_gives_one_outcome(
    app: App, tasks: Tasks, working: Working
) -> None:
    flow = chain(
        group(chain(tasks.fail.s(1), tasks.add.s(1)), tasks.add.s(2), on_error="continue"), tasks.outcomes.s()
    )
    async with working():
        job = await app.submit(flow)
        assert await job.result(WAIT) == ["", "2"]
        assert await states(app, job) == ["failed", "skipped", "succeeded", "succeeded"]


async def test_a_member_with_skip_skips_what_follows_and_the_workflow_succeeds(
    app: App, tasks: Tasks, working: Working
) -> None:
    with app.workflow("skips") as wf:
        bad = wf.add(tasks.fail, 1, on_error="skip")
        good = wf.add(tasks.add, 1, 1)
        after = wf.add(tasks.add, bad.result, good.result)
        wf.add(tasks.add, after.result, 1)
        wf.add(tasks.add, good.result, 5)
    async with working():
        job = await wf.submit()

        assert await job.result(WAIT) == {"add-3": None, "add-4": 7}
        assert await states(app, job) == ["failed", "succeeded", "skipped", "skipped", "succeeded"]


async def test_a_retry_of_a_failed_workflow_runs_only_what_has_not_succeeded(
    app: App, tasks: Tasks, working: Working, until: Until
) -> None:
    flow = chain(
        group(tasks.note.s("one"), tasks.note.s("two"), chain(tasks.add.s(3), tasks.fail.s())),
        tasks.note.si("last"),
    )
    async with working():
        job = await app.submit(flow)
        await failure(job)
        await until(lambda: is_final(app, node_id(job.id, 4)))
        before = tasks.ran.copy()
        tasks.broken = False

        await app.client.workflows.retry(job.id)

        assert await job.result(WAIT) == "last"
        assert tasks.ran == before | {node_id(job.id, 4): 1}
        assert await states(app, job) == ["succeeded"] * 5
        assert await app.client.dead_letters.list() == []


async def is_final(app: App, id: str) -> bool:
    found = await (await app.client.broker()).records.last(id)
    return found is not None and found.state in ("succeeded", "failed", "cancelled", "expired")


async def test_a_cancel_reaches_waiting_and_running_nodes(
    app: App, tasks: Tasks, working: Working, until: Until
) -> None:
    flow = chain(group(tasks.wait.s("x") for _ in range(5)), tasks.note.si("never"))
    async with working(concurrency=2):
        job = await app.submit(flow)
        await until(lambda: tasks.started.count("wait") == 2)

        async with asyncio.timeout(3):
            assert (await job.cancel()).state == "cancelled"
            assert await states(app, job) == ["cancelled"] * 6

        with pytest.raises(JobCancelled):
            await job.result(WAIT)
        broker = await app.client.broker()
        await until(lambda: idle(broker))
    assert tasks.started.count("wait") == 2


async def idle(broker: Any) -> bool:
    return not await broker.job_reader.waiting_ids("default")


async def test_the_cancel_of_a_workflow_whose_client_died_reaches_the_nodes(
    app: App, tasks: Tasks, working: Working, until: Until
) -> None:
    flow = chain(tasks.wait.s("x"), tasks.note.si("never"))
    async with working():
        job = await app.submit(flow)
        await until(lambda: tasks.started == ["wait"])
        broker = await app.client.broker()

        await broker.cancel.cancel(job.id, job.queue)  # the client would cancel the nodes now

        await until(lambda: is_final(app, node_id(job.id, 0)))
        await until(lambda: is_final(app, node_id(job.id, 1)))
        assert await states(app, job) == ["cancelled", "cancelled"]


async def test_a_cancelled_node_fails_its_workflow(
    app: App, tasks: Tasks, working: Working, until: Until
) -> None:
    async with working(concurrency=1):
        job = await app.submit(group(tasks.wait.s("a"), tasks.wait.s("b")))
        await until(lambda: tasks.started == ["wait"])
        shown = await app.client.workflows.get(job.id)
        queued = next(node for node in shown.nodes if node.state == "queued")

        await app.client.jobs.cancel(queued.id)
        tasks.open.set()

        assert f"node {queued.number} (wait) of the workflow was cancelled" in (await failure(job)).error


async def test_a_workflow_has_the_options_of_a_job(
    app: App, tasks: Tasks, working: Working, until: Until
) -> None:
    flow = chain(tasks.wait.s("x"), tasks.note.s())
    unique = flow.options(unique="nightly", tags=["a"])
    first = await app.submit(unique)
    second = await app.submit(unique)
    own = await app.submit(flow.options(id="my own/id"))
    again = await app.submit(flow.options(id="my own/id"))
    late = await app.submit(flow.options(delay=timedelta(hours=1)))

    assert (second.id, second.duplicate) == (first.id, True)
    assert again.duplicate
    assert (await late.status()).state == "scheduled"
    assert (await late.cancel()).state == "cancelled"
    assert (await first.status()).tags == ("a",)
    async with working():
        tasks.open.set()
        assert await first.result(WAIT) == "x"
        assert await own.result(WAIT) == "x"
        assert await states(app, own) == ["succeeded"] * 2
        third = await app.submit(unique)
        assert not third.duplicate
        assert await third.result(WAIT) == "x"


async def test_the_deadline_of_a_workflow_ends_its_nodes(
    app: App, tasks: Tasks, working: Working, until: Until
) -> None:
    flow = chain(tasks.wait.s("x"), tasks.note.s()).options(deadline=1.0)
    async with working():
        job = await app.submit(flow)
        with pytest.raises((JobExpired, JobFailed)):
            await job.result(WAIT)
        await until(lambda: is_final(app, node_id(job.id, 1)))
        assert (await states(app, job))[1] == "cancelled"
    assert "note" not in tasks.started


async def test_a_node_whose_predecessor_kept_no_result_fails(
    app: App, tasks: Tasks, working: Working
) -> None:
    @app.task
    async def large() -> str:
        return "x" * 2_000_000

    async with working():
        job = await app.submit(chain(large.s(), tasks.note.s()))
        error = await failure(job)
    assert "the result of node 0 (large) is not kept" in error.error
    assert "store it elsewhere" in error.error


async def test_an_argument_of_the_wrong_type_from_a_node_fails_the_next_one(
    app: App, tasks: Tasks, working: Working
) -> None:
    async with working():
        job = await app.submit(chain(tasks.note.s("word"), tasks.add.s(1)))
        assert "node 1 (add) of the workflow failed: BadArguments" in (await failure(job)).error


async def test_a_workflow_that_cannot_work_is_refused_before_anything_is_sent(app: App, tasks: Tasks) -> None:
    with pytest.raises(
        BadWorkflow, match=r"node 1 \(add\) of workflow 'chain' cannot run: .*keyword argument 'c'"
    ):
        await app.submit(chain(tasks.add.s(1), tasks.add.s(c=1)))
    with pytest.raises(BadWorkflow, match=r"node 0 \(add\) of workflow 'chain' cannot run: .*valid integer"):
        await app.submit(chain(tasks.add.s("x"), tasks.add.s(1)))
    with pytest.raises(BadWorkflow, match=r"node 1 \(add\) .* b: Input should be a valid integer"):
        await app.submit(chain(tasks.add.s(1), tasks.add.s(b="x")))
    with pytest.raises(BadWorkflow, match=r"node 0 \(add\) .* cannot have delay"):
        await app.submit(group(tasks.add.options(delay=5).s(1)))
    with pytest.raises(BadWorkflow, match="has options on a part"):
        await app.submit(chain(tasks.add.s(1), group(tasks.add.s(1)).options(id="x")))
    with pytest.raises(BadWorkflow, match="10,000 nodes at most"):
        await app.submit(group(tasks.add.s(n) for n in range(10_001)))
    with pytest.raises(BadWorkflow, match=r"node 0 \(sub\) of workflow 'w' has no task"):
        app.workflow("w").add("sub", 1)
    with pytest.raises(BadWorkflow, match="another workflow"):
        app.workflow("w").add(tasks.add, app.workflow("v").add(tasks.add, 1).result)
    with pytest.raises(BadOption, match="a workflow has no retries"):
        chain(tasks.add.s(1)).options(retries=3)
    with pytest.raises(BadOption, match="must have a step"):
        group([])
    assert await app.client.workflows.list() == []


async def test_workflows_are_listed_and_other_jobs_are_none(app: App, tasks: Tasks, working: Working) -> None:
    plain = await tasks.add.submit(1)
    job = await app.submit(chain(tasks.add.s(1), tasks.add.s(1)), name="sums")

    assert [one.id for one in await app.client.workflows.list()] == [job.id]
    shown = await app.client.workflows.get(job.id)
    assert (shown.name, [node.state for node in shown.nodes]) == ("sums", ["pending", "pending"])
    with pytest.raises(WrongState, match="no workflow"):
        await app.client.workflows.get(plain.id)


async def test_a_group_of_2000_on_two_workers_fires_its_join_once(
    app: App, tasks: Tasks, working: Working
) -> None:
    flow = chain(group(tasks.add.s(n) for n in range(2_000)), tasks.total.s(), tasks.note.si("joined"))
    async with working(concurrency=50):
        other = Worker(app, settings=WorkerSettings(concurrency=50))
        async with running_worker(other):
            job = await app.submit(flow)
            assert await job.result(WAIT) == "joined"
            last = node_id(job.id, 2_001)
            assert tasks.ran == {last: 1}
            assert tasks.started.count("total") == 1
            assert (await app.client.jobs.get(node_id(job.id, 2_000))).result == 1_999_000


async def test_a_check_finds_a_node_that_nobody_will_submit(
    app: App, tasks: Tasks, working: Working, until: Until
) -> None:
    """The message of a node is lost after it was submitted, as with the stream of its queue."""
    flow = chain(group(tasks.add.s(1), tasks.add.s(2)), tasks.total.options(queue="sums").s())
    broker = await app.client.broker()
    async with working(queues=["default"]):
        job = await app.submit(flow)
        await until(lambda: is_queued(broker, "sums"))
        await broker.job_writer.remove("sums", node_id(job.id, 2))
        assert not await is_queued(broker, "sums")

        await broker.workflows.wake(job.queue, job.id)  # a check comes by itself after 30 seconds

        await until(lambda: is_queued(broker, "sums"))
        async with working(queues=["sums"]):
            assert await job.result(WAIT) == 3


async def is_queued(broker: Any, queue: str) -> bool:
    return bool(await broker.job_reader.waiting_ids(queue))


async def test_the_blocking_client_submits_workflows(app: App, tasks: Tasks, working: Working) -> None:
    async with working():
        flow = chain(tasks.add.s(1), tasks.add.s(2))
        job = await asyncio.to_thread(app.client.blocking.workflows.submit, flow)
        assert await asyncio.to_thread(job.result, WAIT) == 3
