"""The comparison of the guide with other task queues: the jsq code is valid, and statements have sources."""

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

GUIDE = Path(__file__).parents[2] / "jsq" / "guide"

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
"""The keyword arguments that each call of the tables accepts."""


def code_of_jsq() -> Iterator[str]:
    """The code in the second column of the feature tables."""
    text = (GUIDE / "comparison.md").read_text().partition("\n## When\n")[2]
    for row in re.findall(r"^\|(?! ---| feature )(.*)\|$", text, flags=re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row.split("|")[1])


CODE = [code for code in code_of_jsq() if "(" in code and not code.startswith("jsq ")]


@pytest.mark.parametrize("code", CODE)
def test_the_jsq_code_in_the_tables_is_valid(code: str) -> None:
    text = code.removeprefix("@").removeprefix("raise ").removeprefix("await ")
    text = text.removeprefix("async for result in ")
    [call] = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    called = ast.unparse(call.func)
    known = next((names for name, names in KNOWN.items() if called.endswith(name)), set[str]())
    assert {word.arg for word in call.keywords} <= known


def test_the_table_has_all_headings() -> None:
    assert len(CODE) > 15


def test_each_fault_names_tests_of_jsq_and_sources_for_the_others() -> None:
    faults = (GUIDE / "comparison-failures.md").read_text().split("\n## ")[1:]

    assert len(faults) == 7
    for fault in faults:
        assert "**jsq:**" in fault
        assert "`test_" in fault
        assert all("](https://" in line for line in fault.splitlines() if line.startswith("- "))
