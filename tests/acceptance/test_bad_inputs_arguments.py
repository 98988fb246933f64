"""Bad inputs 19 to 24, 28 and 29: arguments and headers of jobs."""

import enum
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from jsq import App, BadArguments, BadName, BadOption, Client, Context
from jsq.broker.jobs.messages import ROOM_FOR_HEADERS
from jsq.model.job import Job
from jsq.model.options import MAX_HEADER_BYTES
from tests.acceptance.bad_inputs import mentions, row, rows, stored
from tests.acceptance.conftest import Command
from tests.helpers.workers import Working


class Color(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))


# -- values ---------------------------------------------------------------------------------------------


@rows(
    {
        "19-set": {1, 2},
        "19-datetime": datetime(2030, 1, 1, tzinfo=UTC),
        "19-decimal": Decimal("1.10"),
        "19-bytes": b"\xff",
        "19-enum": Color.RED,
        "19-dataclass": Point(1, 2),
        "19-int-as-a-key": {1: 2},
    }
)
async def test_a_value_that_json_lacks_is_refused_or_survives_the_round_trip(
    app: App, client: Client, working: Working, given: Any
) -> None:
    got: list[Any] = []

    async def keep(value: Any) -> Any:
        got.append(value)
        return value

    keep.__annotations__ = {"value": type(given), "return": type(given)}
    if isinstance(given, dict):
        keep.__annotations__ = {"value": dict[int, int], "return": dict[int, int]}
    task = app.task(keep)
    for submit in (client.task("keep").submit(given), client.task("keep").submit(value=[given])):
        with pytest.raises(BadArguments, match="cannot be sent as JSON: "):
            await submit
    assert await stored(client) == 0

    async with working():
        back = await (await task.submit(given)).result(60)
    assert same(got[0], given)
    assert same(back, given)


@rows({"19-nan": math.nan, "19-infinite": math.inf, "19-large": 2**70, "19-less-than-nothing": -math.inf})
async def test_an_uncommon_number_survives_the_round_trip(
    app: App, client: Client, working: Working, given: Any
) -> None:
    got: list[Any] = []

    @app.task
    async def keep(value: Any) -> Any:
        got.append(value)
        return value

    async with working():
        for job in (await client.task("keep").submit(given), await keep.submit(given)):
            assert same(await job.result(60), given)
    assert all(same(value, given) for value in got)
    assert len(got) == 2


@row("19-tuple")
async def test_a_tuple_arrives_as_a_list_unless_annotated(app: App, working: Working) -> None:
    @app.task
    async def loose(value: Any) -> str:
        return type(value).__name__

    @app.task
    async def strict(value: tuple[int, int]) -> str:
        return type(value).__name__

    async with working():
        assert await (await loose.submit((1, 2))).result(60) == "list"
        assert await (await strict.submit((1, 2))).result(60) == "tuple"


@rows(
    {"20-lone-surrogate": ["\ud800"], "20-within-a-key": [{"\ud800": 1}], "20-deep-within": [[["a\udfff"]]]}
)
async def test_a_lone_surrogate_in_an_argument_is_refused(
    app: App, client: Client, jsq: Command, given: Any
) -> None:
    @app.task
    async def loose(value: Any) -> None: ...

    for submit in (client.task("loose").submit(*given), loose.submit(*given), loose.submit(value=given)):
        with pytest.raises(BadArguments) as caught:
            await submit
        assert mentions(caught, "surrogates not allowed")
    ended = await jsq("submit", "loose", "--json", json.dumps(given))
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert await stored(client) == 0


