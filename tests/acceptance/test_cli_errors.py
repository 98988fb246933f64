"""Exit codes, streams, and output that survives pipes, locales, narrow terminals and hostile jobs."""

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from jsq import App, Client, QueueSettings, Reject
from jsq.server import find_server
from tests.acceptance.conftest import Command, Dying, Listed

Working = Callable[..., AbstractAsyncContextManager[Any]]

HOSTILE = "\x1b[31m\x1b]0;owned\x07\r\u202e[red]bold[/red] <script>\n\x9b2J"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
COLORS = re.compile(r"\x1b\[3\dm")


# -- exit codes -----------------------------------------------------------------------------------------


async def test_an_unknown_job_exits_with_5(jsq: Command) -> None:
    for verb in ("get", "wait", "result", "cancel", "retry"):
        ended = await jsq("job", verb, "unknown")
        assert (ended.code, ended.out) == (5, "")
        assert ended.err.startswith("jsq: error: no job has the id 'unknown'")


async def test_a_command_that_finds_nothing_creates_nothing(jsq: Command, client: Client) -> None:
    words = [["move", "x", "--queue", "other"], ["checkpoint", "x"], ["promote", "x"], ["rm", "x", "--yes"]]
    words += [[verb, "x"] for verb in ("get", "wait", "result", "cancel", "retry")]
    for command in words:
        assert (await jsq("job", *command)).code == 5, command
    assert [event async for event in client.jobs.events(follow=False)] == []

    names = await (await client.broker()).jetstream.call("STREAM.NAMES", {"subject": ">"})
    assert [name for name in names["streams"] or () if client.namespace in name] == []


async def test_the_address_of_no_server_exits_with_2(jsq: Command) -> None:
    ended = await jsq("job", "ls", "--server", "http://127.0.0.1:4222")
    assert (ended.code, "is not the address of a server" in ended.err) == (2, True)


async def test_an_error_names_the_option_of_the_shell(jsq: Command, client: Client) -> None:
    await client.admin.provision({"full": QueueSettings(max_jobs=1)})
    await jsq("submit", "echo", "--queue", "full")
    refused = await jsq("submit", "echo", "--queue", "full")
    assert "wait for room (--wait-for-room)" in refused.err


async def test_a_state_that_forbids_the_command_exits_with_6(jsq: Command, client: Client) -> None:
    job = await client.task("nobody").submit()
    assert (await jsq("job", "retry", job.id)).code == 6
    await job.cancel()
    assert (await jsq("job", "retry", job.id)).code == 6


async def test_a_task_declared_twice_exits_with_6(jsq: Command) -> None:
    twice = "@app.task\ndef double(): ...\n"
    jsq.write("shop.py", f"from jsq import App\napp = App()\n{twice}{twice}")
    assert (await jsq("submit", "double", "--app", "shop")).code == 6


