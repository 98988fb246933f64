"""`jsq submit TASK -` with many lines: interrupted, refused and resumed, each line is stored once."""

import asyncio
import json
import os
import signal
from collections import Counter
from typing import Any

import pytest

from jsq import App, Client
from jsq.codec.subject_token import ANY
from jsq.server import EmbeddedServer
from tests.acceptance.conftest import Command
from tests.helpers.conditions import Until


def lines(*numbers: int) -> bytes:
    return b"".join(b"[%d]\n" % number for number in numbers)


async def arguments(client: Client, queue: str = "default") -> list[int]:
    """The arguments of the jobs on a queue, in order."""
    broker = await client.broker()
    found = await broker.reads.fetch(
        broker.subjects.streams.ready(queue), broker.subjects.ready(queue, "*", ANY)
    )
    return [json.loads(one.payload)[0][0] for one in found]


def rejected(jsq: Command, name: str = "rejects") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (jsq.folder / name).read_text().splitlines()]


async def test_lines_with_an_id_prefix_are_stored_once(jsq: Command, client: Client) -> None:
    first = await jsq("submit", "any", "-", "--id-prefix", "import", stdin=lines(*range(300)))
    again = await jsq("submit", "any", "-", "--id-prefix", "import", stdin=lines(*range(400)))

    assert first.out.split() == [f"import-{n}" for n in range(1, 301)]
    assert (again.code, again.out.split()) == (0, [f"import-{n}" for n in range(1, 401)])
    assert await arguments(client) == list(range(400))


async def test_an_atomic_submit_stores_all_lines_or_none(jsq: Command, app: App, client: Client) -> None:
    app.queue("small", max_jobs=300)
    await client.admin.provision(app.declared)
    words = ["submit", "any", "-", "--queue", "small", "--all-or-nothing"]

    full = await jsq(*words, stdin=lines(*range(301)))
    many = await jsq(*words, stdin=lines(*range(1_001)))
    assert await arguments(client, "small") == []
    fitting = await jsq(*words, stdin=lines(*range(300)))

    assert (full.code, full.out) == (1, "")
    assert "0 of 301 jobs stored for certain; go on with --from-line 1" in full.err
    assert (many.code, many.out) == (2, "")
    assert "--all-or-nothing must be 1,000 jobs at most" in many.err
    assert (fitting.code, len(fitting.out.split())) == (0, 300)
    assert await arguments(client, "small") == list(range(300))


async def test_a_full_queue_is_reported_with_the_line_to_continue_from(
    jsq: Command, app: App, client: Client
) -> None:
    app.queue("small", max_jobs=250)
    await client.admin.provision(app.declared)
    ended = await jsq("submit", "any", "-", "--queue", "small", stdin=lines(*range(400)))

    assert ended.code == 1
    assert "250 of 400 jobs stored for certain; go on with --from-line 251" in ended.err
    app.queue("small", max_jobs=1_000)
    await client.admin.provision(app.declared)
    more = await jsq("submit", "any", "-", "--queue", "small", "--from-line", "251", stdin=lines(*range(400)))
    assert (more.code, more.err) == (0, "")
    assert await arguments(client, "small") == list(range(400))


async def test_the_rejects_file_of_a_full_queue_can_be_submitted_unchanged(
    jsq: Command, app: App, client: Client
) -> None:
    app.queue("small", max_jobs=250)
    await client.admin.provision(app.declared)
    words = ["submit", "any", "-", "--queue", "small"]
    ended = await jsq(*words, "--rejects", "rejects", stdin=lines(*range(5_000)))

    assert ended.code == 1
    assert "250 of 5,000 jobs stored for certain; 4,750 lines in rejects to be submitted" in ended.err
    assert "--from-line" not in ended.err
    assert [one["@line"] for one in rejected(jsq)] == list(range(251, 5_001))
    assert "queue small is full" in rejected(jsq)[0]["@error"]
    app.queue("small", max_jobs=10_000)
    await client.admin.provision(app.declared)
    more = await jsq(*words, "--rejects", "none", stdin=(jsq.folder / "rejects").read_bytes())
    assert (more.code, more.err) == (0, "")
    assert rejected(jsq, "none") == []
    assert await arguments(client, "small") == list(range(5_000))


