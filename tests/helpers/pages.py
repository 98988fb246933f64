"""Markdown pages as tests: runs their blocks as a reader would, and checks their links.

A page is a folder with a worker. A block of the language

- `python name.py` is a file in the folder, and so is `toml pyproject.toml`;
- `python` is run by `python -c`, and can import the files;
- `python other` is code of another system, which is only compiled;
- `console` has lines `$ command`, and below each the output, where `...` matches anything. A command may
  fail only where its output contains the word "error" or "failed";
- `console background` is the command of the page's worker, which runs during all blocks;
- any other language is only shown.
"""

import ast
import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from jsq.server import EmbeddedServer
from tests.helpers.forkserver import ForkServer
from tests.helpers.repository import ROOT
from tests.helpers.workers import WorkerProcess

GUIDE = ROOT / "jsq" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))

WORKER = "jsq worker tasks:app"
"""The worker of a page that does not name another command."""

OPTIONS = "pyproject.toml"
"""The file of a page with the options of pytest. Its tests may be coroutine functions."""

START_SECONDS = 20.0
COMMAND_SECONDS = 25.0

_BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_PLAIN = re.compile(r"jsq (?!bench|dev|worker)[\w\s=.,:/@+%'\"-]+")
_LINK = re.compile(r"(?<!!)\[(?:[^\]]|\n)*?\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its place, its language, the word after the language, and its text."""

    place: str
    language: str
    word: str
    text: str

    @property
    def is_file(self) -> bool:
        return (self.language, self.word) == ("toml", OPTIONS) or (
            self.language == "python" and self.word.endswith(".py")
        )

    @property
    def is_run(self) -> bool:
        return self.language in ("python", "console") and not self.word

    def fail(self, reason: str) -> NoReturn:
        pytest.fail(f"{self.place}: {reason}", pytrace=False)


def blocks_of(text: str, path: Path, *, first_line: int = 1) -> list[Block]:
    """Every fenced block of a text that begins at `first_line` of a file."""
    name = path.relative_to(ROOT)
    return [
        Block(f"{name}:{first_line + text.count(chr(10), 0, found.start())}", *found.groups())
        for found in _BLOCK.finditer(text)
    ]


def page_blocks(path: Path) -> list[Block]:
    return blocks_of(path.read_text(), path)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# -- running -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A reader of a page: a folder of their own, with the command `jsq` on the PATH, and a server."""

    folder: Path
    settings: dict[str, str]
    forks: ForkServer

    @classmethod
    def at(cls, folder: Path, server: EmbeddedServer, namespace: str, forks: ForkServer) -> "Reader":
        (folder / "home").mkdir()
        connection = {"JSQ_URL": server.url, "JSQ_NAMESPACE": namespace}
        return cls(folder, connection | forks.install(folder / "home"), forks)

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self, blocks: Sequence[Block]) -> None:
        """Run all blocks that are not only shown, in order, while the worker runs."""
        if not any(block.is_run for block in blocks):
            return
        [command] = [
            block.text.removeprefix("$ ").strip() for block in blocks if block.word == "background"
        ] or [WORKER]
        with running_worker(command, self) as place:
            for block in blocks:
                if block.is_run and block.language == "console":
                    run_console(block, place)
                elif block.is_run:
                    run_python(block, place)


@dataclass(frozen=True)
class Place:
    """The folder and the environment of a reader's commands, and the fork server that runs them."""

    folder: Path
    environment: dict[str, str]
    forks: ForkServer


