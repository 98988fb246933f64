"""What the README shows is run here, each section in a folder of its own, as a newcomer would."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jsq.model.event import TRANSITIONS
from jsq.server import EmbeddedServer
from tests.helpers.forkserver import ForkServer
from tests.helpers.pages import Block, Reader, anchors, blocks_of, reader_environment
from tests.helpers.repository import ROOT

README = ROOT / "README.md"
SETUP = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/"


def blocks(*languages: str) -> list[Block]:
    return [block for block in blocks_of(README.read_text(), README) if block.language in languages]


def sections() -> dict[str, list[Block]]:
    """The blocks to run of each section and subsection that has any, by its heading."""
    text = README.read_text()
    masked = re.sub(
        r"^```.*?^```$", lambda block: block[0].replace("\n#", "\n "), text, flags=re.MULTILINE | re.DOTALL
    )
    starts = [found.start() for found in re.finditer(r"^###? ", masked, re.MULTILINE)]
    found = {}
    for start, end in itertools.pairwise([*starts, len(text)]):
        part = text[start:end]
        shown = blocks_of(part, README, first_line=text.count("\n", 0, start) + 1)
        if shown := [block for block in shown if block.language in ("python", "console")]:
            found[part.partition("\n")[0].lstrip("# ")] = shown
    return found


FILES = {block.word: block.text for block in blocks("python") if block.word}
SECTIONS = sections()


@pytest.mark.parametrize("heading", [pytest.param(one, id=one.lower().replace(" ", "-")) for one in SECTIONS])
def test_every_block_of_a_section_does_what_it_shows(
    heading: str, tmp_path: Path, server: EmbeddedServer, namespace: str, forks: ForkServer
) -> None:
    """In each section, the files of the README are there and a worker runs the tasks of the first section."""
    reader = Reader.at(tmp_path, server, namespace, forks)
    reader.write(FILES)

    reader.run(SECTIONS[heading])


def test_every_section_with_blocks_is_run() -> None:
    assert [block for shown in SECTIONS.values() for block in shown] == blocks("python", "console")
    assert set(FILES) == {"tasks.py", "pages.py", "loads.py", "rates.py", "shop.py", "search.py"}


def test_the_two_commands_are_what_ci_runs() -> None:
    demo, tests = [block.text.strip() for block in blocks("bash")][:2]
    assert demo == SETUP + "jsq demo"
    assert tests == SETUP + "python -m pytest"
    assert ".venv/bin/python -m pytest" in (ROOT / ".ci" / "test").read_text()
    assert "pip install --quiet --disable-pip-version-check -e '.[dev]'" in (ROOT / ".ci" / "run").read_text()


def test_the_picture_of_states_is_the_table_in_the_code() -> None:
    [picture] = blocks("mermaid")
    drawn = set(re.findall(r"^\s+(\w+) --> (\w+)$", picture.text, re.MULTILINE))
    assert drawn == {(state, following) for state, after in TRANSITIONS.items() for following in after}


def test_each_link_within_the_readme_leads_to_a_heading() -> None:
    linked = re.findall(r"\]\(#([^)]+)\)", README.read_text())
    assert len(linked) > 20
    assert set(linked) <= anchors(README)


def test_each_test_that_the_readme_names_is_there() -> None:
    code = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", README.read_text()))
    assert named
    assert named <= set(re.findall(r"^(?:async )?def (test_\w+)\(", code, re.MULTILINE))


def test_each_fault_in_the_readme_has_a_test_and_what_is_said_of_others_a_source() -> None:
    section = README.read_text().partition("\n## What happens when something dies")[2].partition("\n## ")[0]
    faults = [line for line in section.splitlines() if line.startswith("| **")]
    assert len(faults) == 7
    assert all("`test_" in fault for fault in faults)
    sources = re.findall(r"^\[([\w-]+)\]: https://\S+$", section, re.MULTILINE)
    assert sorted(set(re.findall(r"\]\[([\w-]+)\]", section))) == sorted(sources)


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


def test_the_demo_of_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jsq", "demo", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "contains no text file" in done.stderr
    assert "Traceback" not in done.stderr
