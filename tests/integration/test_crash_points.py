"""Workers, submitters and clients are killed at every point at which they send or receive a message.

The operation can be repeated, each job ends once, and nothing is left behind.
"""

import contextlib
from itertools import pairwise

import pytest

from jsq import Client, JobNotFound, WrongState, chain, group
from jsq.broker.jobs.messages import scheduled_time
from jsq.client.submitter import unique_submit
from jsq.codec.envelope import new_id
from jsq.model.callback import callback_id, is_failed_attempt
from jsq.model.job import Job
from jsq.model.options import parse_options
from jsq.model.revision import TRANSITIONS, Revision, StoredRevision
from jsq.model.workflow import node_id
from tests.helpers.conditions import Until
from tests.helpers.crash_points import SCENARIOS, NewSite, Site, at_each_point, kill_worker
from tests.helpers.undeliverable import make_undeliverable

pytestmark = pytest.mark.proof


@pytest.mark.parametrize("task", SCENARIOS)
async def test_a_worker_killed_at_any_point_loses_and_repeats_no_job(
    task: str, new_site: NewSite, until: Until
) -> None:
    await at_each_point(lambda point: kill_worker(new_site(), point, task, until))


@pytest.mark.parametrize(("first", "fails"), [(1, False), (2, False), (3, False), (1, True), (2, True)])
async def test_a_worker_killed_at_any_point_of_a_workflow_fires_each_join_once(
    first: int, fails: bool, new_site: NewSite, until: Until
) -> None:
    """Each test uses a different part of the points."""

    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            step = site.app.client.task("fail" if fails else "succeed")
            one, two = site.app.client.task("succeed"), site.app.client.task("retry")
            flow = chain(group(one.si(), step.si()), two.si(), group(one.si(), one.si()))
            job = await site.app.submit(flow)
            died = await site.die_at(point, "work")
            await site.finish(job.id, until)
            broker = await site.app.client.broker()
            nodes = [await broker.records.history(node_id(job.id, number)) for number in range(5)]
            await check_flow(site, job.id, nodes, died=died, fails=fails)
        return site

    await at_each_point(killed_at, first=first, every=3 if not fails else 2)


async def check_flow(
    site: Site, id: str, nodes: list[list[StoredRevision]], *, died: bool, fails: bool
) -> None:
    """Check that each node of a workflow of five ended once, and started after those that it waits for."""
    broker = await site.app.client.broker()
    workflow = [one.state for one in await broker.records.history(id)]
    assert all(after in TRANSITIONS[before] for before, after in pairwise(workflow)), workflow
    assert workflow[-1] == ("failed" if fails else "succeeded")
    runs = [site.runs(node_id(id, number)) for number in range(5)]
    if fails:
        assert (nodes[1][-1].state, [one[-1].state for one in nodes[2:]]) == ("failed", ["cancelled"] * 3)
        assert runs[2:] == [0, 0, 0]
        letters = {letter.id for letter in await site.app.client.dead_letters.list()}
        assert letters == {id, node_id(id, 1)}
        return
    assert [one[-1].state for one in nodes] == ["succeeded"] * 5
    assert sum(runs) <= 6 + 2 * died  # the worker may have run both members of a group
    starts = [next(one.sequence for one in history if one.state == "running") for history in nodes]
    assert starts[2] > max(nodes[0][-1].sequence, nodes[1][-1].sequence)
    assert min(starts[3:]) > nodes[2][-1].sequence


