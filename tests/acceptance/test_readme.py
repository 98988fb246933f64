"""What the README shows is run here, each section in a folder of its own, as a newcomer would."""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jsq.model.event import TRANSITIONS
from jsq.server import EmbeddedServer
from tests.acceptance.forkserver import ForkServer

README = Path(__file__).parents[2] / "README.md"
SETUP = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the word after it, and its text."""

    language: str
    word: str
    text: str


def blocks(*languages: str, text: str | None = None) -> list[Block]:
    found = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", text or README.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*one) for one in found if one[0] in languages]


def sections() -> dict[str, list[Block]]:
    """The blocks to run of each section and subsection that has any, by its heading."""
    code = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    text = README.read_text()
    masked = code.sub(lambda block: re.sub("^#", " ", block[0], flags=re.MULTILINE), text)
    starts = [found.start() for found in re.finditer(r"^###? ", masked, re.MULTILINE)]
    parts = [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]
    found = [(part.partition("\n")[0].lstrip("# "), blocks("python", "console", text=part)) for part in parts]
    return {heading: shown for heading, shown in found if shown}


FILES = {block.word: block.text for block in blocks("python") if block.word}
SECTIONS = sections()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A newcomer's folder, with the `jsq` command on the PATH and a server at a free port."""
    (tmp_path / "home").mkdir()
    return tmp_path


def environment(folder: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JSQ_", "NATS_"))}
    path = os.pathsep.join((str(folder / "home"), str(Path(sys.executable).parent), os.environ["PATH"]))
    return kept | {"PATH": path, "HOME": str(folder / "home")} | settings


@pytest.mark.parametrize("heading", [pytest.param(one, id=one.lower().replace(" ", "-")) for one in SECTIONS])
def test_every_block_of_a_section_does_what_it_shows(
    heading: str, folder: Path, server: EmbeddedServer, namespace: str, forks: ForkServer
) -> None:
    """In each section, the files of the README are there and a worker runs the tasks of the first section."""
    shown = SECTIONS[heading]
    for name, text in FILES.items():
        (folder / name).write_text(text)
    settings = {"JSQ_URL": server.url, "JSQ_NAMESPACE": namespace} | forks.install(folder / "home")
    [command] = [block.text.removeprefix("$ ").strip() for block in shown if block.word == "background"] or [
        "jsq worker tasks:app"
    ]
    with running(command, folder, settings) as here:
        for block in shown:
            if block.language == "console" and not block.word:
                run_console(block.text, here)
            elif not block.word:
                run([sys.executable, "-c", block.text], here)


def test_every_section_with_blocks_is_run() -> None:
    assert [block for shown in SECTIONS.values() for block in shown] == blocks("python", "console")
    assert set(FILES) == {"tasks.py", "pages.py", "loads.py", "rates.py", "shop.py", "search.py"}


@dataclass(frozen=True)
class Place:
    """The folder and the environment of a newcomer's commands."""

    folder: Path
    environment: dict[str, str]


@contextlib.contextmanager
def running(command: str, folder: Path, settings: dict[str, str]) -> Iterator[Place]:
    """Run a worker, or `jsq dev`, which starts a server of its own, on a free port."""
    if command.startswith("jsq dev"):
        command = f"{command} --port 0"
        settings = {name: value for name, value in settings.items() if not name.startswith("JSQ_")}
    log = folder / "home" / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=folder,
            env=environment(folder, **settings),
            stderr=file,
        )
    try:
        end = time.monotonic() + 20
        while "worker ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
        url = re.findall(r"JSQ_URL=(\S+)\)", log.read_text())
        yield Place(folder, environment(folder, **settings, **({"JSQ_URL": url[0]} if url else {})))
    finally:
        process.terminate()
        process.wait(30)


def run_console(text: str, place: Place) -> None:
    """Run each `$` line, and compare what it prints with the lines below it; `...` stands for anything."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        printed = run(["bash", "-o", "pipefail", "-c", command], place, check="failed" not in expected)
        pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
        assert re.fullmatch(pattern, printed.strip(), re.DOTALL), (command, printed)


def run(command: list[str], place: Place, *, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=place.folder, env=place.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 or not check, (command, done.stdout, done.stderr)
    return done.stdout or done.stderr


def test_the_two_commands_are_what_ci_runs() -> None:
    demo, tests = [block.text.strip() for block in blocks("bash")][:2]
    assert demo == SETUP + "jsq demo"
    assert tests == SETUP + "python -m pytest"
    assert ".venv/bin/python -m pytest" in (README.parent / ".ci" / "test").read_text()
    assert (
        "pip install --quiet --disable-pip-version-check -e '.[dev]'"
        in (README.parent / ".ci" / "run").read_text()
    )


def test_the_picture_of_states_is_the_table_in_the_code() -> None:
    [picture] = blocks("mermaid")
    drawn = set(re.findall(r"^\s+(\w+) --> (\w+)$", picture.text, re.MULTILINE))
    assert drawn == {(state, following) for state, after in TRANSITIONS.items() for following in after}


def test_each_link_within_the_readme_leads_to_a_heading() -> None:
    text = README.read_text()
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(linked) > 20
    assert set(linked) <= anchors


def test_each_test_that_the_readme_names_is_there() -> None:
    code = "".join(file.read_text() for file in (README.parent / "tests").rglob("test_*.py"))
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


def test_the_demo_survives_the_death_of_a_worker_and_leaves_nothing(folder: Path) -> None:
    texts = folder / "texts"
    texts.mkdir()
    for number in range(150):
        (texts / f"{number}.txt").write_text(f"one two two {number}\n" * 10)
    (texts / "binary").write_bytes(b"\0\1\2")
    before = set(Path(folder).rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "jsq", "demo", str(texts)],
        cwd=folder,
        env=environment(folder) | {"TMPDIR": str(folder / "home")},
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
    assert set(Path(folder).rglob("*")) == before


def test_the_demo_of_a_folder_without_text_is_refused(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jsq", "demo", str(folder / "home")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "holds no text file" in done.stderr
    assert "Traceback" not in done.stderr
