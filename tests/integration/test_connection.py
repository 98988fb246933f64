"""Connections that cannot be made and connections that break: each error is one line, within 5 s."""

import asyncio
import contextlib
import functools
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Server

from jsq import App, BrokerUnavailable, Client, JetStreamOff, Login, NotAllowed, SubmitUnknown
from jsq.errors import BrokerError
from jsq.server import EmbeddedServer
from jsq.transport.connection import choose_server
from jsq.transport.replies import NoReply, NoResponders
from jsq.transport.retrying import ABSENT_SECONDS, READ_SECONDS, with_retry
from tests.helpers.conditions import Until
from tests.helpers.proxy import Link, Proxy, close_all, rewriting_proxy
from tests.helpers.servers import nats_server


async def refusal(url: str | Login) -> str:
    """The error of a client that cannot connect. Takes no longer than 5 s."""
    async with asyncio.timeout(5):
        with pytest.raises(BrokerError) as caught:
            await Client(url).connect()
    message = str(caught.value)
    assert "\n" not in message
    return f"{type(caught.value).__name__}: {message}"


async def test_a_missing_server_at_the_address_is_reported() -> None:
    assert (await refusal("nats://127.0.0.1:1")).startswith(
        "BrokerUnavailable: no NATS server answers at nats://127.0.0.1:1; start one"
    )


async def test_an_invalid_address_is_refused() -> None:
    assert "BrokerUnavailable" in await refusal("nats://nowhere.invalid:4222")
    assert "BadAddress" in await refusal("nats://127.0.0.1:notaport")
    assert "http://127.0.0.1:4222 is not the address of a server" in await refusal("http://127.0.0.1:4222")


async def test_a_wrong_password_is_reported_and_not_printed(tmp_path: Path) -> None:
    users = f"jetstream {{ store_dir: '{tmp_path}/js' }}\nauthorization {{ user: alice, password: secret }}"
    with nats_server(tmp_path, users) as address:
        message = await refusal(f"nats://alice:wr0ng@{address}")
        assert message.startswith(f"NotAllowed: nats://{address} refused the login as alice")
        assert "wr0ng" not in message
        async with Client(f"nats://alice:secret@{address}") as client:
            assert await client.queues.list() == []


async def test_a_server_that_is_too_old_is_refused_with_the_reason(server: EmbeddedServer) -> None:
    version = b'"version":"2.15.1"'
    async with rewriting_proxy(server.url.removeprefix("nats://"), version, b'"version":"2.14.3"') as address:
        message = await refusal(f"nats://{address}")
    assert message.startswith("ServerTooOld: ")
    assert "runs nats-server 2.14.3; jsq needs 2.15.1 or newer" in message


async def test_a_server_without_jetstream_is_reported(tmp_path: Path) -> None:
    with nats_server(tmp_path, "") as address:
        async with Client(f"nats://{address}") as client, asyncio.timeout(5):
            with pytest.raises(JetStreamOff, match="has no JetStream; add `jetstream"):
                await client.task("any").submit()


async def test_a_connection_that_accepts_no_more_data_is_replaced(
    server: EmbeddedServer, namespace: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsq.transport.auth.PING_SECONDS", 1)
    links: list[asyncio.StreamWriter] = []
    stuck = asyncio.Event()
    host, port = server.url.removeprefix("nats://").split(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while not (first and stuck.is_set()) and (chunk := await reader.read(65536)):
                writer.write(chunk)
        if first and stuck.is_set():
            await ended.wait()  # neither read nor close: half open
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        links.append(writer)
        first = len(links) == 1
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, far_writer, first), pump(far_reader, writer, first))

    ended = asyncio.Event()
    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    async with Client(f"nats://{address}", namespace=namespace) as client:
        wire = (await client.broker()).wire
        stuck.set()
        for _ in range(24):
            wire.send("nobody.listens", b"x" * 500_000)
        await until(lambda: wire.reconnects == 1, 15)
        assert (await (await client.task("any").submit()).status()).state == "queued"
    ended.set()
    proxy.close()
    await asyncio.gather(*(writer.wait_closed() for writer in links), return_exceptions=True)