def nested(shape: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(100_000):
        value = shape(value)
    return value


@rows(
    {
        "21-lists": lambda inner: [inner],
        "21-dictionaries": lambda inner: {"a": inner},
        "21-tuples": lambda i: (i,),
    }
)
async def test_arguments_nested_too_deep_are_refused(
    app: App, client: Client, jsq: Command, given: Any
) -> None:
    @app.task
    async def loose(value: Any) -> None: ...

    @app.task
    async def strict(value: list[Any]) -> None: ...

    deep = nested(given)
    for submit in (client.task("loose").submit(deep), loose.submit(deep), loose.submit(value=deep)):
        with pytest.raises(BadArguments) as caught:
            await submit
        assert mentions(caught, "nested too deep: more than 198 levels")
    with pytest.raises(BadArguments) as caught:
        await strict.submit([deep])
    assert mentions(caught, "strict: nested too deep: more than 198 levels")
    ended = await jsq("submit", "loose", "-", stdin=b"[" * 100_000)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("jsq: error: standard input: line 1: nested too deep")
    assert len(ended.err.splitlines()) == 1
    assert await stored(client) == 0


@row("22-a-million-keys")
async def test_a_million_keys_are_refused_by_their_size(client: Client) -> None:
    many = dict.fromkeys(map(str, range(1_000_000)), 1)
    limit = (await client.broker()).wire.max_payload - ROOM_FOR_HEADERS
    with pytest.raises(BadArguments) as caught:
        await client.task("loose").submit(many)
    assert mentions(caught, "loose: the arguments take ", f"the server takes {limit:,} in all")
    assert await stored(client) == 0


# -- sizes ----------------------------------------------------------------------------------------------


@rows({"23-one-byte-less": -1, "23-exactly": 0, "23-one-byte-more": 1})
async def test_the_largest_job_runs_and_one_byte_more_is_refused(
    app: App, client: Client, working: Working, given: int
) -> None:
    @app.task(backoff="none")
    async def size(ctx: Context, text: str) -> int:
        if ctx.attempt == 1:
            raise ValueError("what a retry adds has room as well")
        return len(text)

    from jsq.codec.envelope import encode

    limit = (await client.broker()).wire.max_payload - ROOM_FOR_HEADERS
    headers = sum(len(name) + len(value) + 4 for name, value in encode(Job("", "size")).items())
    around = len('{"text":""}')
    length = limit - headers - around + given
    submits = (size.submit("x" * length), size.options(delay=0.3, id="mine").submit("x" * length))

    async with working():
        for submit in submits:
            if given <= 0:
                assert await (await submit).result(60) == length
                continue
            with pytest.raises(BadArguments) as caught:
                await submit
            took = f"the arguments take {length + around:,} bytes, the options {headers}"
            assert mentions(caught, took, f"the server takes {limit:,} in all")
    if given > 0:
        assert await stored(client) == 0


@row("24-50-mb")
async def test_fifty_megabytes_are_refused_quickly_and_in_little_memory(client: Client, jsq: Command) -> None:
    ended = await jsq(code=FIFTY)

    assert ended.err == ""
    seconds, resident, message = ended.json
    assert "the arguments take 50,000,00" in message
    assert seconds < 1
    assert resident < 200_000_000
    assert await stored(client) == 0


FIFTY = r"""
import asyncio, json, re, time
from pathlib import Path
from jsq import BadArguments, Client

async def main():
    async with Client() as client:
        text = "x" * 50_000_000
        began = time.process_time()  # on a machine that does other things as well
        try:
            await client.task("any").submit(text)
        except BadArguments as error:
            message = str(error)
        seconds = time.process_time() - began
    # The most that this process held; the system's own count goes on from what its parent held.
    resident = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    print(json.dumps([seconds, resident, message]))

asyncio.run(main())
"""


# -- headers --------------------------------------------------------------------------------------------


@rows(
    {
        "28-two-lines": ({"trace": "a\r\nNats-Rollup: all"}, BadOption, "header trace", "one line"),
        "28-line-feed": ({"trace": "a\nb"}, BadOption, "header trace", "one line"),
        "28-70-kb": ({"trace": "x" * 70_000}, BadOption, "headers", f"{MAX_HEADER_BYTES} bytes at most"),
        "28-colon-in-the-name": ({"A:B": "x"}, BadName, "'A:B'", "letters, digits"),
        "28-half-a-character": ({"trace": "\ud800"}, BadOption, "header trace", "printable"),
        "28-no-text": ({"trace": 7}, BadOption, "header trace", "printable"),
        "29-rollup": ({"Nats-Rollup": "all"}, BadName, "'Nats-Rollup'", "reserved"),
        "29-message-id": ({"Nats-Msg-Id": "1"}, BadName, "'Nats-Msg-Id'", "reserved"),
        "29-ttl": ({"Nats-TTL": "1s"}, BadName, "'Nats-TTL'", "reserved"),
        "29-schedule": ({"Nats-Schedule": "@every 1s"}, BadName, "'Nats-Schedule'", "reserved"),
        "29-expected": ({"nats-expected-stream": "x"}, BadName, "'nats-expected-stream'", "reserved"),
        "29-our-own": ({"jsq-job": "{}"}, BadName, "'jsq-job'", "reserved"),
    }
)
async def test_an_invalid_header_is_refused(
    app: App, client: Client, given: tuple[dict[str, Any], type[Exception], str, str]
) -> None:
    headers, kind, field, limit = given
    for options in (client.task("any").options, app.task(name="any")(lambda: None).options):
        with pytest.raises(kind) as caught:
            options(headers=headers)
        assert mentions(caught, field, limit)
        assert len(str(caught.value)) < 400
    assert await stored(client) == 0
