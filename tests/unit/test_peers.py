"""The README's table of peers: what it says of jsq can be written so."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jsq import App
from jsq.client.submitter import Submitter
from jsq.declaration import BatchOptions, TaskOptions
from jsq.model.options import SubmitOptions
from jsq.model.schedule import Recurrence

README = Path(__file__).parents[2] / "README.md"

KNOWN = {
    "options": set(SubmitOptions.__annotations__),
    "app.task": set(TaskOptions.__annotations__),
    "app.batch_task": set(BatchOptions.__annotations__),
    "app.cron": set(Recurrence.__annotations__) | {"name"},
    "app.every": set(Recurrence.__annotations__) | {"name"},
    "app.queue": set(inspect.signature(App.queue).parameters),
    "submit_many": set(inspect.signature(Submitter.submit_many).parameters),
    "job.reschedule": {"delay", "at"},
    "RateLimited": {"retry_after"},
}
"""The names that each call of the table may be given."""


def ours() -> Iterator[str]:
    """What stands in the table's second column, as code."""
    text = README.read_text().partition("\n## Each of these, there and here\n")[2].partition("\n## ")[0]
    for row in re.findall(r"^\|(?! -|---| What)(.*)\|$", text, flags=re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row.split("|")[1])


CODE = [code for code in ours() if "(" in code and not code.startswith("jsq ")]


@pytest.mark.parametrize("code", CODE)
def test_what_the_table_says_of_jsq_can_be_written(code: str) -> None:
    text = code.removeprefix("@").removeprefix("raise ").removeprefix("await ")
    text = text.removeprefix("async for result in ")
    [call] = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    called = ast.unparse(call.func)
    known = next((names for name, names in KNOWN.items() if called.endswith(name)), set[str]())
    assert {word.arg for word in call.keywords} <= known


def test_the_table_has_all_headings() -> None:
    assert len(CODE) > 15
