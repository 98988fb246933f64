"""Backoff and retry policies."""

import math
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.errors import BadOption
from jsq.model.retry import (
    CHILD_MAIN,
    MAX_RETRIES,
    Backoff,
    Retries,
    RetryPolicy,
    build_backoff,
    build_policy,
    type_name,
)
from jsq.model.signals import Reject, Retry, Snooze
from tests.helpers.examples import examples


def highest(low: float, high: float) -> float:
    return high


def test_the_default_backoff_is_exponential_with_full_jitter() -> None:
    ranges: list[tuple[float, float]] = []

    def pick(low: float, high: float) -> float:
        ranges.append((low, high))
        return low

    waits = [Backoff().delay(retry, pick=pick) for retry in (1, 2, 3)]

    assert ranges == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0)]
    assert waits == [0.0, 0.0, 0.0]


def test_no_wait_exceeds_the_ceiling() -> None:
    assert Backoff(ceiling=10.0).delay(50, pick=highest) == 10.0
    assert Backoff("linear", ceiling=10.0).delay(50, pick=highest) == 10.0


def test_delays_beyond_the_float_range_are_the_ceiling() -> None:
    assert Backoff(factor=100.0).delay(MAX_RETRIES, pick=highest) == 3600.0


def test_linear_waits_grow_by_the_base() -> None:
    assert [Backoff("linear", base=2.0).delay(retry, pick=highest) for retry in (1, 2, 3)] == [2.0, 4.0, 6.0]


def test_backoff_none_does_not_wait() -> None:
    assert Backoff("none").delay(7, pick=highest) == 0.0


def test_listed_delays_are_used_in_order_and_the_last_repeats() -> None:
    steps = Backoff(steps=(1.0, 5.0, 30.0))

    assert [steps.delay(retry, pick=highest) for retry in (1, 2, 3, 4, 99)] == [1.0, 5.0, 30.0, 30.0, 30.0]


@examples(60)
@given(
    base=st.floats(0.001, 1e6),
    over=st.floats(0, 1e6),
    factor=st.floats(1, 100),
    retry=st.integers(1, MAX_RETRIES),
    shape=st.sampled_from(["none", "linear", "exponential"]),
)
def test_a_wait_is_never_negative_nor_above_the_ceiling(
    base: float, over: float, factor: float, retry: int, shape: Any
) -> None:
    ceiling = base + over
    policy = Backoff(shape, base, factor, ceiling)

    assert 0.0 <= policy.delay(retry, pick=random.uniform) <= ceiling


@examples(60)
@given(retry=st.integers(1, MAX_RETRIES - 1), factor=st.floats(1, 100))
def test_the_longest_delay_never_shrinks(retry: int, factor: float) -> None:
    policy = Backoff(factor=factor)

    assert policy.delay(retry, pick=highest) <= policy.delay(retry + 1, pick=highest)


@pytest.mark.parametrize(
    ("field", "written"),
    [
        ("backoff", {"shape": "quadratic"}),
        ("backoff base", {"base": 0}),
        ("backoff base", {"base": -1}),
        ("backoff base", {"base": math.nan}),
        ("backoff base", {"base": None}),
        ("backoff base", {"base": timedelta(seconds=1)}),
        ("backoff base", {"base": True}),
        ("backoff ceiling", {"base": 10.0, "ceiling": 9.0}),
        ("backoff ceiling", {"ceiling": math.inf}),
        ("backoff ceiling", {"ceiling": "1h"}),
        ("backoff factor", {"factor": 0.5}),
        ("backoff factor", {"factor": 101}),
        ("backoff factor", {"factor": math.nan}),
        ("backoff factor", {"factor": "2"}),
        ("backoff", {"steps": (1.0, -1.0)}),
        ("backoff", {"steps": (None,)}),
        ("backoff", {"steps": (math.inf,)}),
        ("backoff", {"steps": (1.0,) * (MAX_RETRIES + 1)}),
        ("jitter", {"jitter": 1.1}),
        ("jitter", {"jitter": -0.1}),
        ("jitter", {"jitter": math.nan}),
        ("jitter", {"jitter": "full"}),
    ],
    ids=str,
)
def test_an_invalid_backoff_is_refused_by_field(field: str, written: dict[str, Any]) -> None:
    with pytest.raises(BadOption) as refused:
        Backoff(**written)

    assert refused.value.field == field


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("none", Backoff("none")),
        ("linear", Backoff("linear")),
        ("exponential", Backoff()),
        ([1, 2.5], Backoff(steps=(1, 2.5))),
        ((60,), Backoff(steps=(60,))),
        ([timedelta(minutes=1)], Backoff(steps=(60.0,))),
        (Backoff("linear", 3.0), Backoff("linear", 3.0)),
    ],
    ids=str,
)
def test_a_backoff_is_read_from_every_accepted_form(written: Any, read: Backoff) -> None:
    assert build_backoff(written) == read