@pytest.mark.parametrize(
    ("task", "per_key", "first"), [("retry", 1, 1), ("retry", 2, 2), ("succeed", None, 3)]
)
async def test_a_worker_killed_at_any_point_loses_no_slot_and_no_job_of_a_key_group(
    task: str, per_key: int | None, first: int, new_site: NewSite, until: Until
) -> None:
    """The worker handles wake-ups, admits jobs and releases slots; one job waits behind the first one.

    Each of the three tests uses a different third of the points.
    """

    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            jobs = [
                await client.task(name).options(key="k", per_key=per_key).submit()
                for name in (task, "succeed")
            ]
            died = await site.die_at(point, "work")
            for job in jobs:
                await site.finish(job.id, until)
            broker = await client.broker()
            await site.check_history(jobs[0].id)
            runs = [site.runs(job.id) for job in jobs]
            least = [SCENARIOS[task][1], 1]
            assert all(low <= ran for low, ran in zip(least, runs, strict=True))
            assert sum(runs) <= sum(least) + died * (1 if per_key == 1 else 2)
            if per_key == 1:
                order = [id for id in site.effects.read_text().split() if id in {job.id for job in jobs}]
                assert order == sorted(order, key=[job.id for job in jobs].index)

            async def no_slot_is_held() -> bool:
                return not (await broker.key_groups.state("default", "k"))[0].slots

            await until(no_slot_is_held)
        return site

    await at_each_point(killed_at, least=20, first=first, every=3)


