"""`client.admin.doctor()`: a look at a real server, sound or with something wrong that a test did to it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jsq import App, BadOption, Client
from jsq.broker.health.finding import Finding
from jsq.broker.topology import configs as layout
from jsq.broker.topology import streams
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.proxy import rewriting_proxy
from tests.helpers.servers import nats_server
from tests.helpers.workers import Working


def of(findings: list[Finding], what: str) -> list[tuple[str, str]]:
    return [(one.severity, one.message) for one in findings if one.subject == what]


async def test_the_doctor_names_a_queue_that_nobody_serves(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def fine() -> int:
        return 1

    await client.task("fine").options(queue="typo").submit()
    async with working():
        assert await (await fine.submit()).result(60) == 1

        async def told() -> bool:
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

        await until(told)


async def test_a_consumer_that_was_removed_is_an_error(client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    ready = broker.subjects.streams.ready("default")
    assert of(await client.admin.doctor(), "queue default") == [("ok", "0 jobs")]

    await broker.wire.api(f"CONSUMER.DELETE.{ready}.normal")

    [(severity, told)] = of(await client.admin.doctor(), "queue default")
    assert severity == "error"
    assert told.startswith(f"{ready} normal: missing; run `jsq provision`")


async def test_a_pause_that_broke_off_half_way_is_an_error(client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    ready, later = broker.subjects.streams.ready("default"), datetime.now(UTC) + timedelta(hours=1)

    await broker.jetstream.pause_consumer(ready, "normal", later)
    told = "the server delivers nothing, and no pause says so; run `jsq queue resume default`"
    assert of(await client.admin.doctor(), "queue default") == [("error", told)]
    await client.queues.resume("default")
    assert of(await client.admin.doctor(), "queue default") == [("ok", "0 jobs")]

    await client.queues.pause("default")
    assert of(await client.admin.doctor(), "queue default") == [("ok", "0 jobs")]
    await broker.jetstream.pause_consumer(ready, "low", None)
    told = "it is paused in part; run `jsq queue pause default`"
    assert of(await client.admin.doctor(), "queue default") == [("error", told)]
    await client.queues.pause("default")
    assert of(await client.admin.doctor(), "queue default") == [("ok", "0 jobs")]


async def test_a_consumer_that_was_changed_by_hand_is_a_warning(client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    ready = broker.subjects.streams.ready("default")
    known = await broker.jetstream.consumer_info(ready, "low")
    assert known is not None
    changed = known["config"] | {"ack_wait": 5 * 10**9}
    subject = changed["filter_subject"]
    await broker.wire.api(f"CONSUMER.CREATE.{ready}.low.{subject}", {"stream_name": ready, "config": changed})

    [(severity, told)] = of(await client.admin.doctor(), "queue default")
    assert severity == "warning"
    assert told.startswith(f"{ready} low: ack_wait is 5 s, should be 30 s")


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
        [(severity, told)] = of(await misled.admin.doctor(), "clock")
    assert severity == "error"
    assert "ahead of this machine's" in told
    assert of(await client.admin.doctor(), "clock") == [("ok", "its clock and this machine's agree")]


async def this_year(client: Client) -> int:
    broker = await client.broker()
    known = await broker.jetstream.stream_info(broker.subjects.streams.events)
    assert known is not None
    return int(known["ts"][:4])


LIMITED = """
jetstream {{ store_dir: '{folder}/js' }}
accounts {{ jobs {{
  jetstream {{ max_file: 100M, max_mem: 1M, max_streams: 9, max_consumers: 30 }}
  users: [ {{ user: ann, password: secret }} ]
}} }}
"""


async def test_an_account_that_can_hold_no_more_streams_is_an_error(tmp_path: Path) -> None:
    with nats_server(tmp_path, LIMITED.format(folder=tmp_path)) as address:
        async with Client(f"nats://ann:secret@{address}") as client:
            await client.admin.provision()
            findings = await client.admin.doctor()
    [(severity, told)] = of(findings, "streams")[:1]
    assert severity == "error"
    assert told.startswith("9 of 9 streams: nothing more is taken")
    assert of(findings, "storage")[0][0] == "ok"


DENIED = """
jetstream {{ store_dir: '{folder}/js' }}
max_payload: 32768
authorization {{ users: [
  {{ user: ann, password: secret }}
  {{ user: bob, password: secret, permissions: {{
    publish: {{ deny: ["jsq.q.default.>", "$JS.ACK.>", "jsq.ev.*.*.run.cancelled"] }}
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
    told = of(findings, "permissions")
    assert {severity for severity, _ in told} == {"warning"}
    denied = {text.removeprefix("this login may not ").partition(":")[0] for _, text in told}
    assert denied == {f"{act} on queue default" for act in DENIED_ACTS}
    assert all("not allowed to" in text and "as bob" in text for _, text in told)
    assert "takes only 32,768 bytes a message" in of(findings, "server")[0][1]


async def test_the_doctor_leaves_everything_as_it_is(client: Client, until: Until) -> None:
    job = await client.task("any").submit()
    broker = await client.broker()

    async def viewed() -> bool:
        return await broker.event_log.view.last(job.id) is not None

    await until(viewed)
    before = await look(client)

    await client.admin.doctor()

    assert await look(client) == before
    assert (await job.status()).state == "queued"


async def look(client: Client) -> dict[str, tuple[int, int]]:
    """How much stands in each stream, and how often each was written to."""
    broker = await client.broker()
    subjects = broker.subjects
    found = {}
    for stream in (
        *(subjects.streams.ready("default"), subjects.streams.scheduled("default"), subjects.streams.events),
        *(
            subjects.streams.dead,
            subjects.streams.bucket("jobs"),
            subjects.streams.bucket("ids"),
            subjects.streams.bucket("workers"),
        ),
    ):
        known = await broker.jetstream.stream_info(stream)
        assert known is not None
        found[stream] = (known["state"]["messages"], known["state"]["last_seq"])
    return found


# -- each server by itself -------------------------------------------------------------------------------


async def test_a_servers_own_report_is_looked_at(client: Client, server: EmbeddedServer) -> None:
    await client.admin.provision()
    findings = await client.admin.doctor(monitors=[server.monitor])

    assert (
        len([one for one in findings if one.subject.startswith("server ") and "healthy" in one.message]) == 1
    )
    assert {one.severity for one in findings if one.subject.startswith("monitor")} == set()


async def test_an_address_where_no_server_tells_of_itself_is_an_error(
    client: Client, server: EmbeddedServer
) -> None:
    await client.admin.provision()
    wrong = server.url.replace("nats://", "http://")
    findings = await client.admin.doctor(monitors=[wrong, "http://127.0.0.1:1"])

    for url in (wrong, "http://127.0.0.1:1"):
        [(severity, told)] = of(findings, f"monitor {url}")
        assert severity == "error"
        assert told.startswith("no report of a nats-server: ")


@pytest.mark.parametrize("url", ["127.0.0.1:8222", "nats://127.0.0.1:4222", "", "http://"])
async def test_what_is_no_address_of_a_monitoring_is_refused(client: Client, url: str) -> None:
    with pytest.raises(BadOption, match="monitor cannot be"):
        await client.admin.doctor(monitors=[url])


async def test_a_log_that_was_removed_goes_on_above_its_numbers_and_the_view_follows_at_once(
    client: Client, until: Until
) -> None:
    old = [await client.task("any").submit() for _ in range(5)]
    broker = await client.broker()
    await until(lambda: all_shown(client, len(old)))
    last = max([(await job.status()).sequence for job in old])

    await broker.wire.api(f"STREAM.DELETE.{broker.subjects.streams.events}")
    missing = of(await client.admin.doctor(), broker.subjects.streams.events)
    assert missing == [("error", "missing; run `jsq provision`")]
    await client.admin.provision()

    new = await client.task("any").submit()
    # Not told of it, the server looks for the log again after some 20 s.
    await until(lambda: all_shown(client, len(old) + 1), 15)
    assert (await new.status()).sequence > last
    assert {job.id for job in await client.jobs.list()} == {new.id, *(job.id for job in old)}
    assert await client.admin.provision() == []


async def test_a_view_that_does_not_follow_the_log_is_reported_and_repaired(
    client: Client, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone removed the log by hand, and made it anew by hand."""
    await client.admin.provision()
    await client.task("any").submit()
    broker = await client.broker()
    await until(lambda: all_shown(client, 1))
    view = broker.subjects.streams.bucket("jobs")
    await broker.wire.api(f"STREAM.DELETE.{broker.subjects.streams.events}")
    await broker.wire.api(
        f"STREAM.CREATE.{broker.subjects.streams.events}", layout.events_config(broker.subjects, 1)
    )
    await client.task("any").submit()
    assert of(await client.admin.doctor(), view) == []  # it may be on its way
    monkeypatch.setattr(streams, "BEHIND", 0.0)

    assert of(await client.admin.doctor(), view) == [
        ("warning", "does not follow the log; run `jsq provision`")
    ]
    assert [(one.what, one.how) for one in await client.admin.provision(check=True)] == [
        (view, "does not follow the log")
    ]
    assert len(await client.admin.provision()) == 1

    await until(lambda: all_shown(client, 2), 15)
    assert of(await client.admin.doctor(), view) == []


async def all_shown(client: Client, count: int) -> bool:
    return len(await client.jobs.list()) == count
