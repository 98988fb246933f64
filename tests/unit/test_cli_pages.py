"""The rules for all commands of the command line: verbs, options and help pages."""

import re
import shlex
from typing import Any

import pytest

from jsq.cli import COMMANDS, SECTIONS, command_line, load
from jsq.cli.options import COMMON_PARAMETERS
from jsq.cli.pages import COMMON, command_pages

VERBS = {"ls", "get", "add", "rm", "run", "retry", "purge", "pause", "resume", "update", "stats", "next"}
WORKFLOW_VERBS = {"tree", "graph", "cancel"}
JOB_VERBS = {"edit", "move", "cancel", "promote", "reschedule", "wait", "result", "checkpoint"}
MORE_VERBS = {"job": JOB_VERBS, "workflow": WORKFLOW_VERBS}
ACTS_ON_MANY = {
    *(("job", verb) for verb in ("cancel", "retry", "rm", "promote")),
    *(("dead", verb) for verb in ("retry", "purge")),
    ("queue", "purge"),
}


def all_pages() -> dict[str, Any]:
    pages: dict[str, Any] = {}
    for name in COMMANDS:
        command = load(name)
        if hasattr(command, "commands"):
            pages |= {" ".join(path): page for path, page in command_pages(command, (name,))}
        else:
            pages[name] = command
    return pages


PAGES = all_pages()


def options_of(page: Any) -> set[str]:
    return {name for parameter in page.params for name in (*parameter.opts, *parameter.secondary_opts)}


def help_of(page: Any, path: str) -> str:
    words = path.split()
    context = page.make_context(f"jsq {path}", [], resilient_parsing=True)
    context.terminal_width = 110
    assert words
    return str(page.get_help(context))


@pytest.mark.parametrize("path", PAGES)
def test_every_command_has_the_common_options_under_a_heading_of_their_own(path: str) -> None:
    page = PAGES[path]
    assert {"--server", "-s", "--namespace", "--output", "-o", "--verbose", "-v"} <= options_of(page)
    _, _, below = help_of(page, path).partition(f"{COMMON}:\n")
    assert [f"--{parameter.name}" in below for parameter in COMMON_PARAMETERS] == [True] * 4


@pytest.mark.parametrize("path", PAGES)
def test_every_help_page_shows_an_example_of_its_command(path: str) -> None:
    assert re.search(rf"^  jsq {path}\b", help_of(PAGES[path], path), re.MULTILINE)


@pytest.mark.parametrize("path", PAGES)
def test_every_example_of_a_help_page_is_a_valid_command(path: str) -> None:
    text = str(PAGES[path].help)
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith(f"jsq {path}")]
    assert examples
    for example in examples:
        words = shlex.split(re.sub(r" [<>] .*", "", example))[1 + len(path.split()) :]
        PAGES[path].make_context(f"jsq {path}", words)


@pytest.mark.parametrize("path", PAGES)
def test_every_value_has_a_name_that_is_no_type_of_python(path: str) -> None:
    text = help_of(PAGES[path], path)
    assert not re.search(r"<\w+[^>]*>|x[<>]=", text), text
    assert not re.search(r"DURATION .*default: [\d.]+\]", text), text
    assert not re.search(r"\[\[|\{[A-Z:]+\}|\.\.\.\]", text.splitlines()[0])


def test_a_group_uses_known_verbs_only() -> None:
    for path in PAGES:
        group, _, verb = path.partition(" ")
        if verb:
            assert verb in VERBS | MORE_VERBS.get(group, set()), path


def test_each_group_shows_one_with_get_and_lists_with_ls() -> None:
    groups = {path.partition(" ")[0] for path in PAGES if " " in path and path != "worker ls"}
    assert groups == {"job", "queue", "schedule", "dead", "workflow"}
    for group in groups:
        assert {f"{group} ls", f"{group} get"} <= PAGES.keys()


def test_every_command_that_acts_on_many_has_dry_run_yes_and_all() -> None:
    taking = {path for path, page in PAGES.items() if {"--dry-run", "--yes", "--all"} <= options_of(page)}
    assert taking == {" ".join(path) for path in ACTS_ON_MANY}


@pytest.mark.parametrize("path", PAGES)
def test_a_filter_is_spelt_the_same_in_every_command(path: str) -> None:
    metavars = {"--queue": "QUEUE", "--task": "TASK", "--tag": "TAG", "--since": "WHEN", "--until": "WHEN"}
    for parameter in PAGES[path].params:
        for name in parameter.opts:
            if name in metavars:
                assert parameter.metavar == metavars[name]


@pytest.mark.parametrize("path", PAGES)
def test_a_short_option_means_the_same_in_every_command(path: str) -> None:
    meanings = {"-q": {"--queue", "--queues"}, "-n": {"--limit"}, "-c": {"--concurrency"}, "-A": {"--app"}}
    for parameter in PAGES[path].params:
        for short in meanings.keys() & set(parameter.opts):
            assert meanings[short] & set(parameter.opts), parameter.opts


def test_the_first_page_has_sections_variables_and_exit_codes() -> None:
    context = command_line().make_context("jsq", [], resilient_parsing=True)
    text = context.command.get_help(context)

    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert headings == ["Options", *SECTIONS, "Environment variables", "Exit codes"]
    assert "JSQ_DEBUG=1" in text


def test_a_completion_is_one_word() -> None:
    command = command_line()
    context = command.make_context("jsq", [], resilient_parsing=True)

    assert [one.value for one in command.shell_complete(context, "w")] == ["worker", "workflow"]


def test_every_option_has_a_help_text() -> None:
    for path, page in PAGES.items():
        for parameter in page.params:
            hidden = getattr(parameter, "hidden", False)
            assert hidden or getattr(parameter, "help", None), (path, parameter.name)