@pytest.mark.parametrize(
    "written", ["weekly", "", [], {}, None, 5, b"ab", {1.0}, ["soon"], [None], [[1]]], ids=repr
)
def test_a_value_that_is_not_a_backoff_is_refused(written: Any) -> None:
    with pytest.raises(BadOption, match="backoff must "):
        build_backoff(written)


def test_a_policy_allows_its_number_of_retries() -> None:
    policy = RetryPolicy(retries=3)

    assert [policy.allows(failures) for failures in (1, 2, 3, 4)] == [True, True, True, False]


def test_zero_retries_mean_one_attempt() -> None:
    assert not RetryPolicy(retries=0).allows(1)


@pytest.mark.parametrize(
    "retries", [-1, MAX_RETRIES + 1, 10**9, pytest.param(10**5000, id="endless"), 1.0, "3", True, None]
)
def test_an_invalid_number_of_retries_is_refused(retries: Any) -> None:
    with pytest.raises(BadOption, match=r"retries must be a whole number from 0 to 1000"):
        RetryPolicy(retries)


# -- jitter --------------------------------------------------------------------------------------------------


def range_of(backoff: Backoff, retry: int = 3) -> tuple[float, float]:
    """The shortest and the longest possible delay."""
    return backoff.delay(retry, pick=min), backoff.delay(retry, pick=max)


@pytest.mark.parametrize(
    ("written", "waits"),
    [
        (build_backoff("exponential"), (0, 4)),
        (build_backoff("exponential", jitter=True), (0, 4)),
        (build_backoff("exponential", jitter=False), (4, 4)),
        (build_backoff("exponential", jitter=0.25), (3, 4)),
        (build_backoff("linear"), (3, 3)),
        (build_backoff("linear", jitter=0.5), (1.5, 3)),
        (build_backoff([10]), (10, 10)),
        (build_backoff([10], jitter=True), (0, 10)),
        (build_backoff("none", jitter=True), (0, 0)),
        (build_backoff(Backoff(jitter=0.5), jitter=0.25), (3, 4)),
        (build_backoff(Backoff(jitter=0.5)), (2, 4)),
    ],
    ids=str,
)
def test_jitter_is_the_random_share_of_a_delay(written: Backoff, waits: tuple[float, float]) -> None:
    assert range_of(written) == waits


@pytest.mark.parametrize(
    ("written", "waits"),
    [
        (build_backoff("exponential", 3), (0, 3)),
        (build_backoff("exponential", timedelta(seconds=3)), (0, 3)),
        (build_backoff("exponential", 0.5), (0, 0.5)),
        (build_backoff("linear", 2), (2, 2)),
        (build_backoff([1, 2, 9], 5), (5, 5)),
        (build_backoff(Backoff("linear", base=2), 5), (5, 5)),
        (build_backoff("none", 5), (0, 0)),
    ],
    ids=str,
)
def test_no_wait_is_longer_than_backoff_max(written: Backoff, waits: tuple[float, float]) -> None:
    assert range_of(written) == waits


def test_a_backoff_max_below_the_given_base_is_refused() -> None:
    with pytest.raises(BadOption, match=r"backoff_max must not be below the base of the backoff"):
        build_backoff(Backoff(base=2), 1)


@examples(60)
@given(
    retry=st.integers(1, MAX_RETRIES),
    most=st.floats(0.001, 1e6),
    jitter=st.floats(0, 1),
    shape=st.sampled_from(["none", "linear", "exponential", [5, 500]]),
)
def test_a_delay_has_a_minimum_and_a_maximum(retry: int, most: float, jitter: float, shape: Any) -> None:
    read = build_backoff(shape, most, jitter)
    least, longest = range_of(read, retry)

    assert 0 <= least <= read.delay(retry, pick=random.uniform) <= longest <= most
    assert least == pytest.approx(longest * (1 - jitter))


# -- retried errors ------------------------------------------------------------------------------------------


class Busy(Retry):
    """A signal that a user defines."""


def read(retries: int | None = 3, **options: Any) -> RetryPolicy:
    return build_policy(retries, Backoff("none"), **options)


