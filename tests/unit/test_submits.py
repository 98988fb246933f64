"""The jobs that a test has submitted, and the assertions about them."""

from typing import Any

import pytest

from jsq import App, BadArguments, BadOption
from jsq.model.job import Job
from jsq.testing import Submits

app = App()


@app.task
async def send(to: str, subject: str = "hello", *, copies: int = 1) -> None: ...


def submitted(*jobs: Job, delay: float = 0.0) -> Submits:
    submits = Submits()
    for job in jobs:
        submits.add(job, delay)
    return submits


def send_job(*args: object, **kwargs: object) -> Job:
    return Job("1", "send", arguments=send.target.pack(args, kwargs))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (("ada",), {}),
        (("ada", "hello"), {}),
        ((), {"to": "ada", "copies": 1}),
    ],
)
def test_a_job_is_found_by_the_same_call_in_another_form(
    args: tuple[str, ...], kwargs: dict[str, Any]
) -> None:
    submits = submitted(send_job("ada"))

    assert submits.assert_submitted(send, *args, **kwargs).id == "1"
    assert len(submits) == 1


def test_a_job_that_was_submitted_by_name_is_found_by_its_task_and_by_its_name() -> None:
    submits = submitted(Job("1", "send", arguments=b'[["ada"],{"copies":2}]'))

    submits.assert_submitted(send, "ada", copies=2)
    submits.assert_submitted("send", "ada", copies=2)
    submits.assert_not_submitted("send", "ada")


def test_a_job_is_found_by_named_arguments_under_the_name_of_its_task() -> None:
    submitted(send_job("ada")).assert_submitted("send", to="ada")


def test_the_message_of_a_failed_assertion_lists_the_submitted_jobs() -> None:
    submits = submitted(send_job("ada"), delay=60)

    with pytest.raises(AssertionError) as failed:
        submits.assert_submitted(send, "bob", delay="1h")

    assert str(failed.value).splitlines() == [
        "send('bob', delay='1h') was not submitted; submitted:",
        '  send{"to":"ada"}, delay=60',
    ]
    with pytest.raises(AssertionError, match="nothing"):
        Submits().assert_submitted(send)


def test_a_delay_may_differ_by_a_second() -> None:
    submits = submitted(send_job("ada"), delay=59.7)

    submits.assert_submitted(send, delay="1m")
    submits.assert_not_submitted(send, delay=58)
    submits.assert_not_submitted(send, delay=0)


def test_a_job_is_found_by_its_queue() -> None:
    submits = submitted(send_job("ada"))

    submits.assert_submitted(send, queue="default")
    submits.assert_not_submitted(send, queue="mail")


def test_an_unexpected_job_is_named() -> None:
    with pytest.raises(AssertionError, match=r'send\{"to":"ada"\} was submitted'):
        submitted(send_job("ada")).assert_not_submitted(send)


def test_arguments_that_the_task_does_not_take_are_refused() -> None:
    with pytest.raises(BadArguments):
        Submits().assert_submitted(send, 1, 2, 3, 4)
    with pytest.raises(BadOption):
        Submits().assert_submitted(send, delay="soon")


def test_submits_can_be_counted_listed_and_cleared() -> None:
    submits = submitted(send_job("ada"), send_job("bob"))

    assert [one.arguments["to"] for one in submits] == ["ada", "bob"]
    assert [one.task for one in submits.find(send, "bob")] == ["send"]
    submits.clear()
    assert list(submits) == []
    assert repr(submits) == "<Submits: none>"
