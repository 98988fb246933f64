"""The terms of other task queues: an error names the term of jsq and the guide page that explains it."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

import jsq
from jsq import App, BadArguments, BadOption, BlockingJobHandle, Client, Context, JobHandle
from jsq.app import AppOptions
from jsq.cli import COMMANDS, command_line, load
from jsq.cli.errors import describe
from jsq.client.client import BlockingClient
from jsq.client.submitter import BlockingSubmitter, Submitter
from jsq.declaration import BatchOptions
from jsq.errors import NoSuchMethod
from jsq.model import peer_terms
from jsq.model.job_filter import read_criteria
from jsq.model.options import SubmitOptions
from jsq.model.peer_terms import PeerTerms, page_of
from jsq.model.schedule import ScheduleOptions
from jsq.task import Task

GUIDE = Path(jsq.__file__).parent / "guide"

OWNERS: list[tuple[type, PeerTerms]] = [
    (Task, {name: term for name, term in peer_terms.SUBMIT_TERMS.items() if name != "delay"}),
    (Submitter, peer_terms.SUBMIT_TERMS),
    (BlockingSubmitter, peer_terms.SUBMIT_TERMS),
    (Client, {name: term for name, term in peer_terms.CLIENT_TERMS.items() if name != "task"}),
    (BlockingClient, peer_terms.CLIENT_TERMS),
    (App, peer_terms.APP_TERMS),
    (JobHandle, peer_terms.JOB_TERMS),
    (BlockingJobHandle, peer_terms.JOB_TERMS),
    (Context, peer_terms.CONTEXT_TERMS),
]
MISSING = [
    pytest.param(owner, name, *term, id=f"{owner.__name__}.{name}")
    for owner, terms in OWNERS
    for name, term in terms.items()
]
SHELL_TABLES = (peer_terms.COMMAND_TERMS, peer_terms.FLAG_TERMS)
TABLES: list[PeerTerms] = [peer_terms.OPTION_TERMS, *(terms for _, terms in OWNERS), *SHELL_TABLES]
OPTION_NAMES = {
    *BatchOptions.__annotations__,
    *SubmitOptions.__annotations__,
    *ScheduleOptions.__annotations__,
}


@pytest.fixture
def app() -> App:  # these tests need no server, because nothing connects
    return App("nats://127.0.0.1:1")


@pytest.mark.parametrize(("owner", "name", "instead", "system"), MISSING)
def test_a_method_of_another_task_queue_names_the_one_of_jsq(
    owner: type, name: str, instead: str, system: str
) -> None:
    """The object is not initialized: the error must not depend on its fields."""
    made: Any = object.__new__(owner)

    with pytest.raises(NoSuchMethod) as caught:
        getattr(made, name)

    assert (
        str(caught.value) == f"{owner.__name__} has no {name}: {instead}; see `jsq guide {page_of(system)}`"
    )
    assert isinstance(caught.value, AttributeError)
    assert getattr(made, name, "absent") == "absent"


@pytest.mark.parametrize("name", peer_terms.OPTION_TERMS)
def test_an_option_of_another_task_queue_names_the_one_of_jsq(app: App, name: str) -> None:
    instead, system = peer_terms.OPTION_TERMS[name]
    given: dict[str, Any] = {name: 5}
    rule = f"there is no option {name}; {instead}; see `jsq guide {page_of(system)}`"

    with pytest.raises(BadOption) as declared:
        app.task(**given)
    with pytest.raises(BadOption) as submitted:
        app.client.task("add").options(**given)
    with pytest.raises(BadOption) as scheduled:
        app.schedule("nightly", "add", every=5, **given)

    assert [caught.value.rule for caught in (declared, submitted, scheduled)] == [rule] * 3


def test_other_unknown_names_are_answered_as_before(app: App) -> None:
    with pytest.raises(BadOption, match="is retries meant"):
        app.task(retris=5)  # type: ignore[call-overload]
    with pytest.raises(AttributeError, match=r"^'Client' object has no attribute 'jbs'$") as caught:
        app.client.jbs  # type: ignore[attr-defined]  # noqa: B018 -- that is what is tested

    assert not isinstance(caught.value, NoSuchMethod)
    assert caught.value.obj is app.client


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"delay": 5}, "; to set the option delay, write .options(delay=...).submit(...)"),
        (
            {"_defer_by": 5},
            (
                "; to set an option, write .options(...).submit(...): use delay=; "
                "see `jsq guide moving-from-arq`"
            ),
        ),
        ({"c": 5}, ""),
    ],
)
def test_an_option_among_the_arguments_names_the_place_of_options(
    app: App, given: dict[str, Any], hint: str
) -> None:
    """arq, RQ and SAQ accept both in one call."""

    @app.task
    def add(a: int, b: int = 2) -> int:
        return a + b

    with pytest.raises(BadArguments) as caught:
        add.blocking.submit(1, **given)

    [name] = given
    assert str(caught.value).endswith(f"got an unexpected keyword argument '{name}'{hint}")


def test_a_task_with_keyword_arguments_of_any_name_gets_no_advice(app: App) -> None:
    @app.task
    def add(a: int, **others: int) -> int:
        return a

    with pytest.raises(BadArguments, match=r"missing a required argument: 'a'$"):
        add.blocking.submit(delay=5)  # type: ignore[call-arg]


def test_a_filter_of_jobs_does_not_answer_with_options_of_a_submit() -> None:
    with pytest.raises(BadOption) as caught:
        read_criteria(among=("queued",), task_id="a")  # type: ignore[call-arg]

    assert caught.value.rule == "there is no option task_id; is task meant?"


def test_no_peer_term_is_a_name_of_jsq() -> None:
    assert set(peer_terms.OPTION_TERMS) & OPTION_NAMES == set()
    assert [
        f"{owner.__name__}.{name}" for owner, terms in OWNERS for name in terms if hasattr(owner, name)
    ] == []


def test_each_option_that_an_answer_names_exists() -> None:
    named = {
        option
        for terms in TABLES
        for instead, _ in terms.values()
        for option in re.findall(r"(\w+)=", instead)
    }

    assert named - OPTION_NAMES - AppOptions.__annotations__.keys() <= {"task", "state"}


@pytest.mark.parametrize("system", sorted({system for terms in TABLES for _, system in terms.values()}))
def test_the_guide_page_of_a_system_has_its_terms(system: str) -> None:
    page = (GUIDE / f"{page_of(system)}.md").read_text()
    code = " ".join(re.findall(r"`[^`\n]+`|^```.*?^```$", page, re.MULTILINE | re.DOTALL))

    terms = {name for terms in TABLES for name, (_, of) in terms.items() if of == system}

    assert [name for name in sorted(terms) if not re.search(rf"(?<!\w){name}\b", code)] == []


# -- the shell -------------------------------------------------------------------------------------------


def refusal(*words: str) -> str:
    with pytest.raises(typer.TyperException) as caught:
        command_line().main([*words], prog_name="jsq", standalone_mode=False)
    return describe(caught.value)


@pytest.mark.parametrize("name", peer_terms.COMMAND_TERMS)
def test_a_command_of_another_task_queue_names_the_one_of_jsq(name: str) -> None:
    instead, system = peer_terms.COMMAND_TERMS[name]

    assert (
        refusal(name, "x") == f"error: no such command '{name}': {instead}; see `jsq guide {page_of(system)}`"
    )


@pytest.mark.parametrize("name", peer_terms.FLAG_TERMS)
def test_a_flag_of_another_task_queue_names_the_one_of_jsq(name: str) -> None:
    command = ("submit", "add") if name in ("--countdown", "--eta") else ("worker", "a:b")
    instead, system = peer_terms.FLAG_TERMS[name]

    assert (
        refusal(*command, name, "5")
        == f"error: no such option: {name}: {instead}; see `jsq guide {page_of(system)}`"
    )


def test_each_command_and_flag_that_an_answer_names_exists() -> None:
    answers = " ".join(instead for terms in SHELL_TABLES for instead, _ in terms.values())

    for path in set(re.findall(r"`jsq ([a-z]+(?: [a-z]+)?)", answers)):
        group = load(path if path in COMMANDS else path.split()[0])
        assert path in COMMANDS or path.split()[1] in group.commands, path
    known = {flag for name in ("worker", "submit", "queue") for flag in flags_of(load(name))}
    assert set(re.findall(r"--[a-z-]+", answers)) - known == set()


def flags_of(command: Any) -> set[str]:
    """The options of a command, or of the commands of a group."""
    own = {flag for one in command.params for flag in one.opts}
    return own.union(*(flags_of(one) for one in getattr(command, "commands", {}).values()))
