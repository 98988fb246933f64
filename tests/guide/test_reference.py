"""The reference pages and the glossary are those of the code, and the guide has every option and command."""

import re
from pathlib import Path

import pytest

from jsq.cli import COMMANDS
from jsq.cli.options import COMMON_PARAMETERS
from jsq.declaration import BatchOptions, TaskOptions
from jsq.guide.glossary import GLOSSARY
from jsq.model.options import JobOptions, SubmitOptions
from jsq.model.schedule import Recurrence, ScheduleOptions
from jsq.settings import Login, QueueSettings, WorkerSettings
from tests.guide.log_messages import EXPLANATIONS
from tests.guide.reference import (
    PAGE_WRITERS,
    environment_variables,
    log_messages,
    metric_rows,
    option_rows,
    pages_of,
    reference_page,
    with_glossary,
)
from tests.helpers.pages import GUIDE, PAGES, page_blocks, without_code
from tests.helpers.repository import ROOT

WRITE = "`python -m tests.guide.reference` writes it again"

TEXT = "\n".join(path.read_text() for path in PAGES)
CODE = set(re.findall(r"[\w./:-]+", TEXT))
"""Every word of the guide, as commands, options and names are spelled."""


@pytest.mark.parametrize("name", PAGE_WRITERS)
def test_a_reference_page_equals_its_generated_text(name: str) -> None:
    path = GUIDE / f"{name}.md"

    assert path.exists(), WRITE
    assert path.read_text() == reference_page(name), WRITE


def test_there_is_no_other_reference_page() -> None:
    assert {path.stem for path in PAGES if path.stem.startswith("reference")} == {*PAGE_WRITERS}


def test_the_glossary_of_the_concepts_page_equals_the_one_in_the_code() -> None:
    text = (GUIDE / "concepts.md").read_text()

    assert text == with_glossary(text), WRITE
    assert list(GLOSSARY) == re.findall(r"^\| ([\w -]+) \| ", text.partition("## Glossary")[2], re.M)[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_guide_has_every_command_with_each_of_its_options(command: str) -> None:
    missing = [
        f"jsq {path} {option}"
        for path, page in pages_of(command)
        for parameter in page.params
        if not getattr(parameter, "hidden", False)
        for option in ("", *parameter.opts, *parameter.secondary_opts)
        if f"jsq {path}" not in TEXT or (option.startswith("-") and option not in CODE)
    ]

    assert missing == []


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.stem)
def test_every_command_option_and_metric_that_a_page_names_exists(path: Path) -> None:
    text = path.read_text()
    lines = [line.strip() for block in page_blocks(path) for line in block.text.splitlines()]
    shown = re.findall(r"`(jsq [a-z][^`\n]*)`", without_code(text))
    shown += [line.removeprefix("$ ") for line in lines if line.startswith(("$ jsq ", "jsq "))]
    metrics = {name.strip("`") for name, _, _ in metric_rows()}
    named = set(JSQ_NAME.findall(text)) - BUCKETS - NAMES_IN_CODE

    assert [line for line in shown if not is_command(line)] == []
    assert {name for name in named if not name.endswith(("_bucket", "_count", "_sum"))} - metrics == set()


JSQ_NAME = re.compile(r"\bjsq_\w*[a-z]\b")

NAMES_IN_CODE = {
    name
    for folder in ("contrib", "testing")
    for source in (ROOT / "jsq" / folder).rglob("*.py")
    for name in JSQ_NAME.findall(source.read_text())
}
"""The functions, fixtures and dependencies of frameworks and tests that begin like a metric."""

BUCKETS = {"jsq_jobs", "jsq_ids", "jsq_workers", "jsq_limits"}
"""The KV buckets of the namespace `jsq`."""


def is_command(line: str) -> bool:
    """Whether a line of a shell is a command of jsq, with options that the command has."""
    words = re.split(r"[|>;)]| && | # ", line)[0].split()[1:]
    if len(words) == 1 and words[0] in COMMANDS:
        return True
    pages = dict(pages_of(words[0])) if words[0] in COMMANDS else {}
    page = pages.get(" ".join(words[:2])) or pages.get(words[0])
    if page is None:
        return False
    options = {option for one in page.params for option in (*one.opts, *one.secondary_opts)}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return given <= options | {"--help", "-h"}


@pytest.mark.parametrize("line", ["jsq job frob", "jsq frob", "jsq submit add 1 --frob", "jsq queue ls -z"])
def test_a_line_with_a_command_or_option_that_does_not_exist_is_found(line: str) -> None:
    assert not is_command(line)


@pytest.mark.parametrize(
    "kinds", [[TaskOptions], [BatchOptions], [JobOptions, SubmitOptions], [ScheduleOptions, Recurrence]]
)
def test_every_option_is_explained_in_the_table_of_its_kind(kinds: list[type]) -> None:
    texts = " ".join(part for kind in kinds for row in option_rows(kind) for part in row)
    explained = set(re.findall(r"`(\w+)`", texts))
    own = set(kinds[0].__annotations__) | set(kinds[-1].__annotations__)
    inherited = set(JobOptions.__annotations__) if kinds[0] is ScheduleOptions else set()
    inherited |= set(TaskOptions.__annotations__) if kinds[0] is BatchOptions else set()

    assert own - inherited - explained == set()


def test_the_guide_has_every_option_and_setting_of_the_api() -> None:
    options = [*TaskOptions.__annotations__, *BatchOptions.__annotations__]
    options += [*SubmitOptions.__annotations__, *ScheduleOptions.__annotations__]
    options += [name for kind in (QueueSettings, WorkerSettings, Login) for name in kind.fields]

    assert [name for name in options if f"`{name}`" not in TEXT] == []


def test_the_guide_has_every_variable_and_common_option() -> None:
    assert [name for name in environment_variables() if name not in TEXT] == []
    assert [one.name for one in COMMON_PARAMETERS if f"--{one.name}" not in TEXT] == []


def test_every_log_message_is_explained_and_no_other() -> None:
    assert set(log_messages()) == set(EXPLANATIONS)
