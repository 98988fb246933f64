"""The names of subjects and streams on the server."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.broker.topology.subjects import Subjects
from jsq.errors import BadName
from tests.helpers.examples import examples

ROOT = Path(__file__).parents[2]
quick = examples(100)
namespaces = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
queues = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
ids = queues
tasks = st.from_regex(
    r"[A-Za-z0-9_][A-Za-z0-9_-]{0,9}(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,9}){0,3}", fullmatch=True
)


def test_the_names_of_the_default_namespace() -> None:
    names = Subjects()

    assert (names.streams.records, names.streams.events) == ("KV_jsq_jobs", "JSQ_EVENTS")
    assert (names.streams.ready("mail"), names.streams.scheduled("mail")) == (
        "JSQ_READY_mail",
        "JSQ_SCHEDULED_mail",
    )
    assert names.streams.bucket("jobs") == "KV_jsq_jobs"
    assert names.ready("mail", "high", "j1") == "jsq.q.mail.high.j1"
    assert names.scheduled("mail", "j1") == "jsq.scheduled.mail.j1"
    assert names.due("mail", "high", "j1") == "jsq.due.mail.high.j1"
    assert names.record("mail", "j1") == "$KV.jsq_jobs.mail.j1" == f"{names.record_prefix}mail.j1"
    assert names.checkpoint("mail", "j1", "step.a") == "$KV.jsq_jobs.mail.j1.checkpoint.step.a"
    assert names.stored_record("mail", "j1") == "jsq.on.mail.j1"
    assert names.dead("mail", "emails.send", "j1") == "jsq.dead.mail.emails/send.j1"
    assert names.cancel("mail") == "jsq.cancel.mail"
    assert names.key("ids", "j1") == "$KV.jsq_ids.j1"


@pytest.mark.parametrize("namespace", ["", "a.b", "*", ">", "A", "a b", "a_b", "a" * 33])
def test_an_invalid_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(BadName, match="namespace"):
        Subjects(namespace)


def all_streams(namespace: str, queue: str) -> set[str]:
    names = Subjects(namespace)
    return {
        names.streams.ready(queue),
        names.streams.scheduled(queue),
        names.streams.records,
        names.streams.events,
    }


@quick
@given(one=st.tuples(namespaces, queues), other=st.tuples(namespaces, queues))
def test_two_queues_never_share_a_stream(one: tuple[str, str], other: tuple[str, str]) -> None:
    ours, theirs = all_streams(*one), all_streams(*other)

    if one[0] != other[0]:
        assert not ours & theirs
    elif one != other:
        assert len(ours & theirs) == 2


@quick
@given(
    namespace=namespaces, queue=queues, id=ids, task=tasks, level=st.sampled_from(["high", "normal", "low"])
)
def test_a_subject_has_the_parts_that_it_is_parsed_by(
    namespace: str, queue: str, id: str, task: str, level: str
) -> None:
    names = Subjects(namespace)

    assert names.ready(queue, level, id).split(".") == [namespace, "q", queue, level, id]
    assert names.due(queue, level, id).split(".") == [namespace, "due", queue, level, id]
    assert names.scheduled(queue, id).split(".") == [namespace, "scheduled", queue, id]
    assert names.dead(queue, task, id).split(".") == [namespace, "dead", queue, task.replace(".", "/"), id]


@quick
@given(one=tasks, other=tasks)
def test_two_tasks_never_share_a_subject_of_dead_letters(one: str, other: str) -> None:
    assert (Subjects().dead("q", one, "j") == Subjects().dead("q", other, "j")) == (one == other)


_pattern_of_id = re.compile(
    r"\.(?:ready|scheduled|due|record|event|stored_record|dead|job|own_id|schedule|next_tick|due_tick)"
    r"\((?:[^()]|\([^()]*\))+, (?:\"\*\"|'\*'|\"\")\)"
)


def test_no_subject_filter_uses_a_wildcard_as_an_id() -> None:
    """`"*"` is a valid id of a job, so the filter for all ids must use `ANY`."""
    found = [
        f"{path.name}: {match[0]}"
        for folder in ("jsq", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for match in _pattern_of_id.finditer(path.read_text())
    ]
    assert found == []