async def test_a_submit_to_a_key_group_killed_at_any_point_can_be_repeated(
    new_site: NewSite, until: Until
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.admin.provision(site.app.declared)
            await site.die_at(point, "submit-keyed")
            await client.task("succeed").options(id="mine", key="k", per_key=1).submit()
            await site.finish("mine", until)
            await site.check_history("mine", ["running", "succeeded"])
        return site

    sites = await at_each_point(killed_at)
    assert sites[0].runs("mine") == len(sites)


@pytest.mark.parametrize("admitted", [False, True])
async def test_a_cancel_in_a_key_group_killed_at_any_point_can_be_repeated(
    admitted: bool, new_site: NewSite, until: Until
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.task("succeed").options(id="mine", key="k", per_key=1).submit()
            behind = await client.task("succeed").options(key="k", per_key=1).submit()
            if admitted:
                await (await client.broker()).key_groups.admit("default", "k")
            await site.die_at(point, "cancel")
            await client.jobs.handle("mine").cancel()
            await site.finish("mine", until)
            await site.finish(behind.id, until)
            await site.check_history("mine", ["cancelled"])
            assert site.runs(behind.id) == 1
        return site

    sites = await at_each_point(killed_at, first=1 + admitted, every=2)
    assert sites[0].runs("mine") == 0


async def test_a_move_into_quarantine_killed_at_any_point_loses_and_repeats_no_job(
    new_site: NewSite, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that moves the job and then runs it is killed. The job had crashed one worker before."""
    monkeypatch.setenv("QUARANTINE", "apart")

    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.admin.provision(site.app.declared)
            job = await client.task("retry").submit()
            gone = Revision("running", "retry", attempt=1, worker="gone", message=1)
            await (await client.broker()).records.write("default", job.id, gone, expect=0)
            died = await site.die_at(point, "work")
            await site.finish(job.id, until)
            states = await site.check_history(job.id)
            assert states[0] == "running"
            assert states[-1] == "succeeded"
            assert 2 <= site.runs(job.id) <= 2 + died
            record = await job.status()
            assert (record.queue, record.quarantine) == ("default", "apart")
            assert 1 <= record.crashes <= 1 + died
            moves = [
                event
                for event in await (await job._connection.broker()).records.history(job.id)
                if event.revision.reason == "quarantined"
            ]
            assert len(moves) == 1
        return site

    await at_each_point(killed_at)


async def test_a_step_runs_at_most_once_wherever_its_worker_is_killed(
    new_site: NewSite, until: Until
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            job = await site.app.client.task("once").submit()
            await site.die_at(point, "work")
            await site.finish(job.id, until)
            end = (await site.check_history(job.id))[-1]
            # Either the step is known to have run, or its state is unknown.
            assert (end, site.runs(job.id)) in (("succeeded", 1), ("failed", 0), ("failed", 1))
            if end == "failed":
                assert (await job.status()).reason == "step_unknown"
                unknown.append(point)
        return site

    unknown: list[int] = []
    sites = await at_each_point(killed_at)
    assert 0 < len(unknown) < len(sites) / 2


async def test_an_expiry_killed_at_any_point_is_recorded_once_and_nothing_runs(
    new_site: NewSite, until: Until
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            job = await site.app.client.task("succeed").options(deadline=0.001).submit()
            await site.die_at(point, "work")
            await site.finish(job.id, until)
            await site.check_history(job.id, ["expired"])
            assert site.runs(job.id) == 0
        return site

    await at_each_point(killed_at, least=4)


@pytest.mark.parametrize(("task", "failures"), [("die", 1), ("linger", 2)])
async def test_callbacks_are_submitted_once_wherever_the_worker_is_killed(
    task: str, failures: int, new_site: NewSite, until: Until
) -> None:
    """Each recorded failure has its callback, the death has its own, and the job has one fallback.

    One worker is killed at the death of its job, the other one as it schedules a retry.
    """

    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.admin.provision(site.app.declared)
            job = await client.task(task).submit()
            await site.die_at(point, "work")
            await site.finish(job.id, until)
            assert (await site.check_history(job.id))[-1] == "failed"
            events = await (await client.broker()).records.history()
            own = [one.revision for one in events if one.job == job.id]
            wanted = [callback_id(job.id, "failed", one.token) for one in own if is_failed_attempt(one)]
            wanted += [callback_id(job.id, kind, own[-1].token) for kind in ("dead", "fallback")]
            assert len(wanted) == failures + 2
            # The first event of a callback is written separately, and may be lost with its writer.
            others = [(one.job, one.state) for one in events if one.job != job.id]
            assert sorted(others) == sorted(
                (id, state) for id in wanted for state in ("running", "succeeded")
            )
            assert {site.runs(id) for id in wanted} == {1}
            assert (await job.status()).fallback == wanted[-1]
        return site

    await at_each_point(killed_at, least=20)


async def test_a_submit_killed_at_any_point_can_be_repeated(new_site: NewSite, until: Until) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.admin.provision(site.app.declared)
            await site.die_at(point, "submit")
            await client.task("succeed").options(id="mine").submit()
            await site.finish("mine", until)
            await site.check_history("mine", ["running", "succeeded"])
        return site

    sites = await at_each_point(killed_at)
    assert sites[0].runs("mine") == len(sites)


async def test_a_cancel_killed_at_any_point_can_be_repeated_and_nothing_runs(
    new_site: NewSite, until: Until
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.task("succeed").options(id="mine").submit()
            await site.die_at(point, "cancel")
            await client.jobs.handle("mine").cancel()
            await site.finish("mine", until)
            await site.check_history("mine", ["cancelled"])
        return site

    sites = await at_each_point(killed_at)
    assert sites[0].runs("mine") == 0


@pytest.mark.parametrize("operation", ["move", "promote"])
async def test_a_reschedule_killed_at_any_point_can_be_repeated_and_a_sweep_repairs_the_record(
    operation: str, new_site: NewSite, until: Until
) -> None:
    """A job that has not started has no record: only its schedule has its due time."""
    moved = []

    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.admin.provision(site.app.declared)
            job = await client.task("succeed").options(id="mine", delay=600).submit()
            before = (await job.status()).due
            await site.die_at(point, operation)
            if operation == "move":
                swept = [one.kind for one in await client.admin.sweep(age=0)]
                assert swept == []
                broker = await client.broker()
                later, mine = (
                    broker.subjects.streams.scheduled("default"),
                    broker.subjects.scheduled("default", "mine"),
                )
                schedule, due = await broker.reads.last(later, mine), (await job.status()).due
                assert schedule is not None
                assert due == scheduled_time(schedule.headers)
                moved.append((due != before, bool(swept)))
            with contextlib.suppress(WrongState):
                await job.promote()
            await site.finish("mine", until)
            assert (await site.check_history("mine"))[-2:] == ["running", "succeeded"]
        return site

    sites = await at_each_point(killed_at, least=4)
    assert sites[0].runs("mine") == len(sites)
    if operation == "move":
        # Some clients died before the job was moved, and some after.
        assert set(moved) == {(False, False), (True, False)}


async def test_a_replay_killed_at_any_point_can_be_repeated_and_runs_the_job_once(
    new_site: NewSite, until: Until
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.task("fail").options(id="mine").submit()
            await site.finish("mine", until)
            await site.die_at(point, "replay")
            with contextlib.suppress(JobNotFound, WrongState):
                await client.dead_letters.retry("mine")
            await site.finish("mine", until)
            once = ["running", "failed"]
            await site.check_history("mine", [*once, "retrying", *once])
        return site

    sites = await at_each_point(killed_at)
    assert sites[0].runs("mine") == 2 * len(sites)


async def test_a_sweep_killed_at_any_point_can_be_repeated_and_repairs_once(
    new_site: NewSite, until: Until
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.admin.provision(site.app.declared)
            await client.task("succeed").options(id="mine").submit()
            [message] = await make_undeliverable(client)
            died = Revision("running", "succeed", attempt=1, worker="gone", message=message, delivery=1)
            await (await client.broker()).records.write("default", "mine", died, expect=0)
            await site.die_at(point, "sweep")
            await client.admin.sweep(age=0)
            await site.finish("mine", until)
            await site.check_history("mine", ["running", "running", "succeeded"])
            assert await client.admin.sweep(age=0) == []
        return site

    sites = await at_each_point(killed_at)
    assert sites[0].runs("mine") == len(sites)


@pytest.mark.parametrize("way", ["return", "replace", "keep_last", "debounce"])
async def test_a_unique_submit_killed_at_any_point_leaves_one_job_of_the_key(
    way: str, new_site: NewSite, until: Until
) -> None:
    """The next submit returns this job or replaces it; and one job runs once."""

    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.admin.provision(site.app.declared)
            broker = await client.broker()
            if way in ("replace", "keep_last"):
                await client.task("succeed").options(unique="k").submit()  # this submit releases the claim
            await site.die_at(point, way)
            same = client.task("succeed").options(unique="k", debounce=0.1 if way == "debounce" else None)
            job = await same.submit()
            await site.finish(job.id, until)
            states = await site.check_history(job.id)
            assert (states[-2:], site.runs(job.id)) == (["running", "succeeded"], 1)
            ends = {event.job: event.state for event in await broker.records.history()}
            assert {id for id, end in ends.items() if end != "cancelled"} == {job.id}
        return site

    await at_each_point(killed_at)


async def test_a_pending_duplicate_runs_wherever_the_worker_of_its_predecessor_is_killed(
    new_site: NewSite, until: Until
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client, task = site.app.client, site.app.find("last")
            first = await task.submit(1)
            second = await follow(client, first.id)
            await site.die_at(point, "work")
            await site.finish(first.id, until)
            await site.finish(second, until)
            assert [(await site.check_history(id))[-1] for id in (first.id, second)] == ["succeeded"] * 2
            assert site.runs(second) <= 2
        return site

    await at_each_point(killed_at)


async def follow(client: Client, first: str) -> str:
    """Have a job wait for the end of one that has not started yet, as the next submit would if it had."""
    broker, options = await client.broker(), parse_options(unique="k", on_duplicate="keep_last")
    order = unique_submit(Job(new_id(), "last", arguments=b'{"n": 2}'), None, options)
    claim = await broker.unique.claim(order.unique.key)
    assert claim is not None
    assert claim.job == first
    successor = await broker.unique._store_successor(order, claim)
    assert successor is not None
    return successor.id
