"""`jsq guide`: the list of pages, one page, and a search, on a terminal and in a pipe."""

import sys

from tests.acceptance.conftest import Command
from tests.helpers.pages import GUIDE


async def test_a_pipe_gets_the_markdown_of_a_page(jsq: Command) -> None:
    done = await jsq("guide", "concepts")

    assert done.code == 0
    assert done.out == (GUIDE / "concepts.md").read_text()


async def test_a_terminal_gets_a_rendered_page(jsq: Command) -> None:
    done = await jsq.on_terminal("guide", "concepts", environment={"PAGER": "cat"})

    assert done.code == 0
    assert "Glossary" in done.out
    assert "## Glossary" not in done.out
    assert "\x1b[" in done.out


async def test_a_page_is_one_object_in_json_and_yaml(jsq: Command) -> None:
    done = await jsq("guide", "start", "-o", "json")

    assert done.json["name"] == "start"
    assert done.json["text"] == (GUIDE / "start.md").read_text()


async def test_pages_are_listed_by_area(jsq: Command) -> None:
    listed = await jsq("guide")
    shown = await jsq("guide", "-o", "table")

    assert listed.lines[0]["name"] == "start"
    assert listed.lines[0]["area"] == "First steps"
    assert shown.out.splitlines()[0] == "First steps"
    assert shown.out.splitlines()[1].split()[0] == "start"


async def test_a_search_shows_page_line_and_heading(jsq: Command) -> None:
    found = await jsq("guide", "--search", "nak settle ack")
    shown = await jsq("guide", "--search", "nak settle ack", "-o", "table")
    nothing = await jsq("guide", "--search", "no suchwords")

    [hit] = [hit for hit in found.lines if hit["page"] == "concepts"]
    assert hit["heading"] == "Glossary"
    assert f"concepts:{hit['line']}  Glossary: " in shown.out
    assert (nothing.code, nothing.out) == (0, "")
    assert "no section of the guide contains" in nothing.err
    empty = await jsq("guide", "--search", "")
    assert (empty.code, empty.err) == (2, "jsq: error: search must have at least one word, got ''\n")


async def test_an_unknown_page_and_two_requests_at_once_are_usage_errors(jsq: Command) -> None:
    unknown = await jsq("guide", "strat")
    both = await jsq("guide", "start", "--search", "lease")

    assert unknown.code == both.code == 2
    assert "is 'start' meant?" in unknown.err
    assert "not both" in both.err


async def test_other_commands_do_not_load_the_guide(jsq: Command) -> None:
    code = """
import sys
from jsq.cli import load
load("version")
print([name for name in sys.modules if name.startswith(("jsq.guide", "rich.markdown"))])
"""
    done = await jsq(code=code)

    assert done.out == "[]\n", sys.version
