"""Bad inputs 25 to 27 and 30: messages that another program published on the subjects of jsq."""

import bz2
import gzip
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest

from jsq import App, Client, JobFailed
from jsq.broker.operations.dead_letters import DeadLetter
from jsq.broker.topology.subjects import PROGRESS
from tests.acceptance.bad_inputs import row, rows
from tests.acceptance.conftest import Dying
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

JOB = {"Jsq-Job": '{"v":1,"task":"loose"}'}


@pytest.fixture
def runs(app: App) -> list[Any]:
    """Declare a task `loose` and return the list of the values that its runs receive."""
    found: list[Any] = []

    @app.task(name="loose")
    async def loose(value: Any = None) -> int:
        found.append(value)
        return 1

    return found


async def dead_letter_of(
    app: App, client: Client, working: Working, dying: Dying, payload: bytes, headers: dict[str, str] | None
) -> DeadLetter:
    """Publish a message and return its dead letter. The worker continues, and the message is removed."""
    broker = await client.broker()
    async with working():
        await broker.wire.publish(broker.subjects.ready("default", "normal", "raw"), payload, headers)
        await dying()
        assert await (await app.find("loose").submit()).result(60) == 1
    [dead_letter] = await client.dead_letters.list()
    [stats] = await client.queues.stats()
    assert (dead_letter.id, dead_letter.payload) == ("raw", payload)
    assert (stats.waiting, stats.running, stats.scheduled) == ({"high": 0, "normal": 0, "low": 0}, 0, 0)
    with pytest.raises(JobFailed, match=dead_letter.reason):
        await client.jobs.handle("raw").result(60)
    return dead_letter


# -- bodies ---------------------------------------------------------------------------------------------


@rows(
    {
        "25-gzip-of-a-gigabyte": ("gzip", gzip.compress(bytes(10_000_000)) * 100),
        "25-bzip2-of-ten-gigabytes": ("bzip2", bz2.compress(bytes(10_000_000)) * 1_000),
    }
)
async def test_compressed_payloads_are_not_decompressed(
    app: App, client: Client, working: Working, dying: Dying, runs: list[Any], given: tuple[str, bytes]
) -> None:
    kind, packed = given
    assert len(packed) < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    dead_letter = await dead_letter_of(app, client, working, dying, packed, JOB | {"Content-Encoding": kind})

    assert (dead_letter.reason, runs) == ("bad_arguments", [None])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@rows({"26-as-a-message": None, "26-as-arguments": JOB, "26-as-an-order": {"Jsq-Job": "pickle"}})
async def test_a_pickle_is_never_loaded(
    app: App,
    client: Client,
    working: Working,
    dying: Dying,
    runs: list[Any],
    tmp_path: Path,
    given: dict[str, str] | None,
) -> None:
    trap = tmp_path / "sprung"
    payload = pickle.dumps(Trap(trap))
    if given == {"Jsq-Job": "pickle"}:
        given = {"Jsq-Job": pickle.dumps(Trap(trap), protocol=0).decode().replace("\n", " ")}

    dead_letter = await dead_letter_of(app, client, working, dying, payload, given)

    assert dead_letter.reason == ("bad_arguments" if given == JOB else "bad_envelope")
    assert (trap.exists(), runs) == (False, [None])
    pickle.loads(payload)
    assert trap.exists()  # unpickling creates the file


# -- messages -------------------------------------------------------------------------------------------


def ordered(text: str) -> tuple[bytes, dict[str, str]]:
    return b"{}", {"Jsq-Job": text}