@pytest.mark.proof
async def test_a_silently_dead_connection_is_detected_within_25_seconds(
    server: EmbeddedServer, namespace: str, until: Until
) -> None:
    """With the default ping interval; nothing is sent that could detect it earlier."""
    async with Link(server.url) as link, Client(link.url, namespace=namespace) as client:
        wire = (await client.broker()).wire
        link.hold()
        await until(lambda: not wire.connected, 25)
        link.heal()
        await until(lambda: wire.connected, 25)
        assert wire.reconnects == 1
        assert (await (await client.task("any").submit()).status()).state == "queued"


async def test_a_late_pong_does_not_end_a_connection(server: EmbeddedServer) -> None:
    async with Link(server.url) as link, Client(link.url) as client:
        wire = (await client.broker()).wire
        link.hold()
        for _ in range(3):
            with pytest.raises(NoReply):
                await wire.flush(timeout=0.05)
        link.heal()

        await wire.flush()

        assert await client.queues.list() == []
        assert wire.reconnects == 0


async def test_an_unsolicited_pong_does_not_end_a_connection(server: EmbeddedServer) -> None:
    """The proxy turns each pong into three."""
    address = server.url.removeprefix("nats://")
    async with rewriting_proxy(address, b"PONG\r\n", b"PONG\r\n" * 3) as several, Client(several) as client:
        wire = (await client.broker()).wire
        for _ in range(3):
            await wire.flush()

        assert await client.queues.list() == []
        assert wire.reconnects == 0


async def test_tls_with_a_server_that_lacks_it_is_refused(server: EmbeddedServer) -> None:
    message = await refusal(server.url.replace("nats://", "tls://"))
    assert message.startswith("BrokerUnavailable: ")


async def test_a_missing_permission_is_named_and_is_no_timeout(tmp_path: Path) -> None:
    conf = """
    jetstream { store_dir: '%s/js' }
    accounts { A { jetstream: enabled, users: [
        { user: admin, password: a },
        { user: reader, password: r, permissions { publish { deny: "jsq.q.>" } } },
        { user: deaf, password: d, permissions { subscribe { deny: "jsq.on.>" } } },
    ] } }
    """
    with nats_server(tmp_path, conf % tmp_path) as address:
        async with Client(f"nats://admin:a@{address}") as admin:
            job = await admin.task("any").submit()
        async with Client(f"nats://reader:r@{address}") as reader, asyncio.timeout(5):
            with pytest.raises(NotAllowed, match=r"not allowed to publish to jsq\.q\.default.* as reader"):
                await reader.task("any").submit()
        async with Client(f"nats://deaf:d@{address}") as deaf, asyncio.timeout(5):
            with pytest.raises(NotAllowed, match=r"not allowed to subscribe to jsq\.on\.default.* as deaf"):
                await deaf.jobs.handle(job.id, "default").result(4)


async def test_each_refusal_is_known_after_all_replies_were_read(tmp_path: Path) -> None:
    conf = """
    jetstream { store_dir: '%s/js' }
    accounts { A { jetstream: enabled, users: [
        { user: few, password: f, permissions { publish { deny: "no.>" }, subscribe { deny: "no.>" } } },
    ] } }
    """
    with nats_server(tmp_path, conf % tmp_path) as address:
        async with Client(f"nats://few:f@{address}") as client:
            wire = (await client.broker()).wire
            for number in range(100):
                await wire.subscribe(f"no.{number}", lambda _: None)
                await wire.flush()
                with pytest.raises(NotAllowed, match=f"not allowed to subscribe to no.{number} as few"):
                    wire.refusals.check_subscription(f"no.{number}")
                wire.send(f"no.{number}")
                await wire.flush()
                with pytest.raises(NotAllowed, match=f"not allowed to publish to no.{number} as few"):
                    wire.refusals.check_publish(f"no.{number}")


async def test_a_client_survives_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    async with Client(own_server.url) as client:
        first = await client.task("any").submit()
        own_server.kill()
        second = asyncio.create_task(client.task("any").submit())
        await asyncio.to_thread(own_server.restart)
        assert (await (await second).status()).state == "queued"
        assert (await first.status()).state == "queued"