def reader_environment(folder: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JSQ_", "NATS_"))}
    path = os.pathsep.join((str(folder / "home"), str(Path(sys.executable).parent), os.environ["PATH"]))
    # A page that runs pytest has the plug-in of jsq, as if that were installed, and none of ours.
    plugins = (
        "jsq.testing.plugin,pytest_asyncio.plugin" if (folder / OPTIONS).exists() else "jsq.testing.plugin"
    )
    plain = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": plugins}
    return kept | {"PATH": path, "HOME": str(folder / "home")} | plain | settings


@contextlib.contextmanager
def running_worker(command: str, reader: Reader) -> Iterator[Place]:
    """Run a worker, in a fork. The command `jsq dev` starts a server of its own, on a free port."""
    settings = reader.settings
    if command.startswith("jsq dev"):
        command = f"{command} --port 0"
        settings = {name: value for name, value in settings.items() if not name.startswith("JSQ_")}
    words = command.split()
    words = words[1:] if words[0] == "python" else ["-m", *words]
    log = reader.folder / "home" / "log"
    environment = reader_environment(reader.folder, **settings)
    process: WorkerProcess
    with log.open("wb") as file:
        if command.startswith("jsq worker"):
            process = reader.forks.spawn(command.split()[1:], environment, reader.folder, file.fileno())
        else:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=reader.folder, env=environment, stderr=file
            )
    try:
        end = time.monotonic() + START_SECONDS
        while "worker ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
        url = re.findall(r"JSQ_URL=(\S+)\)", log.read_text())
        found = {"JSQ_URL": url[0]} if url else {}
        yield Place(reader.folder, reader_environment(reader.folder, **settings, **found), reader.forks)
    finally:
        process.terminate()
        process.wait(30)


def run_python(block: Block, place: Place) -> None:
    done = place.forks.run(["-c", block.text], place.environment, place.folder, COMMAND_SECONDS)
    if done.returncode != 0:
        block.fail(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")


def run_console(block: Block, place: Place) -> None:
    """Run each `$` line, and compare its output with the lines below it; `...` matches anything."""
    for command, expected in _COMMAND.findall(block.text):
        done = _run(command, place)
        printed = done.stdout or done.stderr
        if done.returncode != 0 and not re.search("failed|error", expected):
            block.fail(f"`{command}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
        pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
        if not re.fullmatch(pattern, printed.strip(), re.DOTALL):
            block.fail(f"`{command}` printed\n{printed}\nand the page has\n{expected}")


def _run(command: str, place: Place) -> "subprocess.CompletedProcess[str]":
    """Run a command of `jsq` in a fork, and one with more of the shell's syntax than quotes in a shell."""
    if _PLAIN.fullmatch(command):
        words = shlex.split(command)[1:]
        return place.forks.run(words, place.environment, place.folder, COMMAND_SECONDS)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=place.folder,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )


# -- reading -----------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a page, as code hosts derive them."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked_files(path: Path) -> set[Path]:
    """The files that a page links to."""
    links = _LINK.findall(without_code(path.read_text()))
    files = {link.partition("#")[0] for link in links if not re.match(r"https?://", link)}
    return {(path.parent / file).resolve() for file in files if file}


def broken_links(path: Path) -> list[str]:
    """The links of a page to files, headings and references that do not exist."""
    text = without_code(path.read_text())
    links = [link for link in _LINK.findall(text) if not re.match(r"https?://", link)]
    return [link for link in links if not _target_exists(link, path)] + _undefined(text)


def _target_exists(link: str, path: Path) -> bool:
    file, _, anchor = link.partition("#")
    target = (path.parent / file).resolve() if file else path
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in anchors(target)


def _undefined(text: str) -> list[str]:
    """The references `[text][name]` without a line `[name]: https://...`, and the unused lines."""
    defined = re.findall(r"^\[([\w-]+)\]: https://\S+$", text, re.MULTILINE)
    used = re.findall(r"\]\[([\w-]+)\]", text)
    return sorted(set(used) ^ set(defined))


def missing_tests(path: Path) -> set[str]:
    """The tests that a page names although they do not exist."""
    code = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^\s*(?:async )?def (test_\w+)\(", code, re.MULTILINE))
    files = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    return set(re.findall(r"`(test_\w+)`", path.read_text())) - defined - files


def syntax_errors(blocks: Sequence[Block]) -> list[str]:
    """The Python blocks that do not compile. Code of other systems may use `await` outside of functions."""
    found = []
    for block in blocks:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if block.word == "other" else 0
        try:
            if block.language == "python":
                compile(block.text, block.place, "exec", flags)
        except SyntaxError as error:
            found.append(f"{block.place}: {error}")
    return found
