"""The table of sixty bad inputs: the common parts of its rows.

A row is one test or several tests, whose ids begin with the number of the row: `07-nul`. The rows are in the
files `test_bad_inputs*.py` of this folder; `tests/unit/test_bad_inputs.py` counts them. The id of a row about
a feature that jsq does not have contains `no-such-door`. The test checks that the feature is missing, and
fails once it is added.
"""

import re
from collections.abc import Iterator, Mapping

import pytest

from jsq import Client

ROWS = 60

_number = re.compile(r"(\d\d)-")


def row(id: str) -> pytest.MarkDecorator:
    """Mark a test as one row."""
    return pytest.mark.parametrize((), [pytest.param(id=id)])


def rows(given: Mapping[str, object]) -> pytest.MarkDecorator:
    """Parametrize a test with rows, or with several inputs of one row, by their ids; the value is `given`."""
    return pytest.mark.parametrize("given", [pytest.param(value, id=id) for id, value in given.items()])


def numbers(function: object) -> Iterator[int]:
    """The numbers of the rows of a test."""
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize":
            ids = (str(getattr(case, "id", "")) for case in mark.args[1])
            yield from (int(found[1]) for id in ids if (found := _number.match(id)))


async def stored(client: Client) -> int:
    """The number of messages that the server holds for the namespace of a client."""
    broker = await client.broker()
    answer = await broker.wire.api("STREAM.LIST", {"subject": f"{client.namespace}.>"})
    ids = await broker.jetstream.stream_info(broker.subjects.streams.bucket("ids"))
    streams = [*(answer["streams"] or ()), *([ids] if ids else [])]
    return sum(int(stream["state"]["messages"]) for stream in streams)


def mentions(caught: pytest.ExceptionInfo[Exception], *parts: str) -> bool:
    """Whether an error is one line that contains each of the parts: the field, the value, the limit."""
    message = str(caught.value)
    return message.isprintable() and all(part in message for part in parts)
