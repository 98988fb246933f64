"""`client.admin.doctor()` on a real server that is healthy, or that a test has damaged."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jsq import App, BadOption, Client
from jsq.broker.health.finding import Finding
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.proxy import rewriting_proxy
from tests.helpers.servers import nats_server
from tests.helpers.workers import Working


def of(findings: list[Finding], subject: str) -> list[tuple[str, str]]:
    return [(one.severity, one.message) for one in findings if one.subject == subject]


async def test_the_doctor_names_a_queue_that_no_worker_serves(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def fine() -> int:
        return 1

    await client.task("fine").options(queue="typo").submit()
    async with working():
        assert await (await fine.submit()).result(60) == 1

        async def findings_are_complete() -> bool:
            return {f.subject: f.severity for f in await client.admin.doctor()} == {
                "server": "ok",
                "storage": "ok",
                "clock": "ok",
                "permissions": "ok",
                "sweeps": "ok",
                "streams": "ok",
                "queue default": "ok",
                "queue typo": "warning",
                "workers": "ok",
            }

        await until(findings_are_complete)


async def test_a_consumer_that_was_removed_is_an_error(client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    ready = broker.subjects.streams.ready("default")
    assert of(await client.admin.doctor(), "queue default") == [("ok", "0 jobs")]

    await broker.wire.api(f"CONSUMER.DELETE.{ready}.normal")

    [(severity, message)] = of(await client.admin.doctor(), "queue default")
    assert severity == "error"
    assert message.startswith(f"{ready} normal: missing; run `jsq provision`")


async def test_an_incomplete_pause_is_an_error(client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    ready, later = broker.subjects.streams.ready("default"), datetime.now(UTC) + timedelta(hours=1)

    await broker.jetstream.pause_consumer(ready, "normal", later)
    message = "the server delivers nothing, but no pause is recorded; run `jsq queue resume default`"
    assert of(await client.admin.doctor(), "queue default") == [("error", message)]
    await client.queues.resume("default")
    assert of(await client.admin.doctor(), "queue default") == [("ok", "0 jobs")]

    await client.queues.pause("default")
    assert of(await client.admin.doctor(), "queue default") == [("ok", "0 jobs")]
    await broker.jetstream.pause_consumer(ready, "low", None)
    message = "it is paused in part; run `jsq queue pause default`"
    assert of(await client.admin.doctor(), "queue default") == [("error", message)]
    await client.queues.pause("default")
    assert of(await client.admin.doctor(), "queue default") == [("ok", "0 jobs")]


async def test_a_consumer_that_was_changed_by_hand_is_a_warning(client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    ready = broker.subjects.streams.ready("default")
    info = await broker.jetstream.consumer_info(ready, "low")
    assert info is not None
    changed = info["config"] | {"ack_wait": 5 * 10**9}
    subject = changed["filter_subject"]
    await broker.wire.api(f"CONSUMER.CREATE.{ready}.low.{subject}", {"stream_name": ready, "config": changed})

    [(severity, message)] = of(await client.admin.doctor(), "queue default")
    assert severity == "warning"
    assert message.startswith(f"{ready} low: ack_wait is 5 s, should be 30 s")


async def test_a_server_whose_clock_is_a_year_ahead_is_an_error(
    client: Client, server: EmbeddedServer
) -> None:
    await client.admin.provision()
    year = await this_year(client)
    true, false = f'"ts":"{year}-'.encode(), f'"ts":"{year + 1}-'.encode()
    async with (
        rewriting_proxy(server.url.removeprefix("nats://"), true, false) as wrong,
        Client(f"nats://{wrong}", namespace=client.namespace) as misled,
    ):
        [(severity, message)] = of(await misled.admin.doctor(), "clock")
    assert severity == "error"
    assert "ahead of this machine's" in message
    assert of(await client.admin.doctor(), "clock") == [("ok", "its clock and this machine's agree")]


async def this_year(client: Client) -> int:
    broker = await client.broker()
    info = await broker.jetstream.stream_info(broker.subjects.streams.records)
    assert info is not None
    return int(info["ts"][:4])


LIMITED = """
jetstream {{ store_dir: '{folder}/js' }}
accounts {{ jobs {{
  jetstream {{ max_file: 100M, max_mem: 1M, max_streams: 8, max_consumers: 30 }}
  users: [ {{ user: ann, password: secret }} ]
}} }}
"""


async def test_an_account_that_can_hold_no_more_streams_is_an_error(tmp_path: Path) -> None:
    with nats_server(tmp_path, LIMITED.format(folder=tmp_path)) as address:
        async with Client(f"nats://ann:secret@{address}") as client:
            await client.admin.provision()
            findings = await client.admin.doctor()
    [(severity, message)] = of(findings, "streams")[:1]
    assert severity == "error"
    assert message.startswith("8 of 8 streams: the server accepts no more")
    assert of(findings, "storage")[0][0] == "ok"


DENIED = """
jetstream {{ store_dir: '{folder}/js' }}
max_payload: 32768
authorization {{ users: [
  {{ user: ann, password: secret }}
  {{ user: bob, password: secret, permissions: {{
    publish: {{ deny: ["jsq.q.default.>", "$JS.ACK.>", "$KV.jsq_jobs.>"] }}
    subscribe: {{ deny: "jsq.on.>" }}
  }} }}
] }}
"""


DENIED_ACTS = ("submit", "run jobs", "run schedules", "cancel", "follow jobs")


async def test_a_forbidden_action_of_a_login_names_the_reason(tmp_path: Path) -> None:
    with nats_server(tmp_path, DENIED.format(folder=tmp_path)) as address:
        async with Client(f"nats://ann:secret@{address}") as ann:
            await ann.admin.provision()
            assert [severity for severity, _ in of(await ann.admin.doctor(), "permissions")] == ["ok"]
        async with Client(f"nats://bob:secret@{address}") as bob:
            findings = await bob.admin.doctor()
    message = of(findings, "permissions")
    assert {severity for severity, _ in message} == {"warning"}
    denied = {text.removeprefix("this login may not ").partition(":")[0] for _, text in message}
    assert denied == {f"{act} on queue default" for act in DENIED_ACTS}
    assert all("not allowed to" in text and "as bob" in text for _, text in message)
    assert "accepts only 32,768 bytes a message" in of(findings, "server")[0][1]


async def test_the_doctor_leaves_everything_as_it_is(client: Client) -> None:
    job = await client.task("any").submit()
    before = await stream_counts(client)

    await client.admin.doctor()

    assert await stream_counts(client) == before
    assert (await job.status()).state == "queued"


async def stream_counts(client: Client) -> dict[str, tuple[int, int]]:
    """The number of messages in each stream, and how often each was written to."""
    broker = await client.broker()
    subjects = broker.subjects
    found = {}
    for stream in (
        subjects.streams.ready("default"),
        subjects.streams.scheduled("default"),
        subjects.streams.records,
        subjects.streams.bucket("ids"),
        subjects.streams.bucket("workers"),
    ):
        info = await broker.jetstream.stream_info(stream)
        assert info is not None
        found[stream] = (info["state"]["messages"], info["state"]["last_seq"])
    return found


# -- each server ---------------------------------------------------------------------------------------------


async def test_the_doctor_reads_the_monitoring_endpoint_of_a_server(
    client: Client, server: EmbeddedServer
) -> None:
    await client.admin.provision()
    findings = await client.admin.doctor(monitors=[server.monitor])

    assert (
        len([one for one in findings if one.subject.startswith("server ") and "healthy" in one.message]) == 1
    )
    assert {one.severity for one in findings if one.subject.startswith("monitor")} == set()


async def test_an_address_without_a_monitoring_endpoint_is_an_error(
    client: Client, server: EmbeddedServer
) -> None:
    await client.admin.provision()
    wrong = server.url.replace("nats://", "http://")
    findings = await client.admin.doctor(monitors=[wrong, "http://127.0.0.1:1"])

    for url in (wrong, "http://127.0.0.1:1"):
        [(severity, message)] = of(findings, f"monitor {url}")
        assert severity == "error"
        assert message.startswith("no report of a nats-server: ")


@pytest.mark.parametrize("url", ["127.0.0.1:8222", "nats://127.0.0.1:4222", "", "http://"])
async def test_an_invalid_monitoring_address_is_refused(client: Client, url: str) -> None:
    with pytest.raises(BadOption, match="monitor must "):
        await client.admin.doctor(monitors=[url])


async def test_a_recreated_record_bucket_continues_above_its_old_revisions(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def work() -> int:
        return 1

    async with working():
        old = await work.submit()
        await old.result(20)
    last, stream = (await old.status()).sequence, (await client.broker()).subjects.streams.records
    assert last > 0
    waiting = [await work.submit() for _ in range(5)]

    await (await client.broker()).wire.api(f"STREAM.DELETE.{stream}")
    missing = of(await client.admin.doctor(), stream)
    assert missing == [("error", "missing; run `jsq provision`")]
    await client.admin.provision()

    # A waiting job is known by its message, so none is lost with the records.
    assert {job.id for job in await client.jobs.list()} == {job.id for job in waiting}
    async with working():
        for job in waiting:
            assert await job.result(20) == 1
    assert min([(await job.status()).sequence for job in waiting]) > last
    assert await client.admin.provision() == []