def tried(policy: RetryPolicy, error: BaseException) -> int | None:
    """The number of retries of an error; None if it is not retried."""
    found = policy.policy_for(error)
    return None if found is None else found.retries


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {OSError: 3, ConnectionResetError: 3, KeyError: 3, Retry: 3}),
        ({"retry_on": OSError}, {OSError: 3, ConnectionResetError: 3, KeyError: None, Retry: 3, Busy: 3}),
        ({"retry_on": (KeyError, TimeoutError)}, {KeyError: 3, TimeoutError: 3, OSError: None}),
        ({"no_retry_on": [OSError]}, {OSError: None, ConnectionResetError: None, KeyError: 3}),
        ({"no_retry_on": Exception}, {KeyError: None, Retry: 3, SystemExit: 3}),
        (
            {"retry_on": OSError, "no_retry_on": ConnectionError},
            {OSError: 3, ConnectionResetError: None, TimeoutError: 3},
        ),
        (
            {"no_retry_on": OSError, "retry_on": ConnectionError},
            {OSError: None, ConnectionResetError: 3, KeyError: None},
        ),
        (
            {"retry": {OSError: Retries(5), ConnectionResetError: Retries(9), Busy: Retries(7)}},
            {OSError: 5, ConnectionError: 5, ConnectionResetError: 9, KeyError: 3, Busy: 7, Retry: 3},
        ),
        (
            {"retry": {ConnectionError: Retries(5)}, "retry_on": KeyError, "no_retry_on": OSError},
            {ConnectionResetError: 5, KeyError: 3, OSError: None, ValueError: None},
        ),
    ],
    ids=str,
)
def test_the_most_specific_named_error_type_decides(
    options: dict[str, Any], wanted: dict[type[BaseException], int | None]
) -> None:
    found = read(**options)

    assert {error: tried(found, error()) for error in wanted} == wanted


def test_retries_of_a_submit_apply_to_every_error_type() -> None:
    declared = read(retry={OSError: Retries(9, backoff=[7]), KeyError: Retries(0)}, no_retry_on=ValueError)

    policy = declared.with_submit_options(1, None, 60.0)

    assert [tried(policy, error) for error in (OSError(), KeyError(), TypeError(), ValueError())] == [
        1,
        1,
        1,
        None,
    ]
    assert policy.retry_for == 60.0
    kept = policy.policy_for(OSError())
    assert kept is not None
    assert kept.backoff == Backoff(steps=(7,))
    waits = declared.with_submit_options(None, Backoff("linear"), None)
    changed = waits.policy_for(OSError())
    assert changed is not None
    assert (changed.retries, changed.backoff, waits.backoff) == (9, Backoff("linear"), Backoff("linear"))


def test_without_a_retry_count_only_the_window_ends_the_retries() -> None:
    assert read(None, retry_for=60).allows(10**6)
    with pytest.raises(BadOption, match="retries must be a number unless retry_for"):
        read(None)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("retry_on", {"retry_on": ()}),
        ("retry_on", {"retry_on": "OSError"}),
        ("retry_on", {"retry_on": int}),
        ("retry_on", {"retry_on": (OSError, 5)}),
        pytest.param("retry_on", {"retry_on": OSError("one")}, id="an-instance"),
        ("retry_on", {"retry_on": Snooze}),
        ("retry_on", {"retry_on": 5}),
        ("no_retry_on", {"no_retry_on": []}),
        ("no_retry_on", {"no_retry_on": Reject}),
        ("no_retry_on", {"no_retry_on": Busy}),
        ("no_retry_on", {"no_retry_on": OSError, "retry_on": (KeyError, OSError)}),
        ("no_retry_on", {"no_retry_on": OSError, "retry": {OSError: Retries()}}),
        ("retry", {"retry": {}}),
        ("retry", {"retry": [OSError]}),
        ("retry", {"retry": {"OSError": Retries()}}),
        ("retry", {"retry": {OSError: 5}}),
        ("retry_for", {"retry_for": 0}),
        ("retry_for", {"retry_for": math.inf}),
        ("retry_if", {"retry_if": 5}),
        pytest.param("retry_if", {"retry_if": lambda: True}, id="no-argument"),
        pytest.param("retry_if", {"retry_if": lambda one, two, three: True}, id="three-arguments"),
    ],
    ids=str,
)
def test_an_invalid_retry_option_is_refused_by_field(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(BadOption) as refused:
        read(**options)

    assert refused.value.field == field


def test_an_async_predicate_is_refused() -> None:
    async def later(error: BaseException, attempt: int) -> bool:
        return True

    with pytest.raises(BadOption, match=r"retry_if must be a plain function"):
        read(retry_if=later)


@pytest.mark.parametrize(
    ("field", "written"),
    [
        ("retries", {"retries": -1}),
        ("retries", {"retries": None}),
        ("backoff", {"backoff": "weekly"}),
        ("backoff_max", {"backoff_max": 0}),
        ("jitter", {"jitter": 2}),
    ],
    ids=str,
)
def test_invalid_retries_are_refused_where_they_are_written(field: str, written: dict[str, Any]) -> None:
    with pytest.raises(BadOption) as refused:
        Retries(**written)

    assert refused.value.field == field


def test_a_type_has_one_name_here_and_in_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import __main__

    here, there = type("Late", (Exception,), {}), type("Late", (Exception,), {})
    here.__module__, there.__module__ = "__main__", CHILD_MAIN

    monkeypatch.setattr(__main__, "__spec__", None)
    assert type_name(here) == type_name(there) == "__main__.Late"
    monkeypatch.setattr(__main__, "__spec__", math.__spec__)
    assert type_name(here) == "math.Late"
    assert type_name(Busy) == "tests.unit.test_retry.Busy"
