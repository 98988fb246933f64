"""Bulk submits, atomic commits, pipelined publishes and group commits."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from jsq import App, BadArguments, BadOption, Client, PartlySubmitted, QueueFull
from jsq.broker import Broker
from jsq.broker.jobs.records import expectation_lines, own_expectation_lines
from jsq.codec.envelope import new_ids
from jsq.server import EmbeddedServer
from jsq.transport.batch_publish import OutgoingMessage, commit, fast_ingest, parts
from jsq.transport.group_commit import GroupCommit
from jsq.transport.publish_many import BulkPublisher
from jsq.transport.replies import NoReply, WrongSequence
from tests.helpers.conditions import Until
from tests.helpers.workers import Working


def messages(broker: Broker, count: int, *, expecting: int = 0) -> list[OutgoingMessage]:
    """The start messages of first attempts, for jobs that no other client writes about."""
    return [
        OutgoingMessage(
            broker.subjects.record("default", id),
            b'{"state":"running","task":"any"}',
            own_expectation_lines(expecting, None),
        )
        for id in new_ids(count)
    ]


async def subject_at(broker: Broker, sequence: int) -> str:
    found = await broker.reads.get(broker.subjects.streams.records, sequence)
    assert found is not None
    return found.headers["Nats-Subject"]


async def made(client: Client) -> Broker:
    await client.admin.provision()
    return await client.broker()


# -- submit_many ---------------------------------------------------------------------------------------------


async def test_many_jobs_run_and_each_returns_its_result(app: App, working: Working) -> None:
    @app.task
    async def double(n: int) -> int:
        return 2 * n

    jobs = await double.submit_many([(n,) if n % 2 else {"n": n} for n in range(600)])
    async with working(concurrency=100):
        assert [await job.result(60) for job in jobs] == [2 * n for n in range(600)]


async def test_jobs_of_a_bulk_are_found_at_once_and_listed_soon(
    app: App, client: Client, until: Until
) -> None:
    @app.task(tags=["many"], priority="high")
    async def later() -> None: ...

    jobs = await later.submit_many([()] * 300)
    assert (await jobs[-1].status()).state == "queued"
    assert (await client.queues.stats("default"))[0].waiting["high"] == 300

    async def listed() -> bool:
        return len(await client.jobs.list(state="queued", tag="many", limit=None)) == 300

    await until(listed)


async def test_another_connection_finds_all_jobs_of_a_bulk_after_the_first_one_closed(
    server: EmbeddedServer, namespace: str
) -> None:
    async with Client(server.url, namespace=namespace) as client:
        await client.task("any").submit_many([()] * 3_000)
    async with Client(server.url, namespace=namespace) as client:
        listed = await client.jobs.list(limit=None)
        assert [record.state for record in listed] == ["queued"] * 3_000
        assert [event async for event in client.jobs.events(follow=False)] == []


async def test_an_invalid_call_refuses_the_bulk_before_any_job_is_sent(app: App, client: Client) -> None:
    @app.task
    async def double(n: int) -> int:
        return 2 * n

    await client.admin.provision()
    with pytest.raises(BadArguments, match=r"call 2, counted from 0: .*n: ") as caught:
        await double.submit_many([(1,), (2,), ("three",)])
    assert caught.value.index == 2
    assert (await client.queues.stats("default"))[0].waiting["normal"] == 0


@pytest.mark.parametrize("call", ["text", 5, None, {1, 2}])
async def test_a_call_must_be_a_list_or_a_dictionary(client: Client, call: Any) -> None:
    with pytest.raises(BadArguments, match="a list of arguments or a dictionary"):
        await client.task("any").submit_many([call])


async def test_a_call_that_is_too_large_is_named_by_its_index(client: Client) -> None:
    with pytest.raises(BadArguments, match="store the content elsewhere") as caught:
        await client.task("any").submit_many([["a"], ["b"], ["x" * 1_100_000]])
    assert caught.value.index == 2


async def test_one_id_is_refused_for_many_jobs(client: Client) -> None:
    with pytest.raises(BadOption, match="id must not be set for many jobs"):
        await client.task("any").options(id="mine").submit_many([[], []])


async def test_a_submit_of_no_calls_stores_no_jobs(client: Client) -> None:
    assert await client.task("any").submit_many([]) == []


async def test_jobs_of_a_bulk_may_be_delayed(app: App, client: Client) -> None:
    jobs = await client.task("any").options(delay=60).submit_many([[n] for n in range(250)])
    assert (await client.queues.stats("default"))[0].scheduled == 250
    assert (await jobs[0].status()).state == "scheduled"


def test_a_bulk_is_submitted_without_an_event_loop(server: EmbeddedServer, namespace: str) -> None:
    app = App(server.url, namespace=namespace)

    @app.task
    def double(n: int) -> int:
        return 2 * n

    jobs = double.blocking.submit_many([(1,), (2,)])
    assert [job.status().state for job in jobs] == ["queued", "queued"]
    app.client.blocking.close()


@pytest.mark.parametrize("room", [0, 30, 700])
async def test_a_bulk_that_fills_its_queue_reports_which_jobs_were_stored(
    app: App, client: Client, until: Until, room: int
) -> None:
    app.queue("small", max_jobs=room + 1)
    await client.admin.provision(app.declared)
    await client.task("any").options(queue="small").submit()
    with pytest.raises((PartlySubmitted, QueueFull)) as caught:
        await client.task("any").options(queue="small").submit_many([[n] for n in range(1_500)])
    assert caught.value.retryable
    assert (await client.queues.stats("small"))[0].waiting["normal"] == room + 1
    if room:
        assert isinstance(caught.value, PartlySubmitted)
        assert len(caught.value.stored) == room
        assert sorted(caught.value.refused) == list(range(room, 1_500))
        assert all(isinstance(error, QueueFull) for error in caught.value.refused.values())
        stored = set(caught.value.stored)

        async def listed() -> bool:
            return {record.id for record in await client.jobs.list(queue="small", limit=None)} > stored

        await until(listed)


async def test_a_bulk_whose_replies_are_lost_is_stored_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BulkPublisher.store

    async def unanswered(self: BulkPublisher, messages: Sequence[OutgoingMessage], **how: bool) -> Any:
        await store(self, messages, **how)
        raise NoReply("no reply")

    await client.admin.provision()
    monkeypatch.setattr(BulkPublisher, "store", unanswered)
    jobs = await client.task("any").submit_many([[n] for n in range(400)])
    assert len(jobs) == 400
    assert (await client.queues.stats("default"))[0].waiting["normal"] == 400


async def test_a_killed_server_loses_no_job_of_a_bulk(own_server: EmbeddedServer, namespace: str) -> None:
    async with Client(own_server.url, namespace=namespace) as client:
        await client.admin.provision()
        sending = asyncio.ensure_future(client.task("any").submit_many([[n] for n in range(8_000)]))
        stats = (await client.queues.stats("default"))[0]
        while not stats.waiting["normal"]:
            stats = (await client.queues.stats("default"))[0]
        assert not sending.done()
        own_server.kill()
        own_server.restart()
        try:
            stored = [job.id for job in await sending]
        except PartlySubmitted as partly:
            stored = list(partly.stored)
        broker = await client.broker()
        waiting = await broker.job_reader.waiting_ids("default")
        assert len(waiting) == len(set(waiting))
        assert set(stored) <= set(waiting)
        assert len(stored) > 500


# -- commits and pipelined publishes -------------------------------------------------------------------------


async def test_the_messages_of_a_commit_have_successive_sequence_numbers(client: Client) -> None:
    broker = await made(client)
    stop = asyncio.Event()

    async def disturb() -> None:
        while not stop.is_set():
            others = (broker.subjects.record("default", id) for id in new_ids(20))
            await asyncio.gather(*(broker.wire.publish(subject, b"{}") for subject in others))

    disturbing = asyncio.ensure_future(disturb())
    for _ in range(20):
        sent = messages(broker, 30)
        last = await commit(broker.wire, sent)
        for back in (0, 7, 29):
            assert await subject_at(broker, last - back) == sent[-1 - back].subject
    stop.set()
    await disturbing


async def test_a_commit_stores_all_messages_or_none(client: Client) -> None:
    broker = await made(client)
    sent = messages(broker, 3)
    sent[1] = messages(broker, 1, expecting=99)[0]
    with pytest.raises(WrongSequence):
        await commit(broker.wire, sent)
    for message in sent:
        assert await broker.reads.last(broker.subjects.streams.records, message.subject) is None


def submits(broker: Broker, count: int, *, expecting: int = 0) -> list[OutgoingMessage]:
    subjects = broker.subjects
    return [
        OutgoingMessage(
            subjects.ready("default", "normal", id),
            b"{}",
            expectation_lines(expecting, subjects.ready("default", "*", id)),
        )
        for id in new_ids(count)
    ]


async def test_a_pipelined_publish_reports_each_message_separately(client: Client) -> None:
    broker = await made(client)
    sent = submits(broker, 2_000)
    for place in (0, 3, 1_999):
        sent[place] = submits(broker, 1, expecting=99)[0]
    published = await fast_ingest(broker.wire, sent)
    assert sorted(published.refused) == [0, 3, 1_999]
    assert published.end == 2_000
    ready = broker.subjects.streams.ready("default")
    assert await broker.reads.last(ready, sent[1_998].subject) is not None


def test_the_parts_of_a_bulk_stay_within_count_and_size() -> None:
    many = [OutgoingMessage("s", b"x" * size) for size in (1, 1, 5_000_000, 1, 1)]
    assert [len(part) for part in parts(many)] == [2, 1, 2]
    assert [len(part) for part in parts(many, most=1)] == [1] * 5
    assert list(parts([])) == []


# -- group commits -------------------------------------------------------------------------------------------


def grouping(broker: Broker) -> GroupCommit:
    return GroupCommit(broker.wire, "always")


async def test_each_write_of_a_group_commit_gets_its_own_sequence(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await made(client)
    commits = grouping(broker)
    publishes: list[str] = []
    publish = broker.wire.publish

    async def counted(subject: str, *rest: Any, **named: Any) -> int:
        publishes.append(subject)
        return await publish(subject, *rest, **named)

    monkeypatch.setattr(broker.wire, "publish", counted)
    sent = messages(broker, 200)
    sequences = await asyncio.gather(*(commits.store(message) for message in sent))
    assert [await subject_at(broker, sequence) for sequence in sequences] == [one.subject for one in sent]
    assert len(publishes) < 10


async def test_a_refused_write_does_not_fail_the_others_of_its_group_commit(client: Client) -> None:
    broker = await made(client)
    commits = grouping(broker)
    sent = messages(broker, 20)
    sent[5] = messages(broker, 1, expecting=99)[0]
    replies = await asyncio.gather(*(commits.store(message) for message in sent), return_exceptions=True)
    assert isinstance(replies[5], WrongSequence)
    stored = [sequence for sequence in replies if isinstance(sequence, int)]
    assert len(set(stored)) == 19


async def test_every_write_of_a_group_commit_fails_if_its_reply_is_lost(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await made(client)
    commits = grouping(broker)

    async def lost(*_: Any, **__: Any) -> int:
        raise NoReply("no reply")

    monkeypatch.setattr(broker.wire, "publish", lost)
    replies = await asyncio.gather(
        *(commits.store(message) for message in messages(broker, 20)), return_exceptions=True
    )
    assert all(isinstance(error, NoReply) for error in replies)
    assert len({id(error) for error in replies}) == 20


async def test_jobs_whose_events_use_group_commit_end_once(
    app: App, client: Client, working: Working
) -> None:
    @app.task(retries=0)
    async def picky(n: int) -> int:
        if n % 10 == 0:
            raise ValueError("no")
        return n

    broker = await client.broker()
    jobs = await picky.submit_many([(n,) for n in range(500)])
    async with working(concurrency=100, group_writes="always"):
        records = [await job.wait(20) for job in jobs]
    assert [record.state for record in records] == ["succeeded" if n % 10 else "failed" for n in range(500)]
    for job in (jobs[0], jobs[1]):
        states = [event.state for event in await broker.records.history(job.id)]
        assert states == ["running", records[jobs.index(job)].state]
    assert len(await client.dead_letters.list()) == 50
