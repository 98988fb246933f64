"""No output and no log of jsq, at any level, contains a secret of a login or an argument of a job."""

import asyncio
import contextlib
import itertools
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jsq import Client, Login, NotAllowed
from jsq.errors import BadOption, JsqError
from jsq.settings import read_login
from tests.acceptance.conftest import Command
from tests.helpers.credentials import LIMITS, STORES, USER, Key, Operator
from tests.helpers.servers import nats_server

WORD = "S3CRET-w0rd"
TOKEN = "T0KEN-w0rd"

SHOP = """
import os, signal
from jsq import App
app = App()

@app.task
async def add(a: int, b: int = 0) -> int:
    return a + b

@app.task(retries=0)
async def fail(a: str) -> None:
    raise ValueError("no")

@app.task(name="shop.wait", timeout=0.1, retries=0)
async def wait(a: str) -> None:
    import asyncio
    await asyncio.sleep(10)
"""


@dataclass(frozen=True)
class Way:
    """A way to log in: the conf of a server, the environment, and the secrets that must not be shown."""

    conf: str
    other: str
    environment: dict[str, str]
    secrets: tuple[str, ...]
    address: Callable[[str], str] = lambda address: f"nats://{address}"


def ways(folder: Path) -> Iterator[tuple[str, Way]]:
    """Each way to log in; its `other` conf refuses the same login."""
    word = f"authorization {{ user: ann, password: '{WORD}' }}"
    other = "authorization { user: ann, password: else }"
    yield "address", Way(word, other, {}, (WORD,), lambda address: f"nats://ann:{WORD}@{address}")
    yield "password", Way(word, other, {"JSQ_USER": "ann", "JSQ_PASSWORD": WORD}, (WORD,))
    token = f"authorization {{ token: '{TOKEN}' }}"
    yield "token", Way(token, other, {"JSQ_TOKEN": TOKEN}, (TOKEN,))
    yield "token in address", Way(token, other, {}, (TOKEN,), lambda address: f"nats://{TOKEN}@{address}")
    key = Key(USER)
    public = f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}"
    yield "nkey", Way(public, other, {"JSQ_NKEY": key.seed}, (key.seed,))
    operator, other_operator = Operator(), Operator()
    for one in (operator, other_operator):
        one.account("A", {"type": "account", "version": 2, "limits": LIMITS | STORES})
    claims = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    file = folder / "ann.creds"
    file.write_text(operator.user("A", "ann", claims))
    secrets = tuple(line for line in file.read_text().split() if len(line) > 40)
    yield "creds", Way(operator.conf(), other_operator.conf(), {"JSQ_CREDS": str(file)}, secrets)


def conf(folder: Path, more: str) -> str:
    return f"jetstream {{ store_dir: '{folder}/js' }}\n{more}\n"


WAYS = ("address", "password", "token", "token in address", "nkey", "creds")