async def test_invalid_lines_go_to_the_rejects_file_and_the_others_are_stored(
    jsq: Command, client: Client
) -> None:
    wrong = b'[1]\n\n{"a": }\n5\n[\xff]\n["' + b"x" * 2_000_000 + b'"]\n[2]\n'
    ended = await jsq("submit", "any", "-", "--id-prefix", "b", "--rejects", "rejects", stdin=wrong)

    assert ended.code == 2
    assert ended.out.split() == ["b-1", "b-7"]
    assert "4 lines were not submitted; correct rejects" in ended.err
    rejects = {one["@line"]: one for one in rejected(jsq)}
    assert sorted(rejects) == [3, 4, 5, 6]
    assert rejects[3]["@text"] == '{"a": }'
    assert "not JSON" in rejects[3]["@error"]
    assert "the server takes" in rejects[6]["@error"]
    corrected = [{**rejects[3], "@text": '{"a": 3}'}, {**rejects[4], "@text": "[4]"}]
    more = await jsq(
        "submit", "any", "-", "--id-prefix", "b", stdin="\n".join(map(json.dumps, corrected)).encode()
    )
    assert (more.code, more.out.split()) == (0, ["b-3", "b-4"])


async def test_lines_can_be_checked_without_a_server(jsq: Command) -> None:
    nowhere = {"JSQ_URL": "nats://127.0.0.1:1"}
    good = await jsq("submit", "any", "-", "--check", stdin=lines(*range(50)), environment=nowhere)
    bad = await jsq("submit", "any", "-", "--check", stdin=b"[1]\n[2\n", environment=nowhere)

    assert (good.code, good.out, good.err) == (0, "", "50 lines can be submitted\n")
    assert (bad.code, bad.out) == (2, "")
    assert "line 2" in bad.err


async def test_an_interrupted_submit_names_the_line_to_continue_from(
    jsq: Command, client: Client, until: Until
) -> None:
    """The command sends parts of the input while stdin is open, because it buffers only few lines."""
    await client.admin.provision()
    async with jsq.running("submit", "any", "-", code=HOLDING_LITTLE) as process:
        assert process.stdin is not None
        process.stdin.write(lines(*range(3_000)))
        await process.stdin.drain()

        async def stored() -> bool:
            return (await client.queues.stats("default"))[0].waiting["normal"] == 3_000

        await until(stored)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert process.returncode == 130
    assert len(out.split()) == 3_000
    assert err.decode() == "3,000 jobs stored for certain; go on with --from-line 3001\n"
    more = await jsq("submit", "any", "-", "--from-line", "3001", stdin=lines(*range(3_100)))
    assert (more.code, len(more.out.split())) == (0, 100)
    assert await arguments(client) == list(range(3_100))


async def test_a_submit_interrupted_during_its_checks_has_sent_nothing(jsq: Command, client: Client) -> None:
    await client.admin.provision()
    async with jsq.running("submit", "any", "-", code=TELLING) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(lines(*range(100)))
        await process.stdin.drain()
        await process.stdout.readuntil(b"read 100\n")
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert (process.returncode, out) == (130, b"")
    assert err.decode() == "0 jobs stored for certain; go on with --from-line 1\n"
    assert await arguments(client) == []


async def test_the_rejects_file_completes_a_submit_whose_server_died(
    jsq: Command, own_server: EmbeddedServer, namespace: str
) -> None:
    """After the second run each line is stored once, whether the first run stored it or not."""
    environment = {"JSQ_URL": own_server.url}
    async with Client(own_server.url, namespace=namespace) as client:
        await client.admin.provision()
        words = ["submit", "any", "-", "--rejects", "rejects"]
        async with jsq.running(*words, code=HOLDING_LITTLE, environment=environment) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(lines(*range(20_000)))
            await process.stdout.readline()
            own_server.kill()
            process.stdin.close()
            _, err = await asyncio.wait_for(process.communicate(), 60)
        own_server.restart()
        assert process.returncode == 7, err
        assert "to be submitted again" in err.decode()
        rejects = rejected(jsq)
        begin = next(
            (int(line.rsplit(" ", 1)[1]) for line in err.decode().splitlines() if "--from" in line), 0
        )
        again = await jsq(
            "submit", "any", "-", stdin=(jsq.folder / "rejects").read_bytes(), environment=environment
        )
        assert again.code == 0, again.err
        if begin:
            rest = await jsq(
                *("submit", "any", "-", "--from-line", str(begin)),
                stdin=lines(*range(20_000)),
                environment=environment,
            )
            assert rest.code == 0, rest.err
        assert rejects
        assert Counter(await arguments(client)) == Counter(range(20_000))


