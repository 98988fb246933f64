"""Filters of jobs: reading the criteria, and matching records and arguments."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq.errors import BadName, BadOption
from jsq.model.job_filter import UNFINISHED_STATES, read_criteria, same_json
from jsq.model.revision import FINAL_STATES, Revision, StoredRevision

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
JOB = StoredRevision("mail", "j1", 9, NOON, Revision("queued", "emails.send", tags=("x", "y")))


@pytest.mark.parametrize(
    ("which", "fits"),
    [
        ({}, True),
        ({"queue": "mail"}, True),
        ({"queue": "other"}, False),
        ({"task": "emails.send"}, True),
        ({"task": ["emails.send", "emails.drop"]}, True),
        ({"task": "emails"}, False),
        ({"state": "queued"}, True),
        ({"state": ("running", "queued")}, True),
        ({"state": "running"}, False),
        ({"tag": "x"}, True),
        ({"tag": ["x", "y"]}, True),
        ({"tag": ["x", "z"]}, False),
        ({"since": NOON}, True),
        ({"since": NOON + HOUR}, False),
        ({"until": NOON}, False),
        ({"until": NOON + HOUR}, True),
        ({"queue": "mail", "tag": "z"}, False),
    ],
)
def test_the_criteria_of_a_filter_are_combined_with_and(which: Any, fits: bool) -> None:
    assert read_criteria(**which).matches(JOB) is fits


@pytest.mark.parametrize(
    ("arg", "fits"),
    [
        ({"to": "a@b.c"}, True),
        ({"user.id": 5}, True),
        ({"user.id": 5.0}, True),
        ({"user.id": "5"}, False),
        ({"user.id": True}, False),
        ({"items.1": [1, {"a": None}]}, True),
        ({"items.1.1.a": None}, True),
        ({"items.7": 1}, False),
        ({"items.x": 1}, False),
        ({"to.x": 1}, False),
        ({"nothing": None}, False),
        ({"to": "a@b.c", "user.id": 6}, False),
    ],
)
def test_arguments_are_found_by_their_paths(arg: Any, fits: bool) -> None:
    payload = b'{"to": "a@b.c", "user": {"id": 5}, "items": [true, [1, {"a": null}]]}'
    choice = read_criteria(arg=arg)

    assert choice.matches_arguments(payload) is fits
    # The form of a submit by name, which does not know the task.
    assert choice.matches_arguments(b"[[7], " + payload + b"]") is fits


def test_positional_arguments_are_found_by_their_index() -> None:
    assert read_criteria(arg={"0": 7}).matches_arguments(b'[[7, 8], {"0": 9}]')
    assert not read_criteria(arg={"2": 7}).matches_arguments(b"[[7, 8], {}]")


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[" * 100_000, b"5", b"null"])
def test_a_payload_that_is_not_an_object_matches_no_argument(payload: bytes) -> None:
    assert not read_criteria(arg={"a": 1}).matches_arguments(payload)


def test_values_are_compared_as_json_values() -> None:
    assert same_json({"a": [1, True]}, {"a": (1.0, True)})
    assert not same_json({"a": 1}, {"a": 1, "b": 2})
    assert not same_json(0, False)
    assert not same_json([], {})


BAD: dict[str, tuple[Any, str]] = {
    "an unknown word": ({"tags": "x"}, "there is no option tags; is tag meant"),
    "no state": ({"state": "bogus"}, "state must be one of queued"),
    "no states": ({"state": []}, "state must be a text, or a list of at least one"),
    "a number": ({"tag": 5}, "tag must be a text, or a list"),
    "an empty tag": ({"tag": ""}, "tag must be a text"),
    "an empty path": ({"arg": {"": 1}}, "arg must be names and positions joined by dots"),
    "a broken path": ({"arg": {"a..b": 1}}, "arg must be names"),
    "a path that is none": ({"arg": {5: 1}}, "arg must be names"),
    "no arguments": ({"arg": {}}, "arg must map at least one path"),
    "no JSON": ({"arg": {"a": {1, 2}}}, "arg a must be a JSON value"),
    "not a number": ({"arg": {"a": float("nan")}}, "must be a JSON value"),
    "a naive moment": ({"since": datetime(2026, 1, 1)}, "since must be a datetime with a time zone"),
    "a text for a moment": (
        {"until": "tomorrow"},
        "until must be a datetime with a time zone, got 'tomorrow'",
    ),
    "the wrong way round": ({"since": NOON, "until": NOON}, "until must be after since"),
}


@pytest.mark.parametrize("bad", BAD)
def test_an_invalid_criterion_is_refused_by_name(bad: str) -> None:
    which, message = BAD[bad]
    with pytest.raises(BadOption, match=message):
        read_criteria(**which)


def test_bad_names_are_refused() -> None:
    with pytest.raises(BadName):
        read_criteria(queue="a b")
    with pytest.raises(BadName):
        read_criteria(task=["fine", "not fine"])


def test_an_empty_filter_is_refused_where_it_would_select_all() -> None:
    with pytest.raises(BadOption, match=r"the filter of jobs must name at least one of"):
        read_criteria(UNFINISHED_STATES, named=True)
    assert read_criteria().states == ()


def test_a_filter_is_restricted_to_the_allowed_states() -> None:
    assert read_criteria(FINAL_STATES, named=True, tag="x").states == FINAL_STATES
    with pytest.raises(BadOption, match=r"must be one of succeeded.*got 'queued'; only ended ones"):
        read_criteria(FINAL_STATES, named=True, why="; only ended ones", state="queued")