@pytest.mark.parametrize(
    "words",
    [
        ["job", "ls"],
        ["submit", "echo"],
        ["events"],
        ["doctor"],
        ["provision"],
        ["queue", "ls"],
        ["dead", "ls"],
    ],
)
async def test_an_unreachable_server_exits_with_7(jsq: Command, words: list[str]) -> None:
    ended = await jsq(*words, environment={"JSQ_URL": "nats://127.0.0.1:1"})

    assert (ended.code, ended.out) == (7, "")
    assert ended.err.startswith("jsq: error: no NATS server answers at nats://127.0.0.1:1")
    assert len(ended.err.splitlines()) == 1


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """The address of a server where `ann` may connect and do nothing else."""
    ports = tmp_path / "ports"
    ports.mkdir()
    conf = tmp_path / "nats.conf"
    conf.write_text(
        f"listen: 127.0.0.1:-1\nports_file_dir: {json.dumps(str(ports))}\n"
        f"jetstream {{ store_dir: {json.dumps(str(tmp_path / 'js'))} }}\n"
        'authorization { users: [{user: ann, password: secret, permissions: {publish: "nothing"}}] }\n'
    )
    command = [find_server(), "-c", str(conf)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        yield ports_file(ports).removeprefix("nats://")
        process.terminate()


def ports_file(folder: Path) -> str:
    while True:
        for file in folder.glob("*.ports"):
            with contextlib.suppress(ValueError):  # the file is incomplete
                return str(json.loads(file.read_text())["nats"][0])


async def test_a_missing_permission_exits_with_4(jsq: Command, locked: str) -> None:
    wrong_login = await jsq("job", "ls", "-s", f"nats://ann:wrong@{locked}")
    forbidden = await jsq("queue", "ls", "-s", f"nats://ann:secret@{locked}")

    assert (wrong_login.code, forbidden.code) == (4, 4)
    assert "refused the login as ann" in wrong_login.err
    assert "not allowed to publish" in forbidden.err
    assert "secret" not in forbidden.err
    assert "wrong" not in wrong_login.err


async def test_an_interrupted_command_exits_with_130_silently(jsq: Command, client: Client) -> None:
    job = await client.task("nobody").submit()
    async with jsq.running("submit", "nobody", "--id", job.id, "--wait", "--verbose") as process:
        assert process.stderr is not None
        assert (await process.stderr.readline()).startswith(b"connected to nats://")
        assert await process.stderr.readline() == f"job {job.id}\n".encode()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err in (b"", f"duplicate: job {job.id} was submitted before\n".encode())


async def test_an_interrupt_while_stdin_is_read_exits_with_130(jsq: Command) -> None:
    async with jsq.running("submit", "nobody", "-", code=READY) as process:
        assert process.stderr is not None
        assert await process.stderr.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


READY = """
import sys, jsq.cli, jsq.cli.stdin as lines
reads = lines.Source._read
def interrupt(source):
    print("ready", file=sys.stderr, flush=True)
    return reads(source)
lines.Source._read = interrupt
jsq.cli.run_command_line()
"""

BROKEN = """
import jsq.cli, jsq.client.jobs
jsq.client.jobs.JobsClient.list = None
jsq.cli.run_command_line()
"""


async def test_an_internal_error_is_one_line(jsq: Command) -> None:
    ended = await jsq("job", "ls", code=BROKEN)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("jsq: internal error: TypeError: ")
    assert len(ended.err.splitlines()) == 1

    ended = await jsq("job", "ls", code=BROKEN, environment={"JSQ_DEBUG": "1"})
    assert "Traceback" in ended.err


@pytest.mark.parametrize("words", [[], ["job"], ["queue"], ["dead"]])
async def test_a_group_without_a_command_lists_its_commands_on_stderr(jsq: Command, words: list[str]) -> None:
    ended = await jsq(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ("Commands:" if words else "Inspect:") in ended.err


async def test_a_hidden_option_is_not_suggested(jsq: Command) -> None:
    ended = await jsq("worker", "shop:app", "--supervise")
    assert (ended.code, "supervised" in ended.err) == (2, False)


async def test_a_misspelt_command_gets_a_suggestion(jsq: Command) -> None:
    for words, meant in ((["sumbit"], "submit"), (["job", "lst"], "ls")):
        ended = await jsq(*words)
        assert ended.code == 2
        assert f"is '{meant}' meant?" in ended.err
        assert len(ended.err.splitlines()) == 1


# -- streams --------------------------------------------------------------------------------------------


async def test_help_needs_no_server_and_imports_little(jsq: Command) -> None:
    ended = await jsq("--help", code=LOADED)

    assert ended.code == 0
    loaded = set(ended.err.split())
    assert not loaded & {
        "nats",
        "pydantic",
        "rich",
        "asyncio",
        "prometheus_client",
        "jsq.client.client",
        "jsq.broker",
    }
    for word in (
        "dev",
        "demo",
        "worker",
        "submit",
        "job",
        "queue",
        "dead",
        "events",
        "provision",
        "doctor",
        "sweep",
    ):
        assert re.search(rf"^  {word} ", ended.out, re.MULTILINE)


async def test_a_query_imports_neither_the_app_nor_adapters_nor_tables(jsq: Command) -> None:
    ended = await jsq("job", "ls", code=LOADED)

    assert (ended.code, ended.out) == (0, "")
    loaded = set(ended.err.split())
    assert "jsq.client.client" in loaded
    assert not loaded & NOT_FOR_A_QUERY


async def test_a_read_of_one_job_imports_only_the_code_that_reads_records(
    jsq: Command, client: Client
) -> None:
    job = await client.task("nobody").submit()

    ended = await jsq("job", "get", job.id, "-o", "name", code=LOADED)

    assert (ended.code, ended.out) == (0, f"{job.id}\n")
    loaded = set(ended.err.split())
    assert "jsq.client.lookup" in loaded
    assert not loaded & NOT_FOR_A_QUERY
    assert not [name for name in loaded if name.startswith(NOT_FOR_ONE_JOB)]


NOT_FOR_A_QUERY = {
    *("jsq.app", "jsq.task", "jsq.declaration", "jsq.batch", "jsq.executors", "jsq.worker"),
    *("jsq.context", "jsq.dependencies", "jsq.lifespan", "jsq.middleware", "jsq.hooks"),
    *("typer._adapters", "rich", "prometheus_client", "pydantic", "jsq.broker.health.doctor"),
}
"""The modules that no query imports: each costs CPU time at the start of a command."""

NOT_FOR_ONE_JOB = (
    *("jsq.broker.broker", "jsq.broker.access", "jsq.broker.flow", "jsq.broker.maintenance"),
    *("jsq.broker.operations", "jsq.broker.schedules", "jsq.broker.submit", "jsq.broker.jobs.writer"),
    *("jsq.client.client", "jsq.client.handle", "jsq.client.submitter", "jsq.cli.job.", "jsq.cli.session"),
    *("jsq.codec.signature", "jsq.model.schedule", "jsq.model.outcome", "zoneinfo", "cronsim"),
)
"""The beginnings of the names of modules that `jsq job get` does not import either."""


LOADED = """
import atexit, sys, jsq.cli
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
jsq.cli.run_command_line()
"""


@pytest.mark.parametrize(
    "words",
    ["dev", "demo", "worker", "submit", "job", "job ls", "queue purge", "dead retry", "events", "version"],
)
async def test_every_command_has_help(jsq: Command, words: str) -> None:
    ended = await jsq(*words.split(), "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: jsq {words} ")


@pytest.mark.parametrize(
    "words", [["job", "ls"], ["job", "ls", "-o", "table"], ["--help"], ["events", "--no-follow"]]
)
async def test_a_closed_pipe_ends_the_command_silently(
    jsq: Command, client: Client, words: list[str]
) -> None:
    for number in range(20):
        job = await client.task("nobody").submit()
        if number % 2:
            await job.cancel()  # this produces an event
    ended = await jsq(code=CLOSED_PIPE.format(words=words))

    assert (ended.code, ended.err) == (141, "")


CLOSED_PIPE = """
import os, sys
ours, theirs = os.pipe()
os.dup2(theirs, 1)
os.close(ours)
os.execv(sys.executable, [sys.executable, "-m", "jsq", *{words}])
"""


async def test_stdout_and_stderr_may_be_closed(jsq: Command) -> None:
    for closed in (1, 2):
        ended = await jsq(code=CLOSED_STREAM.format(number=closed))
        assert (ended.code, ended.err) == (0, "")


CLOSED_STREAM = """
import os, sys
os.close({number})
os.execv(sys.executable, [sys.executable, "-m", "jsq", "job", "ls"])
"""


@pytest.fixture
async def hostile(app: App, client: Client, working: Working, dying: Dying) -> str:
    """The id of a job with hostile text in every field."""

    @app.task(retries=0)
    async def evil(text: str) -> None:
        raise Reject(text)

    async with working():
        job = await client.task("evil").submit(HOSTILE)
        await job.wait(timeout=10)
        await dying()
    return job.id


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "yaml", "name"])
async def test_hostile_texts_are_escaped(jsq: Command, hostile: str, form: str) -> None:
    for words in (
        ["job", "ls"],
        ["job", "get", hostile],
        ["dead", "get", hostile],
        ["events", "--no-follow"],
    ):
        ended = await jsq(*words, "-o", form)
        assert ended.code == 0, ended.err
        assert all(line.isprintable() for line in ended.out.splitlines()), words
        if form in ("json", "jsonl") and words[:2] == ["job", "get"]:
            assert ended.json["error"] == f"Reject: {HOSTILE}"
    ended = await jsq("job", "result", hostile, "--verbose")
    assert ended.code == 3
    assert all(line.isprintable() for line in ended.err.splitlines())


