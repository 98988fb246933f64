"""The function of a batch task, and the outcomes of the jobs of a batch."""

import functools
from datetime import timedelta
from typing import Any, Optional

import pytest

from jsq import App, BadArguments, BadOption, BatchItem, Context
from jsq.batch import BatchLimits, items_of
from jsq.executors import Judged, Raised, Returned
from jsq.model.job import Job
from jsq.model.outcome import Failed, Succeeded
from jsq.worker.stages.batch import split_result
from jsq.worker.stages.crash_limit import is_last_attempt


@pytest.mark.parametrize("size", [0, -1, 1_001, 1.5, True, "10"])
def test_a_size_is_a_whole_number(size: Any) -> None:
    with pytest.raises(BadOption, match=r"size must be a whole number from 1 to 1,000"):
        App().batch_task(size=size)


@pytest.mark.parametrize("wait", [-1, "one", 3_601, float("nan"), True])
def test_a_wait_is_seconds(wait: Any) -> None:
    with pytest.raises(BadOption, match=r"wait must be 0 to "):
        App().batch_task(wait=wait)


def test_a_wait_may_be_a_timedelta() -> None:
    @App().batch_task(size=3, wait=timedelta(seconds=2))
    async def index(items: list[int]) -> None: ...

    assert index.declaration.batch == BatchLimits(3, 2.0)


def no_parameter() -> None: ...
def two(items: list[int], more: int) -> None: ...
def named(*, items: list[int]) -> None: ...
def stars(*items: int) -> None: ...
def no_list(items: tuple[int, ...]) -> None: ...
def a_context(ctx: Context) -> None: ...
def with_context(ctx: Context, items: list[int]) -> None: ...
def gives_text(items: list[int]) -> str: ...  # type: ignore[empty-body]  # it is never called
def gives_dict(items: list[int]) -> dict[int, str]: ...  # type: ignore[empty-body]  # it is never called


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_parameter, "one parameter, the list of items"),
        (two, "one parameter"),
        (named, "one parameter"),
        (stars, "one parameter"),
        (with_context, "one parameter"),
        (no_list, "annotate its parameter as list"),
        (a_context, "annotate its parameter as list"),
        (gives_text, "must return None, or a list"),
        (gives_dict, "must return None, or a list"),
    ],
)
def test_a_function_that_cannot_take_a_batch_is_refused(function: Any, message: str) -> None:
    app = App()
    with pytest.raises(BadOption, match=message) as caught:
        app.batch_task()(function)
    assert caught.value.field == "batch_task"
    assert app.tasks == {}


def test_options_that_a_batch_cannot_have_are_refused() -> None:
    app = App()
    with pytest.raises(BadOption, match="executor must be async or thread for a batch task"):
        app.batch_task(executor="process")
    with pytest.raises(BadOption, match="there is no option sise; is size meant"):
        app.batch_task(sise=5)  # type: ignore[call-arg]  # that is what is tested
    with pytest.raises(BadOption, match="there is no option size"):
        app.task(size=5)  # type: ignore[call-overload]  # that is what is tested
    with pytest.raises(BadOption, match="retries"):
        app.batch_task(retries=-1)

    @app.batch_task()
    async def index(items: list[int]) -> None: ...

    with pytest.raises(BadOption, match="timeout must not be set for a job of a batch task"):
        index.options(timeout=5)


def test_each_item_is_checked_as_it_is_submitted() -> None:
    @App().batch_task()
    async def index(items: list[dict[str, int]]) -> None: ...

    assert index.signature.pack(({"a": 1},), {}) == b'{"item":{"a":1}}'
    with pytest.raises(BadArguments, match=r"index: item\.a: Input should be a valid integer"):
        index.signature.pack(({"a": "one"},), {})
    with pytest.raises(BadArguments, match="too many positional arguments"):
        index.signature.pack((1, 2), {})


async def listed(items: list[int]) -> list[str]:
    return list(map(str, items))


async def unannotated(items):  # type: ignore[no-untyped-def]
    return items


async def some(items: list[int]) -> list[str | ValueError]:
    return list(map(str, items))


async def maybe(items: list[BatchItem[int]]) -> list[Optional[int] | BaseException]:  # noqa: UP045
    return [item.value for item in items]


async def failing(items: list[BatchItem]) -> list[ValueError]:  # type: ignore[type-arg]  # as users may
    return [ValueError() for _ in items]


@pytest.mark.parametrize(
    ("function", "item", "result", "wrapped"),
    [
        (listed, int, str, False),
        (unannotated, Any, Any, False),
        (some, int, str, False),
        (maybe, int, Optional[int], True),  # noqa: UP045 -- it is compared as it is
        (failing, Any, None, True),
    ],
)
def test_the_item_and_result_types_are_read_from_the_list_annotations(
    function: Any, item: Any, result: Any, wrapped: bool
) -> None:
    read = items_of(function)
    assert read.function.__annotations__["item"] == item
    assert read.function.__annotations__["return"] == result
    assert read.wrapped is wrapped


# -- outcomes of the jobs of a batch ---------------------------------------------------------------------

share = functools.partial(split_result, task="index")


def test_each_job_gets_its_element_of_the_list() -> None:
    error = ValueError("no")
    assert share(Returned([1, error, None]), 3) == [Returned(1), Raised(error), Returned(None)]


def test_returning_none_is_a_success_for_each_job() -> None:
    assert share(Returned(None), 2) == [Returned(None), Returned(None)]


def test_an_error_or_an_interrupt_applies_to_each_job() -> None:
    raised = Raised(ValueError("no"))
    assert share(raised, 2) == [raised, raised]
    assert share(None, 2) == [None, None]


@pytest.mark.parametrize("value", [[1], [1, 2, 3], (1, 2), {"a": 1}, "ab", 5])
def test_a_result_that_is_not_a_list_of_that_length_is_dropped_for_each_job(value: Any) -> None:
    for end in share(Returned(value), 2):
        assert isinstance(end, Judged)
        assert isinstance(end.outcome, Succeeded)
        assert "for each of the 2 items" in end.outcome.dropped


def test_a_list_of_another_length_with_an_error_fails_each_job() -> None:
    for end in share(Returned([ValueError("no"), 1, 2]), 2):
        assert isinstance(end, Judged)
        assert isinstance(end.outcome, Failed)
        assert end.outcome.reason == "bad_result"


def test_the_last_attempt_before_the_crash_limit_is_recognized() -> None:
    job = Job("j", "t")
    assert [is_last_attempt(job, crashes, 3) for crashes in range(4)] == [False, False, True, True]
    assert [is_last_attempt(job, crashes, 1) for crashes in range(3)] == [False, True, True]
    forgiven = Job("j", "t", forgiven_crashes=3, quarantine="apart")
    assert [is_last_attempt(forgiven, crashes, 3) for crashes in range(3, 6)] == [False, False, True]