@pytest.mark.parametrize("name", WAYS)
async def test_no_error_and_no_log_shows_a_secret_of_the_login(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    way = dict(ways(tmp_path))[name]
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    async def connect(address: str) -> None:
        async with Client(read_login(way.address(address), way.environment)) as client:
            texts.extend(str(finding) for finding in await client.admin.doctor())
            (await client.broker()).wire.send("refused.by.none")
            await client.task("add").submit(1)

    for folder, text in (("right", way.conf), ("wrong", way.other)):
        (tmp_path / folder).mkdir()
        with nats_server(tmp_path / folder, conf(tmp_path / folder, text)) as address:
            if folder == "right":
                await connect(address)
                continue
            with pytest.raises(NotAllowed) as caught:
                await connect(address)
            texts.extend(traceback.format_exception(caught.value))
    for nowhere in ("127.0.0.1:1", "127.0.0.1:port", "nowhere.invalid:4222"):
        with pytest.raises(JsqError) as failed:
            await connect(nowhere)
        texts.extend(traceback.format_exception(failed.value))

    assert len(texts) > 20
    for secret in way.secrets:
        assert secret not in "".join(texts)
        assert secret not in caplog.text


@pytest.mark.parametrize("name", ["address", "creds"])
async def test_no_command_shows_a_secret_of_the_login(jsq: Command, tmp_path: Path, name: str) -> None:
    way = dict(ways(tmp_path))[name]
    with nats_server(tmp_path, conf(tmp_path, way.other)) as address:
        for where, code in ((address, 4), ("127.0.0.1:port", 2)):
            loud = {"JSQ_URL": way.address(where), "JSQ_DEBUG": "1", "PYTHONASYNCIODEBUG": "1"}
            done = await jsq("doctor", "--verbose", environment=loud | way.environment)
            assert (done.code, done.out) == (code, "")
            assert "Traceback" in done.err
            for secret in way.secrets:
                assert secret not in done.err


@pytest.mark.parametrize("name", ["address", "creds"])
async def test_no_log_shows_a_secret_during_a_reconnect_that_is_refused(
    jsq: Command, tmp_path: Path, name: str
) -> None:
    way = dict(ways(tmp_path))[name]
    jsq.write("shop.py", SHOP)
    folders = (tmp_path / "first", tmp_path / "next")
    for folder in folders:
        folder.mkdir()
    with contextlib.ExitStack() as first:
        address = first.enter_context(nats_server(folders[0], conf(folders[0], way.conf)))
        loud = {"JSQ_URL": way.address(address), "PYTHONASYNCIODEBUG": "1"} | way.environment
        words = ("worker", "shop:app", "--log-level", "debug")
        async with jsq.running(*words, environment=loud) as process:
            assert process.stderr is not None
            log = await read_until(process.stderr, "worker ready")
            first.close()
            port = int(address.rpartition(":")[2])
            with nats_server(folders[1], conf(folders[1], way.other), port=port):
                log += await read_until(process.stderr, "authorization violation")
                process.terminate()
                log += (await process.communicate())[1].decode()

    assert "connection lost" in log
    for secret in way.secrets:
        assert secret not in log


async def read_until(stream: asyncio.StreamReader, text: str) -> str:
    log = ""
    while text not in log.lower():
        line = await asyncio.wait_for(stream.readline(), 20)
        assert line, log
        log += line.decode()
    return log


async def test_arguments_are_not_logged(jsq: Command, tmp_path: Path) -> None:
    jsq.write("shop.py", SHOP)
    for form in ("text", "json"):
        for task in ("add", "fail", "shop.wait", "unknown"):  # the first accepts numbers only
            sent = await jsq("submit", task, "--arg", f"a={WORD}", "--verbose")
            assert (sent.code, WORD in sent.err) == (0, False)
        done = await jsq("worker", "shop:app", "--burst", "--log-level", "info", "--log-format", form)
        assert done.code == 0
        assert done.err.count("job failed") == 3
        assert WORD not in done.err


def test_a_login_and_its_client_show_no_secret() -> None:
    key = Key(USER)
    one = Login(url=f"nats://ann:{WORD}@h:4222", password=WORD, token=TOKEN, nkey=key.seed)
    for shown in (repr(one), str(one), f"{one}", repr([one]), repr(Client(one)), str(vars(Client(one)))):
        for secret in (WORD, TOKEN, key.seed):
            assert secret not in shown


@pytest.mark.parametrize(
    "address",
    [
        f"nats://ann:{WORD}",
        f"ann:{WORD}@h",
        f"nats://{WORD}@h",
        f"http://ann:{WORD}@h",
        f"nats://ann:{WORD}@h:x",
    ],
)
async def test_the_error_for_an_invalid_address_shows_no_password(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(JsqError) as caught:
        await Client(address).connect()
    chain = itertools.takewhile(bool, iterate(caught.value))
    assert not [str(error) for error in chain if WORD in str(error)]
    assert WORD not in caplog.text


def iterate(error: BaseException | None) -> Iterator[BaseException | None]:
    """An error and its causes, as a traceback shows them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    yield None


def test_an_unknown_login_field_is_refused_without_its_value() -> None:
    with pytest.raises(BadOption) as caught:
        Login.read(passwort=WORD)
    assert WORD not in str(caught.value)


def test_an_unreadable_context_is_reported_without_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    for text in (f'{{"password": "{WORD}"', json.dumps([WORD]), json.dumps({"tls_first": WORD})):
        (folder / "prod.json").write_text(text)
        with pytest.raises(JsqError) as caught:
            read_login(None, {"XDG_CONFIG_HOME": str(tmp_path), "NATS_CONTEXT": "prod"})
        assert WORD not in str(caught.value)
