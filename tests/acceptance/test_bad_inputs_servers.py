"""Bad inputs 52 to 54: servers that are unreachable, refuse the login, or lack what jsq requires."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jsq import Client
from jsq.server import EmbeddedServer
from tests.acceptance.bad_inputs import row, rows
from tests.acceptance.conftest import Command, Ended
from tests.helpers.proxy import rewriting_proxy
from tests.helpers.servers import nats_server


async def refusal(jsq: Command, url: str, *words: str, context: str = "") -> str:
    """The exit code and the error of `jsq` for a server: one line, within 5 s of the start."""
    environment = {"JSQ_URL": url} | ({"NATS_CONTEXT": context} if context else {})
    began = time.monotonic()
    ended: Ended = await jsq(*(words or ("job", "ls")), environment=environment)
    seconds = time.monotonic() - began
    [line] = ended.err.splitlines()
    assert line.startswith("jsq: error: ")
    assert line.isprintable()
    assert ended.out == ""
    assert seconds < 7  # 5, and 2 more on a busy machine
    return f"{ended.code} {line.removeprefix('jsq: error: ')}"


# -- 52: no connection ----------------------------------------------------------------------------------


@rows(
    {
        "52-no-address": ("nats://", "2 nats:// is not the address of a server; write nats://HOST:PORT"),
        "52-commas": (",", "2 ',' is not the address of a server; write nats://HOST:PORT"),
        "52-no-port": ("nats://127.0.0.1:port", "2 nats://127.0.0.1:*** is not the address of a server"),
        "52-other-protocol": ("http://127.0.0.1:1", "2 http://127.0.0.1:1 is not the address of a server"),
        "52-unknown-host": (
            "nats://nowhere.invalid:1",
            "7 no NATS server answers at nats://nowhere.invalid:1",
        ),
        "52-refused": ("nats://127.0.0.1:1", "7 no NATS server answers at nats://127.0.0.1:1; start one"),
    }
)
async def test_a_wrong_address_is_reported(jsq: Command, given: tuple[str, str]) -> None:
    url, message = given
    assert (await refusal(jsq, url)).startswith(message)


@row("52-silent-server")
async def test_a_silent_server_is_reported(jsq: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        assert (await refusal(jsq, url)).startswith(f"7 no NATS server answers at {url}; start one")


@row("52-tls-to-a-plain-server")
async def test_tls_to_a_plain_server_is_reported(jsq: Command, server: EmbeddedServer) -> None:
    url = server.url.replace("nats://", "tls://")
    message = f"7 no TLS connection to {url}: the server does not offer TLS; write nats://"
    assert await refusal(jsq, url) == message


def openssl(folder: Path, *words: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not on the PATH, and it is what makes certificates")
    subprocess.run([program, *words], cwd=folder, check=True, capture_output=True, timeout=60)


NAMED = ("-subj", "/CN=jsq", "-addext", "subjectAltName=IP:127.0.0.1")
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three self-signed certificates: `good`, `other`, and `old`, which has expired."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("good", "other"):
        openssl(folder, "req", "-x509", *KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem", *NAMED)
    openssl(folder, "req", *KEY, "-keyout", "old.key", "-out", "old.csr", *NAMED)
    sign = (
        "x509",
        "-req",
        "-in",
        "old.csr",
        "-signkey",
        "old.key",
        "-days",
        "-1",
        "-copy_extensions",
        "copy",
    )
    openssl(folder, *sign, "-out", "old.pem")
    return folder


@rows(
    {
        "52-expired-certificate": ("old", "old", "certificate has expired"),
        "52-wrong-ca": ("good", "other", "self-signed certificate"),
    }
)
async def test_a_bad_certificate_is_reported(
    jsq: Command, tmp_path: Path, certificates: Path, given: tuple[str, str, str]
) -> None:
    shows, trusts, message = given
    tls = f"tls {{ cert_file: '{certificates}/{shows}.pem', key_file: '{certificates}/{shows}.key' }}"
    contexts = tmp_path / "nats" / "context"
    contexts.mkdir(parents=True)
    with nats_server(tmp_path, f"jetstream {{ store_dir: '{tmp_path}/js' }}\n{tls}") as address:
        settings = {"url": f"tls://{address}", "ca": f"{certificates}/{trusts}.pem"}
        (contexts / "here.json").write_text(json.dumps(settings))
        error = await refusal(jsq, "", context="here")
    assert error.startswith(f"7 no TLS connection to tls://{address}: ")
    assert message in error
    assert error.endswith("check the scheme and ca, cert, key")


# -- 53: not allowed ------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """The address of a server where `ann` may connect and do nothing else."""
    conf = """
    jetstream { store_dir: '%s/js' }
    accounts { A { jetstream: enabled, users: [
        { user: ann, password: secret, permissions { publish: nothing } },
    ] } }
    """
    with nats_server(tmp_path, conf % tmp_path) as address:
        yield address


@rows({"53-wrong-password": "wrong", "53-no-password": ""})
async def test_a_wrong_password_is_reported_and_not_shown(jsq: Command, locked: str, given: str) -> None:
    user = f"ann:{given}@" if given else ""
    error = await refusal(jsq, f"nats://{user}{locked}")
    as_whom = " as ann" if given else ""
    assert error == (
        f"4 nats://{locked} refused the login{as_whom}; check user, password, token or creds; "
        "see `jsq guide security`"
    )


@row("53-without-a-permission")
async def test_a_missing_permission_is_reported_with_the_subject_and_the_user(
    jsq: Command, locked: str, namespace: str
) -> None:
    error = await refusal(jsq, f"nats://ann:secret@{locked}", "submit", "any")
    assert error.startswith("4 not allowed to publish to ")
    assert error.endswith(" as ann; see `jsq guide security`")
    assert f" {namespace}.q.default.normal." in error


# -- 54: unsuitable servers -----------------------------------------------------------------------------


@row("54-no-jetstream")
async def test_a_server_without_jetstream_is_reported_with_a_fix(jsq: Command, tmp_path: Path) -> None:
    with nats_server(tmp_path, "") as address:
        error = await refusal(jsq, f"nats://{address}", "submit", "any")
    assert error == (
        f"1 nats://{address} has no JetStream; add `jetstream {{ store_dir: ... }}` to its conf, or start it "
        "with -js"
    )


@row("54-stream-missing")
async def test_a_missing_stream_is_reported_with_a_fix(jsq: Command, client: Client) -> None:
    await client.task("any").submit()
    broker = await client.broker()
    await broker.wire.api(f"STREAM.DELETE.{broker.subjects.streams.records}")

    ended = await jsq("doctor")

    assert ended.code == 1
    missing = {"severity": "error", "subject": broker.subjects.streams.records}
    assert missing | {"message": "missing; run `jsq provision`"} in ended.lines
    assert (await jsq("provision")).code == 0
    assert (await jsq("doctor")).code == 0


@row("54-foreign-stream")
async def test_a_foreign_stream_is_reported_with_a_fix(jsq: Command, client: Client) -> None:
    broker = await client.broker()
    name = broker.subjects.streams.ready("default")
    await broker.wire.api(f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{client.namespace}.own"]})

    ended = await jsq("submit", "any")

    assert (ended.code, ended.out, len(ended.err.splitlines())) == (1, "", 1)
    assert f"stream {name} exists and does not belong to this namespace" in ended.err
    assert f"`nats stream rm {name}`" in ended.err
    found = await broker.jetstream.stream_info(name)
    assert found is not None
    assert found["config"]["subjects"] == [f"{client.namespace}.own"]


@row("54-foreign-config")
async def test_a_changed_stream_is_reported_with_a_fix(jsq: Command, client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    name = broker.subjects.streams.ready("default")
    found = await broker.jetstream.stream_info(name)
    assert found is not None
    await broker.wire.api(f"STREAM.UPDATE.{name}", found["config"] | {"discard": "old"})

    ended = await jsq("doctor")
    message = f"{name}: discard is old, should be new; run `jsq provision`, or start a worker"
    assert {"severity": "warning", "subject": "queue default", "message": message} in ended.lines
    assert (await jsq("provision")).code == 0
    again = await broker.jetstream.stream_info(name)
    assert again is not None
    assert again["config"]["discard"] == "new"


@row("54-server-2-9")
async def test_a_server_that_is_too_old_is_reported_with_a_fix(jsq: Command, server: EmbeddedServer) -> None:
    version = b'"version":"2.15.1"'
    async with rewriting_proxy(server.url.removeprefix("nats://"), version, b'"version":"2.9.25"') as address:
        error = await asyncio.wait_for(refusal(jsq, f"nats://{address}"), 60)
    assert error.startswith(f"1 nats://{address} runs nats-server 2.9.25; jsq needs 2.15.1 or newer")
    assert error.endswith("update the server")
