"""The README: its blocks are run as a newcomer would run them, and its statements have sources."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jsq.model.revision import TRANSITIONS
from jsq.server import EmbeddedServer
from tests.helpers.forkserver import ForkServer
from tests.helpers.pages import (
    GUIDE,
    PAGES,
    Reader,
    broken_links,
    linked_files,
    missing_tests,
    page_blocks,
    reader_environment,
    syntax_errors,
)
from tests.helpers.repository import ROOT

README = ROOT / "README.md"
TEXT = README.read_text()
MAX_LINES = 250


def section(heading: str) -> str:
    return TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_block_does_what_it_shows(
    tmp_path: Path, server: EmbeddedServer, namespace: str, forks: ForkServer
) -> None:
    blocks = page_blocks(README)
    reader = Reader.at(tmp_path, server, namespace, forks)
    reader.write({block.word: block.text for block in blocks if block.is_file})

    reader.run(blocks)

    assert syntax_errors(blocks) == []


def test_the_readme_is_short() -> None:
    assert TEXT.count("\n") <= MAX_LINES


def test_the_two_commands_are_what_ci_runs() -> None:
    demo, tests = [block.text.strip() for block in page_blocks(README) if block.language == "bash"]
    setup = "python3 -m venv .venv && .venv/bin/pip install -e '.[{}]' && .venv/bin/{}"
    install = ".venv/bin/pip install --quiet --disable-pip-version-check -e '.[{}]'"
    run = (ROOT / ".ci" / "run").read_text()

    assert demo == setup.format("server", "jsq demo")
    assert tests == setup.format("dev", "python -m pytest")
    assert [run.index(line) for line in (install.format("server"), ".venv/bin/jsq demo")]
    assert run.index(".venv/bin/jsq demo") < run.index(install.format("dev")) < run.index(".ci/test")
    assert ".venv/bin/python -m pytest" in (ROOT / ".ci" / "test").read_text()


@pytest.mark.parametrize("path", [README, GUIDE / "concepts.md"], ids=lambda path: path.stem)
def test_the_state_diagram_equals_the_transition_table(path: Path) -> None:
    [picture] = [block for block in page_blocks(path) if block.language == "mermaid"]
    drawn = set(re.findall(r"^\s+(\w+) --> (\w+)$", picture.text, re.MULTILINE))

    assert drawn == {(state, following) for state, after in TRANSITIONS.items() for following in after}


def test_the_links_and_the_tests_that_the_readme_names_exist() -> None:
    assert broken_links(README) == []
    assert missing_tests(README) == set()
    assert len(re.findall(r"`test_\w+`", TEXT)) >= 3


def test_every_page_of_the_guide_can_be_reached_from_the_readme() -> None:
    reached, waiting = {README}, [README]
    while waiting:
        found = {path for path in linked_files(waiting.pop()) if path.suffix == ".md" and path.exists()}
        waiting.extend(found - reached)
        reached |= found

    assert set(PAGES) - reached == set()


@pytest.mark.parametrize(
    ("heading", "command"), [("Speed", "`jsq bench`"), ("Evidence", "`python -m tests.chaos ")]
)
def test_figures_have_a_command_and_a_commit(heading: str, command: str) -> None:
    assert command in section(heading)
    assert re.search(r"at commit [0-9a-f]{7}\b", section(heading))


@pytest.mark.parametrize(
    ("heading", "page", "count"), [("Comparison", "comparison", 11), ("Speed", "performance", 5)]
)
def test_every_row_is_in_the_page_that_its_section_links_to(heading: str, page: str, count: int) -> None:
    """Each table has a row with the headings of its columns."""
    rows = [line for line in section(heading).splitlines() if line.startswith("| ")]
    known = (GUIDE / f"{page}.md").read_text().splitlines()

    assert len(rows) == count
    assert [row for row in rows if row not in known] == []


def test_the_demo_survives_the_death_of_a_worker_and_leaves_nothing(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (tmp_path / "home").mkdir()
    for number in range(150):
        (texts / f"{number}.txt").write_text(f"one two two {number}\n" * 10)
    (texts / "binary").write_bytes(b"\0\1\2")
    before = set(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "jsq", "demo", str(texts)],
        cwd=tmp_path,
        env=reader_environment(tmp_path) | {"TMPDIR": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "files      150, lines 1,500" in done.stdout
    assert "words      two 3,000, one 1,500" in done.stdout
    assert re.search(r"worker \d+ killed", done.stdout)
    latency = re.search(r"submit to start p50 ([\d.]+) ms, p99 ([\d.]+) ms", done.stdout)
    assert latency is not None
    assert 0 < float(latency[1]) <= float(latency[2])
    assert "outcomes   150: exactly one for each file" in done.stdout
    assert set(tmp_path.rglob("*")) == before


def test_a_demo_folder_without_text_files_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jsq", "demo", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "contains no text file" in done.stderr
    assert "Traceback" not in done.stderr
