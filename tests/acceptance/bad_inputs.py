"""The table of sixty bad inputs: what its rows have in common.

A row is a test, or several, whose id begins with the row's number: `07-nul`. The rows stand in the files
`test_bad_inputs*.py` beside this one; `tests/unit/test_bad_inputs.py` counts them. A row about something that
jsq does not have says `no-such-door`: it holds that the door is closed, and fails when somebody opens it.
"""

import re
from collections.abc import Iterator, Mapping

import pytest

from jsq import Client

ROWS = 60

_number = re.compile(r"(\d\d)-")


def row(id: str) -> pytest.MarkDecorator:
    """One row, which is one test."""
    return pytest.mark.parametrize((), [pytest.param(id=id)])


def rows(given: Mapping[str, object]) -> pytest.MarkDecorator:
    """Rows, or several inputs of one row, by their ids; each is `given` to the test."""
    return pytest.mark.parametrize("given", [pytest.param(value, id=id) for id, value in given.items()])


def numbers(function: object) -> Iterator[int]:
    """The numbers of the rows that a test has."""
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize":
            ids = (str(getattr(case, "id", "")) for case in mark.args[1])
            yield from (int(found[1]) for id in ids if (found := _number.match(id)))


async def stored(client: Client) -> int:
    """How many messages the server holds for a client's namespace."""
    broker = await client.broker()
    answer = await broker.wire.api("STREAM.LIST", {"subject": f"{client.namespace}.>"})
    ids = await broker.jetstream.stream_info(broker.subjects.streams.bucket("ids"))
    streams = [*(answer["streams"] or ()), *([ids] if ids else [])]
    return sum(int(stream["state"]["messages"]) for stream in streams)


def told(caught: pytest.ExceptionInfo[Exception], *parts: str) -> bool:
    """Whether an error is one line that holds each of these: the field, the value, the limit."""
    message = str(caught.value)
    return message.isprintable() and all(part in message for part in parts)