async def test_a_terminal_gets_a_table_in_colors(jsq: Command, hostile: str) -> None:
    ended = await jsq.on_terminal("job", "ls", environment={"COLUMNS": "100"})
    plain = await jsq.on_terminal("job", "ls", environment={"COLUMNS": "100", "NO_COLOR": "1"})

    assert COLORS.search(ended.out)
    assert r"\x1b[31m" in ended.out
    assert "[red]bold" in ended.out or r"\r" in ended.out
    assert not COLORS.search(plain.out)
    assert hostile in plain.out


async def test_a_terminal_gets_a_single_object_field_by_field(jsq: Command, hostile: str) -> None:
    ended = await jsq.on_terminal("job", "get", hostile)
    assert f"id: {hostile}\r\n" in ended.out
    assert "state: \x1b[31mfailed\x1b[0m\r\n" in ended.out


async def test_a_worker_loads_its_app_outside_of_the_event_loop(jsq: Command, client: Client) -> None:
    jsq.write(
        "shop.py",
        f"import asyncio\nfrom jsq import App\nasync def name(): return {client.namespace!r}\n"
        "app = App(namespace=asyncio.run(name()))\n@app.task\ndef any(): ...\n",
    )
    ended = await jsq("worker", "shop:app", "--burst")
    assert (ended.code, "worker stopped" in ended.err) == (0, True), ended.err