async def test_lines_with_an_unknown_outcome_go_to_the_rejects_file_with_their_ids(
    jsq: Command, own_server: EmbeddedServer, namespace: str
) -> None:
    """A halted server stores received lines when it resumes. A second submit stores none of them twice."""
    environment = {"JSQ_URL": own_server.url}
    async with Client(own_server.url, namespace=namespace) as client:
        await client.admin.provision()
        words = ["submit", "any", "-", "--rejects", "rejects"]
        async with jsq.running(*words, code=HOLDING_LITTLE, environment=environment) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(lines(*range(10)))
            for _ in range(10):
                await process.stdout.readline()
            os.kill(own_server.pid, signal.SIGSTOP)
            process.stdin.write(lines(*range(10, 500)))
            process.stdin.close()
            _, err = await asyncio.wait_for(process.communicate(), 60)
            os.kill(own_server.pid, signal.SIGCONT)
        assert process.returncode == 7, err
        rejects = rejected(jsq)
        assert [one["@line"] for one in rejects] == list(range(11, 501))
        assert all(one["@id"] for one in rejects)

        # The server has stored the lines that reached it before the process ended; their number is unknown.
        again = await jsq(
            "submit", "any", "-", stdin=(jsq.folder / "rejects").read_bytes(), environment=environment
        )
        assert again.code == 0, again.err
        assert again.out.split() == [one["@id"] for one in rejects]
        assert Counter(await arguments(client)) == Counter(range(500))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1", "--id-prefix", "b"], "need -"),
        (["1", "--check"], "need -"),
        (["-", "--id-prefix", "a\tb"], "job id must be"),
        (["-", "--id-prefix", "x" * 120], "job id must be"),
        (["-", "--from-line", "0"], "--from-line must be 1 or more"),
        (["-", "--all-or-nothing", "--rejects", "r"], "cannot be used with --rejects"),
        (["-", "--rejects", "no/such/folder"], "--rejects no/such/folder: No such file"),
    ],
)
async def test_an_invalid_option_of_a_bulk_submit_is_a_usage_error(
    jsq: Command, client: Client, words: list[str], message: str
) -> None:
    ended = await jsq("submit", "any", *words, stdin=b"[]\n")
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert await client.jobs.list() == []


async def test_the_rejects_file_never_overwrites_the_input(jsq: Command) -> None:
    jsq.write("same", "[1]\n")
    ended = await jsq(code=SAME)
    assert ended.code == 2
    assert "this file is the input" in ended.err
    assert (jsq.folder / "same").read_text() == "[1]\n"


SAME = """
import os, sys
os.dup2(os.open("same", os.O_RDONLY), 0)
os.execv(sys.executable, [sys.executable, "-m", "jsq", "submit", "any", "-", "--rejects", "same"])
"""

HOLDING_LITTLE = """
import jsq.cli.bulk
from jsq.transport import retrying
jsq.cli.bulk.MAX_HELD_BYTES = 0
for call in (retrying.publish_with_retry, retrying.with_retry):
    call.__kwdefaults__ |= {"seconds": 4.0, "absent": 4.0}
from jsq.cli import run_command_line
run_command_line()
"""

TELLING = """
import jsq.cli.bulk
from jsq.cli import run_command_line
read = jsq.cli.bulk.Intake._read

async def interrupting(self, stop):
    async for some in read(self, stop):
        print("read", self._tally.read, flush=True)
        yield some

jsq.cli.bulk.Intake._read = interrupting
run_command_line()
"""
