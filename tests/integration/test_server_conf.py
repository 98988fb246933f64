"""The confs that jsq ships, read and run by nats-server: unchanged, and with each section enabled."""

import asyncio
import contextlib
import http.client
import json
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jsq import App, BrokerUnavailable, Client, Login, NotAllowed
from jsq.server import find_server
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.repository import ROOT, SHIPPED

KUBERNETES = ROOT / "deploy" / "kubernetes" / "nats.conf"

VARIABLES = {
    "POD_NAME": "nats-0",
    "NATS_STORE_KEY": "store",
    "JSQ_PASSWORD": "everything",
    "WEB_PASSWORD": "little",
    "SYSTEM_PASSWORD": "servers",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: `host:port` for clients, and for monitoring."""

    address: str
    monitor: str
    stop: Callable[[], None]

    def get(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.monitor, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def awaited(find: Callable[[], T | None], *, limit: float = 20.0) -> T:
    """The first result of `find` that is not None."""
    end = time.monotonic() + limit
    while (found := find()) is None:
        assert time.monotonic() < end, f"not there after {limit} s"
        time.sleep(0.01)
    return found


def sections(conf: Path) -> list[str]:
    """The disabled sections, by the words of their headings."""
    return [part for part in re.findall(r"# --- (.+) ---", conf.read_text()) if part != "end"]


def enable(conf: Path, *wanted: str) -> str:
    """The text of a conf without the `#~` before the lines of some sections."""
    lines, part = [], ""
    for line in conf.read_text().splitlines():
        if heading := re.fullmatch(r"\s*# --- (.+) ---", line):
            part = heading[1]
        lines.append(re.sub(r"^(\s*)#~ ?", r"\1", line) if part in wanted else line)
    return "\n".join(lines) + "\n"


def check(
    text: str, folder: Path, variables: Mapping[str, str] = VARIABLES
) -> subprocess.CompletedProcess[str]:
    """The result of `nats-server -t` for a conf."""
    (folder / "nats.conf").write_text(text)
    return subprocess.run(
        [find_server(), "-t", "-c", "nats.conf"],
        cwd=folder,
        env=dict(variables),
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """`serve(text)` runs a server in a new folder, on free ports. The server is stopped at the end."""
    with contextlib.ExitStack() as stack:

        def serve(text: str, folder: Path = tmp_path, **variables: str) -> Served:
            folder.mkdir(exist_ok=True)
            (folder / "nats.conf").write_text(text)
            (folder / "ports").mkdir()
            log = stack.enter_context((folder / "log").open("wb"))
            process = subprocess.Popen(
                [find_server(), "-c", "nats.conf", "-p", "-1", "-m", "-1", "--ports_file_dir", "ports"],
                cwd=folder,
                env=VARIABLES | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            stack.callback(stop, process)
            return awaited(lambda: ready(process, folder))

        yield serve


def ready(process: subprocess.Popen[bytes], folder: Path) -> Served | None:
    assert process.poll() is None, (folder / "log").read_text()
    file = folder / "ports" / f"nats-server_{process.pid}.ports"
    with contextlib.suppress(OSError, ValueError):  # missing, or half written
        found = json.loads(file.read_text())
        address, monitor = (found[kind][0].partition("://")[2] for kind in ("nats", "monitoring"))
        return Served(address, monitor, partial(stop, process))
    return None


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a temporary certificate, which is its own CA, for all names in the confs."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not on the PATH, and it is what makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", "server-key.pem", "-out", "ca.pem", "-days", "2"),
            *("-subj", "/CN=jsq", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=60,
    )
    for name in ("server-cert.pem", "route-cert.pem", "tls.crt", "ca.crt"):
        shutil.copy(folder / "ca.pem", folder / name)
    for name in ("route-key.pem", "tls.key"):
        shutil.copy(folder / "server-key.pem", folder / name)
    return folder


@pytest.fixture
def with_certificate(certificate: Path) -> Callable[[str], str]:
    """Points a conf at the temporary certificate."""
    return lambda text: text.replace("./tls/", f"{certificate}/").replace("/etc/nats-tls/", f"{certificate}/")


# -- unchanged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conf", [SHIPPED, KUBERNETES], ids=["shipped", "kubernetes"])
def test_a_conf_is_valid_as_shipped(conf: Path, tmp_path: Path) -> None:
    result = check(conf.read_text(), tmp_path)

    assert result.returncode == 0, result.stderr


def test_the_shipped_conf_needs_no_environment_variables(tmp_path: Path) -> None:
    result = check(SHIPPED.read_text(), tmp_path, variables={})

    assert result.returncode == 0, result.stderr


def test_the_shipped_conf_syncs_always(serve: Callable[..., Served]) -> None:
    server = serve(SHIPPED.read_text())

    status, config = server.get("/jsz?config=true")
    assert status == 200
    assert config["config"]["sync_always"] is True
    assert config["config"]["max_storage"] == 8 * 2**30
    assert config["config"]["max_memory"] == 256 * 2**20
    assert server.get("/healthz") == (200, {"status": "ok"})


def test_the_shipped_conf_listens_on_this_machine_only(serve: Callable[..., Served]) -> None:
    server = serve(SHIPPED.read_text())

    assert server.address.startswith("127.0.0.1:")
    assert server.monitor.startswith("127.0.0.1:")
    assert server.get("/varz")[1]["host"] == "127.0.0.1"


async def test_the_shipped_conf_accepts_jobs(serve: Callable[..., Served], tmp_path: Path) -> None:
    server = serve(SHIPPED.read_text())

    async with Client(f"nats://{server.address}") as client:
        job = await client.task("anything").submit()
        assert (await job.status()).state == "queued"

    assert any((tmp_path / "data" / "jetstream").iterdir())


# -- with a section enabled ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "part"), [(conf, part) for conf in (SHIPPED, KUBERNETES) for part in sections(conf)]
)
def test_a_section_is_valid_when_it_is_enabled(
    conf: Path, part: str, tmp_path: Path, with_certificate: Callable[[str], str]
) -> None:
    text = enable(conf, part)
    assert text != conf.read_text()

    result = check(with_certificate(text), tmp_path)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("conf", [SHIPPED, KUBERNETES], ids=["shipped", "kubernetes"])
def test_all_sections_are_valid_together(
    conf: Path, tmp_path: Path, with_certificate: Callable[[str], str]
) -> None:
    text = enable(conf, *sections(conf))
    assert "#~" not in re.sub(r"`#~`", "", text)

    result = check(with_certificate(text), tmp_path)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("part", ["encryption", "accounts"])
def test_a_server_does_not_start_without_its_secrets(part: str, tmp_path: Path) -> None:
    result = check(enable(SHIPPED, part), tmp_path, variables={})

    assert result.returncode != 0
    assert "variable reference" in result.stderr


SECRETS = ("a word of the arguments", "a word of the result", "a-word-of-the-id", "a word of the header")


async def keep_secrets(address: str) -> None:
    """Store every part of a job: on the queue, in the log and in the scheduled messages."""
    arguments, result, id, header = SECRETS
    app = App(f"nats://{address}")

    @app.task
    async def report(given: str) -> str:
        return result

    async with app:
        running = asyncio.create_task((worker := Worker(app)).run())
        assert (
            await (await report.options(id=id, headers={"X": header}).submit(arguments)).result(60) == result
        )
        worker.stop()
        await running
        await report.options(delay=600, headers={"X": header}).submit(arguments)
        await report.options(headers={"X": header}).submit(arguments)


def readable(folder: Path) -> list[str]:
    """The secrets that can be read in the files of a folder."""
    files = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    assert files
    return [word for word in SECRETS if any(word.encode() in file for file in files)]


async def test_with_encryption_stored_data_cannot_be_read_without_the_key(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    place = json.dumps(str(tmp_path / "data"))
    text = enable(SHIPPED, "encryption").replace('"./data"', place)

    first = serve(text, tmp_path / "first", NATS_STORE_KEY="right")
    await keep_secrets(first.address)
    first.stop()
    assert readable(tmp_path / "data") == []

    other = serve(text, tmp_path / "other", NATS_STORE_KEY="wrong")
    async with Client(f"nats://{other.address}") as client:
        assert await client.queues.list() == []
    other.stop()

    again = serve(text, tmp_path / "again", NATS_STORE_KEY="right")
    async with Client(f"nats://{again.address}") as client:
        [stats] = await client.queues.stats()
        assert (sum(stats.waiting.values()), stats.scheduled) == (1, 1)
        assert await client.jobs.handle("a-word-of-the-id").result(60) == "a word of the result"


async def test_without_encryption_stored_data_can_be_read(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    server = serve(SHIPPED.read_text())
    await keep_secrets(server.address)
    server.stop()

    assert readable(tmp_path / "data") == list(SECRETS)


def test_the_accounts_are_those_that_provision_prints() -> None:
    written = enable(SHIPPED, "accounts")
    printed = Client("nats://nowhere").admin.roles("jsq=admin", "web=submitter:*+observer:*").conf()

    assert printed.removesuffix("}\n") in written


async def test_with_accounts_a_web_server_submits_and_cancels_but_does_not_purge(
    serve: Callable[..., Served], until: Until
) -> None:
    server = serve(enable(SHIPPED, "accounts"))

    async with Client(f"nats://jsq:everything@{server.address}") as operator:
        await operator.admin.provision()

    async with Client(f"nats://web:little@{server.address}") as web:
        job = await web.task("anything").submit()
        assert (await job.status()).state == "queued"
        later = await web.task("anything").options(delay=60).submit()
        assert (await later.status()).state == "scheduled"
        await web.task("anything").options(id="order-1").submit()
        assert (await web.task("anything").options(id="order-1").submit()).duplicate
        assert (await later.cancel()).state == "cancelled"
        assert job.id in [one.id for one in await web.jobs.list_open(queue="default")]

        async def listed() -> bool:
            return job.id in [one.id for one in await web.jobs.list(queue="default", limit=10)]

        await until(listed)
        delayed = await web.task("anything").options(delay=60).submit()
        assert (await delayed.reschedule(delay=120)).state == (await delayed.promote()).state == "scheduled"
        assert (await (await web.task("anything").options(expires=0.1).submit()).wait(10)).state == "expired"
        assert await web.dead_letters.list() == []
        with pytest.raises(NotAllowed, match=r"STREAM\.PURGE\.KV_jsq_jobs as web"):
            await (await web.broker()).dead_letters.purge()


async def test_with_tls_a_client_logs_in_by_its_certificate(
    serve: Callable[..., Served], certificate: Path, with_certificate: Callable[[str], str]
) -> None:
    server = serve(with_certificate(enable(SHIPPED, "tls")))
    ca, cert, key = (str(certificate / name) for name in ("ca.pem", "server-cert.pem", "server-key.pem"))

    async with Client(Login(url=f"tls://{server.address}", ca=ca, cert=cert, key=key)) as client:
        job = await client.task("anything").submit()
        assert (await job.status()).state == "queued"

    with pytest.raises(BrokerUnavailable):
        await Client(Login(url=f"tls://{server.address}", ca=ca)).connect()


# -- three servers -------------------------------------------------------------------------------------------


def test_three_servers_with_the_conf_of_kubernetes_become_a_cluster(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    routes = free_addresses(3)
    text = KUBERNETES.read_text()
    for number, route in enumerate(routes):
        text = text.replace(f"nats-{number}.nats-headless:6222", route)

    servers = []
    for number, route in enumerate(routes):
        folder = tmp_path / f"nats-{number}"
        own = text.replace("0.0.0.0:6222", route).replace("0.0.0.0:", "127.0.0.1:")
        own = own.replace('"/data"', '"./data"').replace("/tmp/nats.pid", "nats.pid")
        servers.append(serve(own, folder, POD_NAME=f"nats-{number}"))

    for server in servers:
        awaited(partial(follows_a_leader, server))
        # The requests of the startup and liveness probes.
        assert server.get("/healthz?js-server-only=true")[0] == 200
        assert server.get("/healthz?js-enabled-only=true")[0] == 200
    assert {server.get("/varz")[1]["server_name"] for server in servers} == {"nats-0", "nats-1", "nats-2"}
    assert {server.get("/jsz")[1]["meta_cluster"]["cluster_size"] for server in servers} == {3}


def follows_a_leader(server: Served) -> bool | None:
    """The request of the readiness probe; None means not yet."""
    return server.get("/healthz?js-meta-only=true")[0] == 200 or None


def free_addresses(number: int) -> list[str]:
    """Addresses on loopback that are free at the time of the call. Routes must be known before the start.

    They are below the ports that the system gives to connections of other tests meanwhile.
    """
    found: list[str] = []
    while len(found) < number:
        port = random.randrange(20_000, 30_000)
        address = f"127.0.0.1:{port}"
        with socket.socket() as each, contextlib.suppress(OSError):
            each.bind(("127.0.0.1", port))
            if address not in found:
                found.append(address)
    return found
