"""Bad inputs 56 to 60: the command line, its streams and signals, and the display of hostile jobs."""

import asyncio
import contextlib
import http.client
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from jsq import Client
from jsq.telemetry.probes import Probes
from tests.acceptance.bad_inputs import row, rows, stored
from tests.acceptance.conftest import Command, Listed
from tests.helpers.conditions import Until

HOSTILE = "\x1b[31m\x1b]0;owned\x07\r\u202e<script>alert(1)</script> javascript:alert(1)\n\x9b2J"

SHOP = """
import os, time
from jsq import App, Reject
app = App()
app.queue("default", lease=5)

@app.task(retries=0)
def refuse(text: str) -> None:
    raise Reject(text)

@app.task
def nap(file: str) -> None:
    with open(file, "w") as out:
        out.write(str(os.getpid()) + "\\n")
    time.sleep(60)

@app.task(executor="process")
def nap_apart(file: str) -> None:
    with open(file, "w") as out:
        out.write(str(os.getpid()) + "\\n")
    time.sleep(60)
"""


@contextlib.asynccontextmanager
async def working(jsq: Command, client: Client, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker of the shop app that is ready for jobs."""
    jsq.write("shop.py", SHOP)
    async with jsq.running("worker", "shop:app", *words) as process:
        assert process.stderr is not None
        while b"worker ready" not in await process.stderr.readline():
            assert process.returncode is None
        yield process


async def pid_in(file: Path, until: Until) -> int:
    """The process id that a task has written to a file."""
    found: list[str] = []

    def written() -> bool:
        found[:] = file.read_text().splitlines(keepends=True) if file.exists() else []
        return bool(found) and found[0].endswith("\n")

    await until(written, 30)
    return int(found[0])


# -- input ----------------------------------------------------------------------------------------------


@rows(
    {
        "56-file-that-is-none": (("--json", "@nowhere.json"), "--json '@nowhere.json': No such file"),
        "56-not-json": (("--json", '{"a": 1,\n "b": tru}'), "--json: line 2 column 7: not JSON"),
        "56-looks-like-an-option": (
            ("-5",),
            "no such option: -5: write arguments that start with a dash after --; see",
        ),
        "56-argument-with-json": (("--json", "[]", "--", "-5"), "use it without ARG"),
    }
)
async def test_wrong_arguments_submit_nothing(
    jsq: Command, client: Client, given: tuple[tuple[str, ...], str]
) -> None:
    words, message = given
    ended = await jsq("submit", "any", *words)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert message in ended.err
    assert await stored(client) == 0


@rows(
    {
        "56-line-not-json": (b'[1]\n{"a": }\n', "standard input: line 2 column 7: not JSON"),
        "56-line-of-10-mb": (b'[1]\n["' + b"x" * 10_000_000, "standard input: line 2 column 2: not JSON"),
        "56-line-not-utf-8": (b"[1]\n[\xff]\n", "standard input: line 2 column 2: not UTF-8"),
    }
)
async def test_an_invalid_input_line_submits_nothing(
    jsq: Command, client: Client, given: tuple[bytes, str]
) -> None:
    lines, message = given
    ended = await jsq("submit", "any", "-", stdin=lines)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert message in ended.err
    assert ended.err.endswith("(--check --rejects FILE lists all such lines)\n")
    assert await stored(client) == 0


CLOSED = """
import os, sys
os.close(0)
os.execv(sys.executable, [sys.executable, "-m", "jsq", "submit", "any", "-"])
"""


@row("56-closed-stdin")
async def test_a_closed_stdin_submits_nothing(jsq: Command, client: Client) -> None:
    ended = await jsq(code=CLOSED)
    assert (ended.code, ended.out, ended.err) == (2, "", "jsq: error: standard input is closed\n")
    assert await stored(client) == 0


@row("56-behind-two-dashes")
async def test_words_after_two_dashes_are_arguments(jsq: Command, client: Client) -> None:
    ended = await jsq("submit", "any", "--", "-5", "--queue=slow")
    assert ended.code == 0
    broker = await client.broker()
    subject = broker.subjects.ready("default", "normal", ended.out.strip())
    message = await broker.reads.last(broker.subjects.streams.ready("default"), subject)
    assert message is not None
    assert message.payload == b'[[-5,"--queue=slow"],{}]'


# -- output ---------------------------------------------------------------------------------------------


PIPE = """
import os, sys
ours, theirs = os.pipe()
os.dup2(theirs, 1)
os.close(ours)
os.execv(sys.executable, [sys.executable, "-m", "jsq", "job", "ls"])
"""


@row("57-closed-pipe")
async def test_a_closed_pipe_ends_the_command_silently(jsq: Command, client: Client) -> None:
    await client.task("any").submit()
    ended = await jsq(code=PIPE)
    assert (ended.code, ended.err) == (141, "")


@rows(
    {
        "57-no-color": {"NO_COLOR": "1", "COLUMNS": "80"},
        "57-twenty-columns": {"COLUMNS": "20"},
        "57-no-utf-8": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
    }
)
async def test_the_output_fits_a_terminal_without_features(
    jsq: Command, client: Client, given: dict[str, str], listed: Listed
) -> None:
    job = await client.task("any").options(tags=["é\U0001f600"]).submit()
    await listed()
    ended = await jsq("job", "get", job.id, "-o", "table", environment=given)
    table = await jsq("job", "ls", "-o", "table", environment=given)
    assert (ended.code, ended.err, table.code, table.err) == (0, "", 0, "")
    assert job.id in table.out
    assert f"id: {job.id}\n" in ended.out
    for line in (ended.out + table.out).splitlines():
        assert line.isprintable()
        assert "PYTHONIOENCODING" not in given or line.isascii()


@row("58-log-and-terminal")
async def test_hostile_texts_are_escaped_in_the_log_and_on_a_terminal(jsq: Command, client: Client) -> None:
    async with working(jsq, client, "--log-level", "debug") as process:
        job = await client.task("refuse").submit(HOSTILE)
        assert (await job.wait(30)).error == f"Reject: {HOSTILE}"
        assert process.stderr is not None
        while "job failed" not in (line := (await process.stderr.readline()).decode()):
            assert line.rstrip("\n").isprintable()
    assert line.rstrip("\n").isprintable()
    assert r"\u001b[31m" in line
    shown = await jsq.on_terminal("job", "get", job.id, environment={"NO_COLOR": "1"})
    assert all(line.isprintable() for line in shown.out.replace("\r\n", "\n").splitlines())
    assert r"\u202e<script>" in shown.out


@row("58-typed")
async def test_hostile_command_line_words_are_escaped_in_errors(jsq: Command, client: Client) -> None:
    for words in (("submit", HOSTILE), ("job", "get", HOSTILE)):
        ended = await jsq(*words)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.removesuffix("\n").isprintable()
    assert await stored(client) == 0


# -- over HTTP ------------------------------------------------------------------------------------------


@rows({"58-no-such-door-dashboard": "dashboard", "59-no-such-door-serve": "serve"})
async def test_there_is_no_dashboard(jsq: Command, given: str) -> None:
    ended = await jsq(given)
    assert (ended.code, ended.out) == (2, "")
    assert f"no such command '{given}'" in ended.err


def listening(pid: int) -> list[str]:
    """The ports on which a process listens."""
    held: set[str] = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(
            FileNotFoundError
        ):  # the file was closed meanwhile, such as that of the listing itself
            held.update(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{number}")))
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [words[1] for words in lines if words[3] == "0A" and words[9] in held]


@row("59-no-port")
async def test_a_worker_opens_no_port_without_the_http_option(jsq: Command, client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert len(listening(os.getpid())) >= 1  # the check itself works
    async with working(jsq, client) as process:
        assert listening(process.pid) == []


@rows(
    {
        "59-delete": ("DELETE", "/metrics", {}, 501),
        "59-post": ("POST", "/readyz", {"Content-Type": "application/x-www-form-urlencoded"}, 501),
        "59-other-path": ("GET", "/../../etc/passwd", {}, 404),
        "59-page": ("GET", f"/metrics?page={10**12}", {"Accept": "*/*"}, 200),
        "59-foreign-origin": ("GET", "/jobs", {"Origin": "http://evil", "Host": "evil"}, 404),
        "59-long-path": ("GET", "/" + "x" * 100_000, {}, 414),
        "59-many-headers": ("GET", "/livez", {f"X-{n}": "x" for n in range(200)}, 431),
    }
)
async def test_the_probes_answer_three_paths_and_change_nothing(
    given: tuple[str, str, dict[str, str], int],
) -> None:
    method, path, headers, status = given
    with (
        Probes("127.0.0.1:0", CollectorRegistry(), alive=lambda: True, ready=lambda: True) as probes,
        contextlib.closing(http.client.HTTPConnection(probes.address, timeout=10)) as connection,
    ):

        def ask() -> tuple[int, bytes]:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

        answered, body = await asyncio.to_thread(ask)
    assert answered == status
    assert len(body) < 1_000


# -- signals --------------------------------------------------------------------------------------------


@row("60-sigterm-twice")
async def test_a_second_signal_returns_the_jobs_at_once(
    jsq: Command, client: Client, until: Until, tmp_path: Path
) -> None:
    async with working(jsq, client) as process:
        job = await client.task("nap").submit(str(tmp_path / "pid"))
        await pid_in(tmp_path / "pid", until)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while b"worker stopping" not in await process.stderr.readline():
            assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0
    found = await job.status()
    assert (found.state, found.attempt, found.failures, found.crashes) == ("interrupted", 1, 0, 0)


@row("60-sighup")
async def test_a_hangup_stops_the_worker_gracefully(jsq: Command, client: Client) -> None:
    async with working(jsq, client) as process:
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        log = (await process.stderr.read()).decode()
        assert await process.wait() == 0
    assert re.search(r"worker stopped .*jobs=0", log)
    assert await client.admin.workers() == []


NOHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "jsq", *sys.argv[1:]])
"""


@row("60-sighup-ignored")
async def test_a_worker_under_nohup_outlives_its_terminal(jsq: Command, client: Client, until: Until) -> None:
    jsq.write("shop.py", SHOP)
    async with jsq.running("worker", "shop:app", code=NOHUP) as process:

        async def known() -> bool:
            return bool(await client.admin.workers())

        await until(known, 30)
        process.send_signal(signal.SIGHUP)
        job = await client.task("refuse").submit("still there")
        assert (await job.wait(30)).state == "failed"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


@row("60-sigint-while-connecting")
async def test_an_interrupt_while_connecting_is_quiet(jsq: Command) -> None:
    came = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with jsq.running("job", "ls", environment={"JSQ_URL": url}) as process:
            await asyncio.wait_for(came.wait(), 30)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        assert (process.returncode, out, err) == (130, b"", b"")


@row("60-parent-killed")
async def test_a_killed_worker_leaves_no_process_behind(
    jsq: Command, client: Client, until: Until, tmp_path: Path
) -> None:
    async with working(jsq, client) as process:
        await client.task("nap_apart").submit(str(tmp_path / "pid"))
        child = await pid_in(tmp_path / "pid", until)
        assert child != process.pid
        process.kill()
        await process.wait()
        await until(lambda: not Path(f"/proc/{child}").exists())
