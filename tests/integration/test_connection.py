"""Connections that cannot be made, and those that break: each told in one line, within 5 s."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import App, BrokerUnavailable, Client, JetStreamOff, Login, NotAllowed
from jsq.errors import BrokerError
from jsq.server import EmbeddedServer
from tests.conftest import Until
from tests.servers import nats_server


@contextlib.asynccontextmanager
async def through(address: str, old: bytes, new: bytes) -> AsyncIterator[str]:
    """A proxy before a server, which changes one word of what the server says."""
    host, port = address.split(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk.replace(old, new) if change else chunk)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, far_writer, False), pump(far_reader, writer, True))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def told(url: str | Login) -> str:
    """What a client says that cannot connect; takes no longer than 5 s."""
    async with asyncio.timeout(5):
        with pytest.raises(BrokerError) as caught:
            await Client(url).connect()
    message = str(caught.value)
    assert "\n" not in message
    return f"{type(caught.value).__name__}: {message}"


async def test_no_server_at_the_address() -> None:
    assert (await told("nats://127.0.0.1:1")).startswith(
        "BrokerUnavailable: no NATS server answers at nats://127.0.0.1:1; start one"
    )


async def test_an_address_that_is_none() -> None:
    assert "BrokerUnavailable" in await told("nats://nowhere.invalid:4222")
    assert "BrokerUnavailable" in await told("nats://127.0.0.1:notaport")
    assert "http://127.0.0.1:4222 is not the address of a server" in await told("http://127.0.0.1:4222")


async def test_the_password_is_wrong_and_not_repeated(tmp_path: Path) -> None:
    users = f"jetstream {{ store_dir: '{tmp_path}/js' }}\nauthorization {{ user: alice, password: secret }}"
    with nats_server(tmp_path, users) as address:
        message = await told(f"nats://alice:wr0ng@{address}")
        assert message.startswith(f"NotAllowed: nats://{address} refused the login as alice")
        assert "wr0ng" not in message
        async with Client(f"nats://alice:secret@{address}") as client:
            assert await client.queues() == []


async def test_a_server_that_is_too_old_is_refused_with_the_reason(server: EmbeddedServer) -> None:
    version = b'"version":"2.15.1"'
    async with through(server.url.removeprefix("nats://"), version, b'"version":"2.14.3"') as address:
        message = await told(f"nats://{address}")
    assert message.startswith("ServerTooOld: ")
    assert "runs nats-server 2.14.3; jsq needs 2.15.1 or newer" in message


async def test_jetstream_is_off(tmp_path: Path) -> None:
    with nats_server(tmp_path, "") as address:
        async with Client(f"nats://{address}") as client, asyncio.timeout(5):
            with pytest.raises(JetStreamOff, match="has no JetStream; add `jetstream"):
                await client.submit("any")


async def test_a_link_that_takes_no_more_is_let_go_and_made_anew(
    server: EmbeddedServer, namespace: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsq.broker.connection.PING_SECONDS", 1)
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
        assert (await (await client.submit("any")).status()).state == "queued"
    ended.set()
    proxy.close()
    await asyncio.gather(*(writer.wait_closed() for writer in links), return_exceptions=True)


async def test_tls_asked_of_a_server_without_it(server: EmbeddedServer) -> None:
    message = await told(server.url.replace("nats://", "tls://"))
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
            job = await admin.submit("any")
        async with Client(f"nats://reader:r@{address}") as reader, asyncio.timeout(5):
            with pytest.raises(NotAllowed, match=r"not allowed to publish to jsq\.q\.default.* as reader"):
                await reader.submit("any")
        async with Client(f"nats://deaf:d@{address}") as deaf, asyncio.timeout(5):
            with pytest.raises(NotAllowed, match=r"not allowed to subscribe to jsq\.on\.default.* as deaf"):
                await (await deaf.job(job.id, "default")).result(4)


async def test_when_all_was_read_that_was_sent_each_refusal_is_known(tmp_path: Path) -> None:
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
                await wire.listen(f"no.{number}", lambda _: None)
                await wire.flush()
                with pytest.raises(NotAllowed, match=f"not allowed to subscribe to no.{number} as few"):
                    wire.check_denied(f"no.{number}")
                wire.send(f"no.{number}")
                with pytest.raises(NotAllowed, match=f"not allowed to publish to no.{number} as few"):
                    await wire.check_sent(f"no.{number}")


async def test_a_client_goes_on_over_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    async with Client(own_server.url) as client:
        first = await client.submit("any")
        own_server.kill()
        second = asyncio.create_task(client.submit("any"))
        await asyncio.to_thread(own_server.restart)
        assert (await (await second).status()).state == "queued"
        assert (await first.status()).state == "queued"


async def test_a_server_that_stays_away_is_told_in_time(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsq.broker.wire.READ_SECONDS", 1.0)
    async with Client(own_server.url) as client:
        job = await client.submit("any")
        own_server.kill()
        async with asyncio.timeout(8):
            with pytest.raises(BrokerUnavailable):
                await job.status()


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


async def test_a_worker_in_this_process_goes_on_over_a_restart(
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
        assert await (await add.submit(1, 2)).result(10) == 3
        own_server.kill()
        await asyncio.to_thread(own_server.restart)
        assert await (await add.submit(3, 4)).result(20) == 7
        worker.stop()
        await running


def test_secrets_are_not_shown() -> None:
    login = Login(url="nats://alice:secret@host:4222", password="p4ss", token="t0k")
    assert "secret" not in login.shown
    assert "p4ss" not in repr(login)
    assert "t0k" not in repr(login)
