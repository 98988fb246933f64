"""Messages name only pages of the guide that exist."""

import re

import pytest

from jsq.cli.errors import EXPLAINED_BY, describe
from jsq.errors import JobNotFound, JsqError, QueueFull
from tests.helpers.pages import PAGES
from tests.helpers.repository import ROOT

NAMES = {path.stem for path in PAGES}


def test_every_page_that_the_package_names_exists() -> None:
    sources = [*(ROOT / "jsq").rglob("*.py"), *PAGES, ROOT / "README.md"]
    named = {name for path in sources for name in re.findall(r"jsq guide ([a-z][\w-]*)", path.read_text())}

    assert named
    assert named - NAMES == set()


def test_every_page_that_an_error_names_exists() -> None:
    assert {page for _, page in EXPLAINED_BY} - NAMES == set()


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (QueueFull("mail", "max_jobs", 5), "; see `jsq guide queues`"),
        (JobNotFound("one"), "or its record has expired"),
    ],
)
def test_an_error_of_a_command_names_a_page_if_there_is_one(error: JsqError, end: str) -> None:
    assert describe(error).endswith(end)
