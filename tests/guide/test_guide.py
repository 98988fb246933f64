"""Each page of the guide is a test: its blocks run in a folder and a namespace of their own."""

import re
from pathlib import Path

import pytest

from jsq.errors import UsageError
from jsq.guide import AREAS, guide_page, guide_pages, search_guide
from jsq.server import EmbeddedServer
from tests.helpers.forkserver import ForkServer
from tests.helpers.pages import (
    GUIDE,
    PAGES,
    Reader,
    broken_links,
    missing_tests,
    page_blocks,
    syntax_errors,
)
from tests.helpers.repository import ROOT

MAX_LINES = 200
LANGUAGES = {"python", "console", "text", "toml", "yaml", "sql", "mermaid"}
WORDS = {"python": ("", "other"), "console": ("", "background")}

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@each_page
def test_every_block_of_a_page_does_what_it_shows(
    path: Path, tmp_path: Path, server: EmbeddedServer, namespace: str, forks: ForkServer
) -> None:
    """The files of the page are there, and the `tasks.py` of start.md unless the page has its own."""
    reader = Reader.at(tmp_path, server, namespace, forks)
    for source in (GUIDE / "start.md", path):
        reader.write({block.word: block.text for block in page_blocks(source) if block.is_file})

    reader.run(page_blocks(path))


@each_page
def test_a_page_is_short_and_starts_with_a_title_and_a_summary(path: Path) -> None:
    text = path.read_text()
    page = guide_page(path.stem)

    assert text.count("\n") < MAX_LINES
    assert text.startswith("# ")
    assert page.title
    assert page.summary.endswith(".")
    assert not page.summary.startswith(("#", "|", "-", "```"))


@each_page
def test_the_blocks_of_a_page_are_of_known_kinds_and_compile(path: Path) -> None:
    blocks = page_blocks(path)

    unknown = [
        f"{block.place}: ```{block.language} {block.word}"
        for block in blocks
        if block.language not in LANGUAGES
        or not (block.is_file or block.word in WORDS.get(block.language, ("",)))
    ]

    assert unknown == []
    assert path.read_text().count("\n```") == 2 * len(blocks)
    assert syntax_errors(blocks) == []


@each_page
def test_the_links_of_a_page_and_the_tests_that_it_names_exist(path: Path) -> None:
    assert broken_links(path) == []
    assert missing_tests(path) == set()


def test_every_fault_in_the_comparison_has_a_test_of_jsq_and_sources_for_the_others() -> None:
    faults = (GUIDE / "comparison-failures.md").read_text().split("\n## ")[1:]

    assert len(faults) == 7
    assert [
        fault.partition("\n")[0] for fault in faults if "`test_" not in fault or "https://" not in fault
    ] == []


# -- finding pages -----------------------------------------------------------------------------------------


def test_every_page_is_listed_once_and_start_is_the_first() -> None:
    names = [page.name for page in guide_pages()]

    assert sorted(names) == sorted(path.stem for path in PAGES)
    assert names[0] == "start"
    assert names == [name for area in AREAS.values() for name in area]


def test_an_unknown_page_gets_the_name_of_the_most_similar_one() -> None:
    with pytest.raises(UsageError, match="no such page 'concept'; is 'concepts' meant"):
        guide_page("concept")


def test_a_term_in_place_of_a_page_is_answered_with_its_meaning() -> None:
    with pytest.raises(UsageError, match="a number that rises with every attempt"):
        guide_page("fencing-token")


def test_a_search_finds_all_words_in_any_case_with_heading_and_line() -> None:
    [hit] = [hit for hit in search_guide("NAK settle ack") if hit.page == "concepts"]

    assert hit.heading == "Glossary"
    assert hit.text == guide_page("concepts").text.splitlines()[hit.line - 1].strip()


def test_a_search_finds_whole_words_with_their_endings() -> None:
    texts = [hit.text.lower() for hit in search_guide("lease") + search_guide("retry")]

    assert any("leases" in text for text in texts)
    assert any("retries" in text for text in texts)
    assert not [text for text in texts if "release" in text and not re.search(r"\bleas|\bretr", text)]


def test_a_search_finds_a_section_that_has_the_words_in_several_lines() -> None:
    [hit] = [hit for hit in search_guide("ExecStart TimeoutStopSec") if hit.page == "operations"]

    assert hit.heading == "Start and stop of a worker"


def test_headings_are_the_first_hits() -> None:
    hits = search_guide("limit")

    assert hits[0].is_heading
    assert [hit.is_heading for hit in hits] == sorted((hit.is_heading for hit in hits), reverse=True)


@pytest.mark.parametrize(
    ("question", "page"),
    [
        ("unit-test a task", "tutorial"),
        ("limit calls to an API per customer", "cookbook"),
        ("deploy on Kubernetes", "deploy"),
        ("what happens when a worker dies", "guarantees"),
        ("move a delayed job", "cookbook-operations"),
        ("why a job failed", "troubleshooting"),
        ("rotate a password", "security"),
        ("upgrade without losing jobs", "operations"),
    ],
)
def test_a_common_question_finds_a_heading_to_which_the_readme_links(question: str, page: str) -> None:
    hit = search_guide(question)[0]

    assert (hit.page, hit.is_heading) == (page, True)
    assert f"[{question}](jsq/guide/{page}.md#" in (ROOT / "README.md").read_text()


def test_a_comment_in_code_is_not_a_heading() -> None:
    hits = [hit for hit in search_guide("the context of the nats command") if hit.page == "start"]

    assert [hit.heading for hit in hits] == ["Your first job"]


def test_a_search_for_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one word"):
        search_guide(" ")