async def test_a_server_that_stays_away_is_reported_in_time(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsq.transport.reads.READ_SECONDS", 1.0)
    async with Client(own_server.url) as client:
        job = await client.task("any").submit()
        own_server.kill()
        async with asyncio.timeout(8):
            with pytest.raises(BrokerUnavailable):
                await job.status()


@contextlib.asynccontextmanager
async def answering(address: str, answer_bytes: bytes) -> AsyncIterator[list[str]]:
    """Another service at the address of a server; yields the peers that it has answered."""
    answered: list[str] = []
    writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        answered.append(str(writer.get_extra_info("peername")))
        with contextlib.suppress(ConnectionError):
            writer.write(answer_bytes)
            await writer.drain()
            await reader.read()
        writer.close()

    host, port = address.removeprefix("nats://").split(":")
    async with await asyncio.start_server(answer, host, int(port)):
        yield answered
        await close_all(writers)


@pytest.mark.parametrize(
    "answer_bytes",
    [
        pytest.param(b"x" * 200_000, id="no end"),
        pytest.param(b"INFO {}\r\n-ERR\r\n", id="no reason"),
        pytest.param(b"INFO {}\r\n-ERR \xff\xfe\r\n", id="no text"),
        pytest.param(b"INFO 7\r\n", id="no object"),
    ],
)
async def test_a_client_reconnects_after_something_else_answered_at_the_address(
    own_server: EmbeddedServer, until: Until, answer_bytes: bytes
) -> None:
    async with Client(own_server.url) as client:
        await client.task("any").submit()
        own_server.kill()
        async with answering(own_server.url, answer_bytes) as answered:
            await until(lambda: len(answered) >= 2)
        await asyncio.to_thread(own_server.restart)
        assert (await (await client.task("any").submit()).status()).state == "queued"


async def test_an_address_given_twice_does_not_hide_the_others(
    server: EmbeddedServer, namespace: str, until: Until
) -> None:
    host, port = server.url.removeprefix("nats://").split(":")
    async with (
        Proxy(host, int(port)) as gone,
        Proxy(host, int(port)) as there,
        Client(",".join([gone.url] * 9 + [there.url]), namespace=namespace) as client,
    ):
        wire = (await client.broker()).wire
        gone.refuse()
        there.cut()
        await until(lambda: wire.reconnects)
        there.refuse()  # the server is away for a moment as well
        await until(lambda: not wire.connected)
        tries = wire._nats.stats["reconnects"]
        assert tries
        there.heal()
        await until(lambda: wire.connected)


async def test_a_wait_for_a_result_survives_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    app = App(own_server.url)

    @app.task
    async def quick() -> int:
        return 1

    from jsq.worker import Worker

    async with app:
        job = await quick.submit()
        waiting = asyncio.create_task(job.result(30))
        await asyncio.sleep(0)
        own_server.kill()
        await asyncio.to_thread(own_server.restart)
        worker = Worker(app)
        running = asyncio.create_task(worker.run())
        assert await waiting == 1
        worker.stop()
        await running


async def test_a_read_after_a_long_outage_gives_responders_their_full_time(client: Client) -> None:
    broker = await client.broker()
    start_time, outages = time.monotonic(), 0

    async def read() -> str:
        nonlocal outages
        if time.monotonic() - start_time < 3 * ABSENT_SECONDS:
            raise NoReply("not connected", sent=False)
        outages += 1
        if outages < 4:
            raise NoResponders("the server has just learned of this connection")
        return "found"

    found = await with_retry(broker.wire, read, seconds=READ_SECONDS, absent=ABSENT_SECONDS)

    assert (found, outages) == ("found", 4)


async def test_a_read_of_a_stream_that_does_not_exist_ends_soon(client: Client) -> None:
    broker = await client.broker()
    async with asyncio.timeout(READ_SECONDS - 1):
        with pytest.raises(NoResponders):
            await broker.reads.last("NOWHERE", "nothing")


@pytest.mark.parametrize("number", [100, pytest.param(1_000, marks=pytest.mark.proof)])
async def test_many_clients_reconnect_at_different_times_and_lose_no_job(
    own_server: EmbeddedServer, until: Until, monkeypatch: pytest.MonkeyPatch, many_files: None, number: int
) -> None:
    waits: list[tuple[float, float]] = []  # for each attempt: its pause, and the maximum it might have

    def choose_and_note(servers: list[Server], info: dict[str, Any]) -> tuple[Server, float]:
        chosen, delay = choose_server(servers, info)
        waits.append((delay, min(2.0, 0.1 * 2 ** min(chosen.reconnects, 5))))
        return chosen, delay

    monkeypatch.setattr("jsq.transport.auth.choose_server", choose_and_note)
    pongs: Counter[int] = Counter()
    back: dict[int, float] = {}
    async with contextlib.AsyncExitStack() as opened:
        clients = await open_many(opened, own_server.url, number)
        await clients[0].admin.provision()
        for place, client in enumerate(clients):
            wire = (await client.broker()).wire
            await wire.subscribe("to.all", lambda _, place=place: pongs.update([place]))  # type: ignore[misc]
            wire.on_reconnect(functools.partial(note_time, back, place))
        own_server.kill()
        submits = [asyncio.create_task(submitted(client)) for client in clients]
        # The server stays down until the pauses of nearly all clients have their maximum length.
        await until(lambda: sum(most == 2.0 for _, most in waits) > 4 * number, 60)
        await asyncio.to_thread(own_server.restart)
        await until(lambda: len(back) == number, 60)
        stored = await asyncio.gather(*submits)

        times = sorted(back.values())
        assert times[-1] - times[0] > 1.0
        assert all(0 <= delay <= most for delay, most in waits)
        tenths = Counter(min(9, int(10 * delay / most)) for delay, most in waits)
        assert all(0.05 < tenths[tenth] / len(waits) < 0.2 for tenth in range(10)), tenths

        # Every subscription is restored, and every acknowledged job is stored once.
        (await clients[0].broker()).wire.send("to.all")
        await until(lambda: len(pongs) == number)
        assert set(pongs.values()) == {1}
        more = await asyncio.gather(*(submitted(client) for client in clients))
        waiting = await (await clients[0].broker()).job_reader.waiting_ids("default")
        assert len(waiting) == len(set(waiting))
        assert {id for id in (*stored, *more) if id} <= set(waiting)
        assert all(more)


async def submitted(client: Client) -> str:
    """The id of a job that was certainly acknowledged, or nothing if a typed error was raised."""
    try:
        try:
            return (await client.task("any").submit()).id
        except SubmitUnknown as unknown:
            return (await client.task("any").options(id=unknown.id).submit()).id
    except BrokerUnavailable:  # the server was down for longer than a submit retries
        return ""


async def open_many(opened: contextlib.AsyncExitStack, url: str, count: int) -> list[Client]:
    """Connect many clients, ten at a time: on a busy machine more would not connect in time."""
    clients = [Client(url) for _ in range(count)]
    opened.push_async_callback(lambda: asyncio.gather(*(client.close() for client in clients)))
    for start in range(0, count, 10):
        await asyncio.gather(*(client.connect() for client in clients[start : start + 10]))
    return clients


async def note_time(times: dict[int, float], number: int) -> None:
    times[number] = time.monotonic()


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow a socket for each of a thousand clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3_000:
        pytest.skip(f"a process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_worker_in_this_process_survives_a_restart_of_the_server(
    own_server: EmbeddedServer, until: Until
) -> None:
    app = App(own_server.url)

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    from jsq.worker import Worker

    async with app:
        worker = Worker(app)
        running = asyncio.create_task(worker.run())
        assert await (await add.submit(1, 2)).result(60) == 3
        own_server.kill()
        await asyncio.to_thread(own_server.restart)
        assert await (await add.submit(3, 4)).result(60) == 7
        worker.stop()
        await running


def test_secrets_are_not_shown() -> None:
    login = Login(url="nats://alice:secret@host:4222", password="p4ss", token="t0k")
    assert "secret" not in login.shown
    assert "p4ss" not in repr(login)
    assert "t0k" not in repr(login)