@rows(
    {
        "27-empty": (b"", None, "bad_envelope"),
        "27-no-json": (b"hello", None, "bad_envelope"),
        "27-bytes": (bytes(range(256)), None, "bad_envelope"),
        "27-order-empty": (*ordered(""), "bad_envelope"),
        "27-order-no-json": (*ordered("hello"), "bad_envelope"),
        "27-order-truncated": (*ordered('{"v":1,"task":"loo'), "bad_envelope"),
        "27-order-no-object": (*ordered("[1]"), "bad_envelope"),
        "27-order-nested-deep": (*ordered("[" * 10_000), "bad_envelope"),
        "27-version-0": (*ordered('{"v":0,"task":"loose"}'), "bad_envelope"),
        "27-version-negative": (*ordered('{"v":-1,"task":"loose"}'), "bad_envelope"),
        "27-version-half": (*ordered('{"v":0.5,"task":"loose"}'), "bad_envelope"),
        "27-version-true": (*ordered('{"v":true,"task":"loose"}'), "bad_envelope"),
        "27-version-text": (*ordered('{"v":"1","task":"loose"}'), "bad_envelope"),
        "27-no-version": (*ordered('{"task":"loose"}'), "bad_envelope"),
        "27-arguments-empty": (b"", JOB, "bad_arguments"),
        "27-arguments-no-json": (b"hello", JOB, "bad_arguments"),
        "27-arguments-truncated": (b'{"value":[1,2', JOB, "bad_arguments"),
        "27-arguments-other-shape": (b"5", JOB, "bad_arguments"),
        "27-arguments-list-of-one": (b"[[]]", JOB, "bad_arguments"),
        "27-arguments-list-of-text": (b'["ab","cd"]', JOB, "bad_arguments"),
        "27-arguments-nested-deep": (b'{"value":' + b"[" * 100_000, JOB, "bad_arguments"),
    }
)
async def test_a_message_that_is_not_a_job_becomes_one_dead_letter_with_its_bytes(
    app: App,
    client: Client,
    working: Working,
    dying: Dying,
    runs: list[Any],
    given: tuple[bytes, dict[str, str] | None, str],
) -> None:
    payload, headers, reason = given
    dead_letter = await dead_letter_of(app, client, working, dying, payload, headers)
    assert (dead_letter.reason, runs) == (reason, [None])
    assert dead_letter.error.isprintable()


@row("27-version-2")
async def test_a_job_of_a_later_release_is_snoozed_with_its_bytes(
    app: App, client: Client, working: Working, until: Until, runs: list[Any]
) -> None:
    broker = await client.broker()
    order = '{"v":2,"work":"loose"}'

    async def is_snoozed() -> bool:
        [stats] = await client.queues.stats()
        return (stats.waiting["normal"], stats.running, stats.scheduled) == (0, 0, 1)

    async with working():
        await broker.wire.publish(
            broker.subjects.ready("default", "normal", "newer"), b"\xff", {"Jsq-Job": order}
        )
        assert await (await app.find("loose").submit()).result(60) == 1
        await until(is_snoozed)
    later = broker.subjects.streams.scheduled("default")
    message = await broker.reads.last(later, broker.subjects.scheduled("default", "newer"))
    assert message is not None
    assert (message.payload, message.headers["Jsq-Job"]) == (b"\xff", order)
    assert (runs, await client.dead_letters.list()) == ([None], [])


# -- headers of the server ------------------------------------------------------------------------------


@rows({"30-all": "all", "30-subject": "sub"})
async def test_no_submitted_header_can_roll_up_a_stream(client: Client, given: str) -> None:
    job = await client.task("any").options(id="mine").submit()
    broker = await client.broker()
    subjects, wire = broker.subjects, broker.wire
    for subject in (
        subjects.ready("default", "normal", "evil"),
        subjects.ready("default", "normal", job.id),
        subjects.record("default", job.id),
        f"{subjects.record('default', job.id)}.{PROGRESS}",
        subjects.dead("default", "any", job.id),
        subjects.key("ids", f"id.{job.id}"),
        subjects.key("workers", "any"),
    ):
        answer = await wire.ask(subject, b"", {"Nats-Rollup": given})
        assert b"rollup not permitted" in answer.payload, subject
    assert await client.queues.count_waiting("default") == 1
    assert (await job.status()).state == "queued"
    assert (await client.task("any").options(id="mine").submit()).duplicate
