"""Input of users is never a command: no name and no text acts on the server, or on another job."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from jsq import App, BadName, BadOption, Client, Context, JobFailed, JobHandle, Login, Reject
from jsq.errors import UsageError
from jsq.settings import QueueSettings
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

HOSTILE = (
    "a\r\nPUB evil 0\r\n\r\n",
    "a\r\nNats-Rollup: all",
    "a\nb",
    "a\rb",
    "a b",
    "a\tb",
    "a\0b",
    "*",
    ">",
    "a.>",
    "a.b.c",
    "..",
    "../../x",
    "$JS.API.STREAM.DELETE.X",
    "_INBOX.x",
    "\u2028",
    "\u202ex",
    "\ud800",
    "\uff41",
    "%s{}",
    "",
)

Act = Callable[[Client, str], Awaitable[object]]


async def on(
    client: Client, id: str, queue: str, call: Callable[[JobHandle[Any]], Awaitable[object]]
) -> None:
    await call(client.jobs.handle(id, queue))


async def watch(client: Client, *, job: str | None = None, queue: str | None = None) -> None:
    async for _ in client.jobs.events(job=job, queue=queue, follow=False):
        pass


NAMED: dict[str, Act] = {
    "queue of a submit": lambda c, text: c.task("t").options(queue=text).submit(),
    "queue of many": lambda c, text: c.task("t").options(queue=text).submit_many([[1], [2]]),
    "id of a submit": lambda c, text: c.task("t").options(id=text).submit(),
    "task": lambda c, text: c.task(text.replace(".", "/")).submit(),
    "header": lambda c, text: c.task("t").options(headers={text: "x"}).submit(),
    "id of a status": lambda c, text: on(c, text, "*", JobHandle.status),
    "id of a cancel": lambda c, text: on(c, text, "default", JobHandle.cancel),
    "queue of a status": lambda c, text: on(c, "x", text or "-", JobHandle.status),
    "id of a replay": lambda c, text: c.dead_letters.retry(text),
    "id of a dead letter": lambda c, text: c.dead_letters.get(text),
    "queue of a purge": lambda c, text: c.queues.purge(text),
    "queue of dead letters": lambda c, text: c.dead_letters.list(queue=text),
    "task of dead letters": lambda c, text: c.dead_letters.list(task=text.replace(".", "/")),
    "queue to provision": lambda c, text: c.admin.provision({text: QueueSettings()}),
    "queue of events": lambda c, text: watch(c, queue=text or "-"),
    "job of events": lambda c, text: watch(c, job=text or "\n"),
    "queue of a cancel": lambda c, text: c.jobs.cancel_many(queue=text or "-"),
    "queue of numbers": lambda c, text: c.queues.stats(text or "-"),
}


async def stored(client: Client) -> dict[str, int]:
    """The number of messages in each stream of the namespace."""
    broker = await client.broker()
    found = await broker.wire.api("STREAM.LIST", {"subject": f"{broker.subjects.namespace}.>"})
    return {one["config"]["name"]: one["state"]["messages"] for one in found["streams"]}


@pytest.mark.parametrize("place", NAMED)
async def test_a_hostile_name_is_refused_and_nothing_is_sent(client: Client, place: str) -> None:
    await (await client.task("any").submit()).status()
    await client.admin.provision()
    before = await stored(client)

    for text in HOSTILE:
        if text == "*" and place == "queue of a status":
            continue  # there it means any queue
        if text and text.isprintable() and place in ("id of a submit", "job of events"):
            continue  # there it is an id: see `test_ids.py`
        with pytest.raises(UsageError) as caught:
            await NAMED[place](client, text)
        assert "\n" not in str(caught.value)
        assert "\r" not in str(caught.value)

    assert await stored(client) == before


@pytest.mark.parametrize(
    "name", ["Nats-Rollup", "nats-rollup", "NATS-TTL", "Nats-Msg-Id", "Jsq-Job", "jsq-attempts"]
)
async def test_a_header_reserved_by_the_server_or_jsq_is_refused(client: Client, name: str) -> None:
    with pytest.raises(BadName, match="does not start with Nats- or Jsq-, which are reserved"):
        await client.task("t").options(headers={name: "all"}).submit()


@pytest.mark.parametrize("value", [text for text in HOSTILE if not text.isprintable()], ids=ascii)
async def test_a_header_with_more_than_one_line_is_refused(client: Client, value: str) -> None:
    with pytest.raises(BadOption, match="must be printable text of one line"):
        await client.task("t").options(headers={"X": value}).submit()


@pytest.mark.parametrize("text", [text for text in HOSTILE if text and text != "\ud800"], ids=ascii)
async def test_a_text_that_a_task_reports_stays_a_text(
    app: App, client: Client, working: Working, until: Until, text: str
) -> None:
    @app.task(name="report", retries=0)
    async def report(ctx: Context, label: str) -> str:
        ctx.progress(0.5, label)
        return label

    @app.task(name="fail", retries=0)
    async def fail(label: str) -> None:
        raise Reject(label)

    async with working():
        assert await (await client.task("report").submit(text)).result(60) == text
        failed = await client.task("fail").submit(text)
        with pytest.raises(JobFailed) as caught:
            await failed.result(60)
        assert caught.value.error == f"Reject: {text}"

        async def is_dead() -> bool:
            return len(await client.dead_letters.list()) == 1

        await until(is_dead)
    [dead_letter] = await client.dead_letters.list()
    assert dead_letter.error == f"Reject: {text}"
    broker = await client.broker()
    reply = await broker.reads.last(
        broker.subjects.streams.records, broker.subjects.dead("default", "fail", failed.id)
    )
    assert reply is not None
    assert {name for name in reply.headers if not name.startswith("Nats-")} == {
        "Jsq-Job",
        "Jsq-Dead-Letter",
        "Jsq-First-Started",
        "Jsq-Submitted",
    }


@pytest.mark.parametrize("text", sorted(set(HOSTILE) - {"", "a.b.c", "_INBOX.x"}), ids=ascii)
def test_an_inbox_prefix_that_is_not_a_subject_is_refused(text: str) -> None:
    with pytest.raises(BadOption, match="inbox_prefix"):
        Login.read(inbox_prefix=text)