async def test_twenty_columns_are_enough(jsq: Command, hostile: str) -> None:
    ended = await jsq("job", "ls", "-o", "table", environment={"COLUMNS": "20"})
    assert ended.code == 0
    assert f"id: {hostile}\nstate: failed\n" in ended.out
    for words in (
        ["--help"],
        ["submit", "--help"],
        ["queue", "stats", "-o", "table"],
        ["doctor", "-o", "table"],
    ):
        assert (await jsq(*words, environment={"COLUMNS": "20"})).code == 0


async def test_an_ascii_locale_is_enough(jsq: Command, app: App, working: Working) -> None:
    @app.task
    async def echo(text: str) -> str:
        return text

    async with working():
        ended = await jsq("submit", "echo", "é\U0001f600", "--wait", environment=ASCII)
    assert ended.json == "é\U0001f600"
    assert ended.out.isascii()


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
async def test_each_output_format_is_ascii_in_an_ascii_locale(
    jsq: Command, client: Client, form: str, listed: Listed
) -> None:
    await client.task("nobody").options(tags=["é"]).submit()
    await listed()
    ended = await jsq("job", "ls", "-o", form, environment=ASCII)
    assert ended.code == 0, ended.err
    assert ended.out.isascii()


async def test_an_error_is_ascii_in_an_ascii_locale(jsq: Command) -> None:
    ended = await jsq("submit", "é", environment=ASCII)
    assert ended.code == 2
    assert ended.err.isascii()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("submt",), "no such command 'submt'; is 'submit' meant? See `jsq --help`"),
        (
            ("dead", "show"),
            "no such command 'show': there are ls, get, retry, purge; see `jsq dead --help`",
        ),
        (("-s", "nats://a:1", "job"), "no such option: -s: write the options of a command after its name;"),
        (
            ("job", "ls", "--sate", "failed"),
            "no such option: --sate; is --since or --state meant? See `jsq job ls --help`",
        ),
        (("job", "ls", "--limit", "0"), "invalid value for '--limit' / '-n': must be 1 or more, got 0; see"),
        (
            ("job", "ls", "--limit", "few"),
            "invalid value for '--limit' / '-n': must be a whole number, got 'few'; see",
        ),
    ],
)
async def test_an_unknown_word_is_answered_with_the_valid_ones(
    jsq: Command, words: tuple[str, ...], message: str
) -> None:
    ended = await jsq(*words)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert ended.err.startswith(f"jsq: error: {message}")


@pytest.mark.parametrize("word", ["", "job", "queue", "schedule", "dead"])
async def test_help_shows_the_purpose_of_each_command_uncut(jsq: Command, word: str) -> None:
    page = (await jsq(*filter(None, [word]), "--help", environment={"COLUMNS": "80"})).out
    commands = page.partition("Commands:" if word else "Develop:")[2].splitlines()
    assert commands
    assert [line for line in commands if line.endswith("...")] == []
