"""`jsq submit`: one job, or one for each line of stdin."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import App, Client, Context
from tests.acceptance.conftest import Command
from tests.helpers.conditions import Until

Working = Callable[..., AbstractAsyncContextManager[Any]]

SHOP = """
from jsq import App
app = App()

@app.task(name="mail.send", queue="emails", priority="high", tags=["mail"])
def send(to: str, times: int = 1) -> str: ...
"""


@pytest.fixture
def tasks(app: App) -> App:
    @app.task
    async def echo(ctx: Context, *args: Any, **named: Any) -> Any:
        return {"args": args, "named": named, "headers": dict(ctx.headers)}

    @app.task(retries=0)
    async def fails(reason: str) -> None:
        raise ValueError(reason)

    @app.task
    async def one() -> int:
        return 1

    return app


async def test_a_submit_prints_only_the_id(jsq: Command, client: Client) -> None:
    ended = await jsq("submit", "echo", "1")

    assert (ended.code, ended.err) == (0, "")
    job = client.jobs.handle(ended.out.strip())
    assert (await job.status()).task == "echo"


async def test_arguments_are_json_if_they_are_json(jsq: Command, tasks: App, working: Working) -> None:
    async with working():
        ended = await jsq(
            "submit", "echo", "1", "one", '"1"', "[2]", "--arg", "to=a=b", "--arg", "n=-5", "--wait"
        )

    assert ended.code == 0, ended.err
    assert ended.json["args"] == [1, "one", "1", [2]]
    assert ended.json["named"] == {"to": "a=b", "n": -5}


async def test_raw_takes_everything_as_text(jsq: Command, tasks: App, working: Working) -> None:
    async with working():
        ended = await jsq("submit", "echo", "1", "-", "--arg", "n=true", "--raw", "--wait")

    assert ended.json["args"] == ["1", "-"]
    assert ended.json["named"] == {"n": "true"}


async def test_words_like_options_must_follow_two_dashes(jsq: Command, tasks: App, working: Working) -> None:
    async with working():
        ended = await jsq("submit", "--wait", "echo", "--", "-5", "--queue", "-")
        refused = await jsq("submit", "echo", "-5")

    assert ended.code == 2
    assert "- must be the only ARG" in ended.err
    assert refused.code == 2
    assert "no such option" in refused.err
    async with working():
        ended = await jsq("submit", "--wait", "echo", "--", "-5", "--queue")
    assert ended.json["args"] == [-5, "--queue"]


async def test_all_arguments_can_be_given_as_json(jsq: Command, tasks: App, working: Working) -> None:
    async with working():
        named = await jsq("submit", "echo", "--json", '{"a": {"b": null}}', "--wait")
        listed = await jsq("submit", "echo", "--json", "[1, 2]", "--wait")

    assert named.json["named"] == {"a": {"b": None}}
    assert listed.json["args"] == [1, 2]


async def test_options_reach_the_job(jsq: Command, client: Client, tasks: App, working: Working) -> None:
    options = [
        "--queue",
        "slow",
        "--priority",
        "low",
        "--tag",
        "x",
        "--tag",
        "y",
        "--header",
        "trace=7",
        "--retries",
        "1",
        "--backoff",
        "1,5m",
    ]
    more = ["--timeout", "5m", "--keep-result", "2d", "--id", "mine", "--wait"]
    async with working(queues=["slow"]):
        ended = await jsq("submit", "echo", *options, *more)

    assert ended.json["headers"] == {"trace": "7"}
    found = await client.jobs.handle("mine").status()
    assert (found.queue, list(found.tags)) == ("slow", ["x", "y"])


async def test_retries_can_be_chosen_at_a_submit(
    jsq: Command, client: Client, tasks: App, working: Working
) -> None:
    options = [
        *("--retries", "3", "--backoff", "0.1,60", "--backoff-max", "30s", "--jitter", "0"),
        *("--retry-for", "10s", "--id", "mine"),
    ]
    async with working():
        ended = await jsq("submit", "fails", "no", *options, "--wait")

    assert ended.code == 3
    history = await (await client.broker()).records.history("mine")
    # The second wait would take 30 s, and the retry window ends before.
    assert [event.state for event in history if event.state != "queued"] == [
        *("running", "retrying", "running"),
        "failed",
    ]


async def test_a_job_can_be_delayed(jsq: Command, client: Client) -> None:
    now = datetime.now(UTC)
    in_a_while = await jsq("submit", "echo", "--delay", "1h30m")
    later = await jsq("submit", "echo", "--at", (now + timedelta(days=1)).isoformat())

    for ended, wait in ((in_a_while, timedelta(minutes=90)), (later, timedelta(days=1))):
        found = await client.jobs.handle(ended.out.strip()).status()
        assert found.state == "scheduled"
        assert found.due is not None
        assert abs(found.due - now - wait) < timedelta(seconds=10)


async def test_a_failed_job_exits_with_3_and_its_error_on_stderr(
    jsq: Command, tasks: App, working: Working
) -> None:
    async with working():
        ended = await jsq("submit", "fails", "so it is", "--wait")
        verbose = await jsq("submit", "fails", "so it is", "--wait", "--verbose")

    assert (ended.code, ended.out) == (3, "")
    assert ended.err.splitlines()[-1].endswith("failed (error): ValueError: so it is")
    assert "Traceback" not in ended.err
    assert "raise ValueError(reason)" in verbose.err


async def test_a_wait_reports_that_no_worker_serves_the_queue(jsq: Command) -> None:
    ended = await jsq("submit", "echo", "--queue", "idle", "--wait", "--wait-timeout", "2.5s")

    assert (ended.code, ended.out) == (124, "")
    assert ended.err.startswith("jsq: waiting: no live worker serves queue idle\n")


async def test_a_wait_shows_the_progress_on_a_terminal(
    jsq: Command, app: App, client: Client, working: Working
) -> None:
    @app.task
    async def half(ctx: Context) -> None:
        ctx.progress(0.5, "pages")
        await asyncio.Event().wait()

    async with working():
        ended = await jsq.on_terminal("submit", "half", "--id", "p1", "--wait", "--wait-timeout", "3s")
        await client.jobs.cancel("p1")

    assert ended.code == 124
    assert "\r\x1b[Krunning 50% pages" in ended.out


async def test_json_arguments_come_from_a_file(jsq: Command, client: Client) -> None:
    jsq.write("call.json", '{"to": "you",\n "times": 2}\n')
    jsq.write("wrong.json", '{"to":\n tru}')

    ended = await jsq("submit", "echo", "--json", "@call.json")
    wrong = await jsq("submit", "echo", "--json", "@wrong.json")

    job = await client.jobs.get(ended.out.strip())
    assert job.arguments == [[], {"to": "you", "times": 2}]
    assert (wrong.code, "--json wrong.json: line 2 column 2: not JSON" in wrong.err) == (2, True)


async def test_a_wait_that_times_out_exits_with_124(jsq: Command) -> None:
    ended = await jsq("submit", "echo", "--wait", "--wait-timeout", "100ms")

    assert (ended.code, ended.out) == (124, "")
    [reason, error] = ended.err.splitlines()
    assert reason == "jsq: waiting: no live worker serves queue default"
    assert error.endswith("did not end within 0.1 s; it continues")


async def test_a_wait_that_times_out_shows_when_the_job_is_due(
    jsq: Command, tasks: App, client: Client, working: Working, until: Until
) -> None:
    @tasks.task(retries=1, backoff=[3600])
    async def decline() -> None:
        raise ValueError("no money")

    async with working():
        job = await decline.submit()
        await until(lambda: is_retrying(client, job.id))
        retried = await jsq("job", "result", job.id, "--timeout", "100ms")
    delayed = await jsq("submit", "echo", "--delay", "1h", "--wait", "--wait-timeout", "100ms")

    assert "waiting: attempt 1 failed (ValueError: no money); the job is due at " in retried.err
    assert delayed.err.startswith("jsq: waiting: the job is due at ")


async def is_retrying(client: Client, id: str) -> bool:
    return (await client.jobs.get(id)).state == "retrying"


async def test_a_held_unique_key_returns_its_job_or_exits_with_6(jsq: Command) -> None:
    first = await jsq("submit", "echo", "1", "--unique", "k")
    again = await jsq("submit", "echo", "2", "--unique", "k", "-o", "json")
    strict = await jsq("submit", "echo", "3", "--unique", "k", "--on-duplicate", "raise")
    newer = await jsq("submit", "echo", "4", "--unique", "k", "--on-duplicate", "replace", "-o", "json")

    held = first.out.strip()
    assert (first.code, again.code, again.json["id"], again.json["duplicate"]) == (0, 0, held, True)
    assert (strict.code, strict.out) == (6, "")
    assert f"job {held} holds this unique key" in strict.err
    assert newer.json["duplicate"] is False
    assert newer.json["id"] != held


async def test_debounce_throttle_and_a_window_on_the_command_line(jsq: Command) -> None:
    for options in (
        ("--debounce", "1m"),
        ("--throttle", "1m"),
        ("--unique-for", "1h"),
        ("--unique-until", "start"),
    ):
        ended = [await jsq("submit", "echo", "1", "--unique", options[0], *options) for _ in range(2)]
        assert [one.code for one in ended] == [0, 0]
        assert ended[0].out == ended[1].out
        assert ended[1].err.startswith("duplicate:")
    lines = await jsq("submit", "echo", "-", "--unique", "bulk", stdin=b"[1]\n[2]\n")
    assert (lines.code, len(set(lines.out.split()))) == (0, 1)


@pytest.mark.parametrize(
    "options",
    [
        ("--debounce", "5"),
        ("--unique", ""),
        ("--unique", "k", "--on-duplicate", "skip"),
        ("--unique", "k", "--unique-until", "end"),
        ("--unique", "k", "--unique-for", "0.1"),
        ("--unique", "k", "--debounce", "5", "--throttle", "5"),
    ],
)
async def test_an_invalid_option_of_a_unique_key_is_a_usage_error(
    jsq: Command, options: tuple[str, ...]
) -> None:
    ended = await jsq("submit", "echo", *options)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1


async def test_submitting_the_same_id_returns_the_same_job(jsq: Command, client: Client) -> None:
    first = await jsq("submit", "echo", "--id", "mine")
    again = await jsq("submit", "echo", "--id", "mine")
    strict = await jsq("submit", "echo", "--id", "mine", "--on-duplicate", "raise")
    as_json = await jsq("submit", "echo", "--id", "mine", "-o", "json")

    assert (first.code, first.out, first.err) == (0, "mine\n", "")
    assert (again.code, again.out) == (0, "mine\n")
    assert again.err.startswith("duplicate:")
    assert (strict.code, strict.out) == (6, "mine\n")
    assert as_json.json == {"id": "mine", "queue": "default", "duplicate": True}
    assert len(await client.jobs.list()) == 1


async def test_an_app_gives_queue_and_options_and_checks_arguments(jsq: Command, client: Client) -> None:
    await client.admin.provision()
    jsq.write("shop.py", SHOP)
    app = ["--app", "shop", "--namespace", client.namespace]

    good = await jsq("submit", "mail.send", "a@b.c", *app)
    bad = await jsq("submit", "mail.send", "a@b.c", "often", *app)
    unknown = await jsq("submit", "mail.read", *app)

    [found] = await client.jobs.list()
    assert (found.id, found.queue, list(found.tags)) == (good.out.strip(), "emails", ["mail"])
    assert (bad.code, unknown.code) == (2, 2)
    assert "times: Input should be a valid integer" in bad.err
    assert "no task is named 'mail.read'" in unknown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a b"], "task name must be"),
        (["echo", "--queue", "a.b"], "queue name must be"),
        (["echo", "--id", "a\tb"], "job id must be"),
        (["echo", "--priority", "urgent"], "must be one of high, normal, low"),
        (["echo", "--delay", "soon"], "not a duration"),
        (["echo", "--delay", "-5"], "not a duration"),
        (["echo", "--delay", "400d"], "must be 0 to 31622400 seconds"),
        (["echo", "--delay", "1h", "--at", "2030-01-01T00:00Z"], "must not be combined with delay"),
        (["echo", "--at", "2030-01-01"], "time zone"),
        (["echo", "--retries", "many"], "a whole number"),
        (["echo", "--retries", "-1"], "whole number"),
        (["echo", "--backoff", "quick"], "none, linear, exponential"),
        (["echo", "--backoff", "linear", "--jitter", "2"], "jitter must be True, False or a number"),
        (["echo", "--jitter", "0.5"], "jitter must be used together with backoff"),
        (["echo", "--backoff", "linear", "--backoff-max", "0"], "backoff_max must "),
        (["echo", "--retry-for", "0"], "retry_for must "),
        (["echo", "--retry-for", "2020-01-01T00:00Z"], "must be in the future"),
        (["echo", "--timeout", "0"], "timeout"),
        (["echo", "--wait-for-room", "long"], "not a duration"),
        (["echo", "--header", "trace"], "name=value"),
        (["echo", "--header", "Nats-TTL=1"], "reserved"),
        (["echo", "--tag", ""], "tag"),
        (["echo", "--arg", "=1"], "name=value"),
        (["echo", "1", "--json", "{}"], "use it without ARG"),
        (["echo", "--json", "5"], "an object"),
        (["echo", "--json", '{"a":\n 1,}'], "--json: line 2 column 4"),
        (["echo", "--json", '["\\ud800"]'], "cannot be sent as JSON"),
        (["echo", "--app", "nowhere"], "no module is named nowhere"),
        (["echo", "--output", "xml"], "--output"),
        (["echo", "--no-such"], "no such option"),
        (["echo", "--wait-timeout", "1s"], "give --wait too"),
        (["echo", "--expires", "soon"], "'soon' is neither a duration (90, 5m, 2d) nor a moment"),
        ([], "missing argument"),
        (["echo", "-", "--id", "x"], "use it without"),
        (["echo", "-", "--wait"], "use it without"),
    ],
)
async def test_an_invalid_option_of_a_submit_is_a_usage_error(
    jsq: Command, client: Client, words: list[str], message: str
) -> None:
    ended = await jsq("submit", *words, stdin=b"[]\n")

    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert await client.jobs.list() == []


# -- bulk submits ---------------------------------------------------------------------------------------


async def test_each_line_of_stdin_is_a_job(
    jsq: Command, client: Client, tasks: App, working: Working
) -> None:
    lines = [json.dumps([n] if n % 2 else {"n": n}) for n in range(450)]
    ended = await jsq("submit", "echo", "-", stdin="\n".join(lines).encode())

    ids = ended.out.split()
    assert (ended.code, ended.err, len(ids)) == (0, "", 450)
    async with working(concurrency=100):
        results = [await client.jobs.handle(id).result(timeout=10) for id in ids]
    assert [one["args"][0] if one["args"] else one["named"]["n"] for one in results] == list(range(450))


async def test_empty_input_submits_no_job(jsq: Command) -> None:
    ended = await jsq("submit", "echo", "-", stdin=b"\n\n")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": }', "standard input: line 3 column 7: not JSON"),
        (b"5", "standard input: line 3: write an object"),
        (b"[\xff]", "standard input: line 3 column 2: not UTF-8"),
        (b'["\\ud800"]', "standard input: line 3: "),
        (b"[" * 100_000, "standard input: line 3: nested too deep"),
        (b'["' + b"x" * 10_000_000, "standard input: line 3 column 2: not JSON: Unterminated"),
    ],
)
async def test_one_invalid_line_prevents_all_submits(
    jsq: Command, client: Client, line: bytes, message: str
) -> None:
    ended = await jsq("submit", "echo", "-", stdin=b"[1]\n\n" + line + b"\n[2]\n")

    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert await client.jobs.list() == []


async def test_lines_are_checked_against_the_app(jsq: Command, client: Client) -> None:
    jsq.write("shop.py", SHOP)
    lines = b'["a"]\n{"to": "b", "times": "often"}\n'
    ended = await jsq(
        "submit", "mail.send", "-", "--app", "shop", "--namespace", client.namespace, stdin=lines
    )

    assert ended.code == 2
    assert "line 2: send: times: Input should be" in ended.err
    assert await client.jobs.list() == []


async def test_a_bulk_submit_that_fails_midway_reports_its_progress(
    jsq: Command, app: App, client: Client
) -> None:
    app.queue("small", max_jobs=250)
    await client.admin.provision(app.declared)

    ended = await jsq("submit", "echo", "-", "--queue", "small", stdin=b"[]\n" * 1_000)

    [stats] = await client.queues.stats("small")
    assert ended.code == 1
    assert len(ended.out.split()) == stats.waiting["normal"] == 250
    first, progress, error = ended.err.splitlines()
    assert first.startswith("standard input: line 2")
    assert progress == "250 of 1,000 jobs stored for certain; go on with --from-line 251"
    assert error.startswith("jsq: error: queue small is full")


async def test_a_bulk_submit_waits_for_room_in_a_small_queue(
    jsq: Command, app: App, client: Client, tasks: App, working: Working
) -> None:
    app.queue("small", max_jobs=20)
    await client.admin.provision(app.declared)
    words = ["submit", "echo", "-", "--queue", "small", "--wait-for-room", "30"]
    async with working(queues=["small"]):
        ended = await jsq(*words, stdin=b"".join(b"[%d]\n" % number for number in range(500)))
        ids = ended.out.split()
        assert (ended.code, ended.err, len(set(ids))) == (0, "", 500)
        results = [await client.jobs.handle(id).result(timeout=10) for id in ids]
    assert [one["args"][0] for one in results] == list(range(500))


async def test_a_queue_without_room_in_time_is_reported(jsq: Command, app: App, client: Client) -> None:
    app.queue("small", max_jobs=1)
    await client.admin.provision(app.declared)
    await client.task("any").options(queue="small").submit()
    for words in (["1"], ["-"]):
        ended = await jsq(
            "submit", "echo", *words, "--queue", "small", "--wait-for-room", "0.3", stdin=b"[]\n"
        )
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.splitlines()[-1].startswith("jsq: error: queue small is full: its max_jobs, 1, is")


async def test_the_record_of_a_job_has_its_key(
    jsq: Command, client: Client, tasks: App, working: Working
) -> None:
    submitted = await jsq("submit", "one", "--key", "tenant 7", "--per-key", "1")
    assert submitted.code == 0
    id = submitted.out.strip()
    shown = await jsq("job", "get", id, "-o", "json")
    assert json.loads(shown.out)["key"] == "tenant 7"
    stats = json.loads((await jsq("queue", "stats", "default", "-o", "json")).out)
    assert (stats[0] if isinstance(stats, list) else stats)["waiting_for_key"] == 1
    many = await jsq("submit", "one", "-", "--key", "tenant 7", stdin=b"[]\n[]\n")
    assert many.code == 0
    async with working():
        for line in (id, *many.out.split()):
            assert await client.jobs.handle(line).result(60) == 1


async def test_an_invalid_key_or_per_key_is_refused(jsq: Command) -> None:
    for words, message in (
        (("--key", ""), "key must be printable text of 1 to 256 characters"),
        (("--key", "k", "--per-key", "0"), "per_key must be a whole number from 1 to 1,000"),
        (("--per-key", "2"), "per_key must be used together with key"),
    ):
        ended = await jsq("submit", "one", *words)
        assert (ended.code, ended.out) == (2, "")
        assert message in ended.err


async def test_a_line_too_large_for_the_server_is_reported(jsq: Command) -> None:
    ended = await jsq("submit", "echo", "-", stdin=b'["' + b"x" * 10_000_000 + b'"]\n')

    assert (ended.code, ended.out) == (2, "")
    assert "line 1 was the first to fail" in ended.err
    assert "the server takes" in ended.err


async def test_stdin_may_be_closed(jsq: Command) -> None:
    ended = await jsq(code=CLOSED_STDIN)

    assert (ended.code, ended.err) == (2, "jsq: error: standard input is closed\n")


CLOSED_STDIN = """
import os, sys
os.close(0)
os.execv(sys.executable, [sys.executable, "-m", "jsq", "submit", "echo", "-"])
"""


async def test_people_see_a_progress_bar_and_then_the_ids(jsq: Command, client: Client) -> None:
    await client.admin.provision()
    ended = await jsq.on_terminal("submit", "echo", "-", typed=b"[1]\n[2]\n\x04")

    assert ended.code == 0
    assert "2/2" in ended.out
    ids = {job.id for job in await client.jobs.list()}
    assert all(f"{id}\r\n" in ended.out for id in ids)
    assert len(ids) == 2
