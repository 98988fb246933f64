"""When a failed job is tried again."""

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jsq.errors import BadOption
from jsq.retry import MOST_RETRIES, Backoff, RetryPolicy, backoff


def highest(low: float, high: float) -> float:
    return high


def test_the_default_backoff_is_exponential_with_full_jitter() -> None:
    asked: list[tuple[float, float]] = []

    def pick(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    waits = [Backoff().delay(retry, pick=pick) for retry in (1, 2, 3)]

    assert asked == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0)]
    assert waits == [0.0, 0.0, 0.0]


def test_no_wait_exceeds_the_ceiling() -> None:
    assert Backoff(ceiling=10.0).delay(50, pick=highest) == 10.0
    assert Backoff("linear", ceiling=10.0).delay(50) == 10.0


def test_powers_beyond_all_floats_are_the_ceiling() -> None:
    assert Backoff(factor=100.0).delay(MOST_RETRIES, pick=highest) == 3600.0


def test_linear_waits_grow_by_the_base() -> None:
    assert [Backoff("linear", base=2.0).delay(retry) for retry in (1, 2, 3)] == [2.0, 4.0, 6.0]


def test_none_does_not_wait() -> None:
    assert Backoff("none").delay(7) == 0.0


def test_steps_are_the_waits_and_the_last_is_repeated() -> None:
    steps = Backoff(steps=(1.0, 5.0, 30.0))

    assert [steps.delay(retry) for retry in (1, 2, 3, 4, 99)] == [1.0, 5.0, 30.0, 30.0, 30.0]


@settings(deadline=None, max_examples=60)
@given(
    base=st.floats(0.001, 1e6),
    over=st.floats(0, 1e6),
    factor=st.floats(1, 100),
    retry=st.integers(1, MOST_RETRIES),
    shape=st.sampled_from(["none", "linear", "exponential"]),
)
def test_a_wait_is_never_negative_nor_above_the_ceiling(
    base: float, over: float, factor: float, retry: int, shape: Any
) -> None:
    ceiling = base + over
    policy = Backoff(shape, base, factor, ceiling)

    assert 0.0 <= policy.delay(retry) <= ceiling


@settings(deadline=None, max_examples=60)
@given(retry=st.integers(1, MOST_RETRIES - 1), factor=st.floats(1, 100))
def test_the_longest_wait_never_shrinks(retry: int, factor: float) -> None:
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
        ("backoff", {"steps": (1.0,) * (MOST_RETRIES + 1)}),
    ],
    ids=str,
)
def test_a_backoff_that_cannot_be_is_refused_by_name(field: str, written: dict[str, Any]) -> None:
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
def test_a_backoff_is_read_from_what_users_write(written: Any, read: Backoff) -> None:
    assert backoff(written) == read


@pytest.mark.parametrize(
    "written", ["weekly", "", [], {}, None, 5, b"ab", {1.0}, ["1"], [None], [[1]]], ids=repr
)
def test_what_is_no_backoff_is_refused(written: Any) -> None:
    with pytest.raises(BadOption, match="backoff cannot be"):
        backoff(written)


def test_a_policy_allows_as_many_retries_as_it_says() -> None:
    policy = RetryPolicy(retries=3)

    assert [policy.allows(failures) for failures in (1, 2, 3, 4)] == [True, True, True, False]


def test_no_retries_is_one_attempt() -> None:
    assert not RetryPolicy(retries=0).allows(1)


@pytest.mark.parametrize(
    "retries", [-1, MOST_RETRIES + 1, 10**9, pytest.param(10**5000, id="endless"), 1.0, "3", True, None]
)
def test_a_number_of_retries_that_cannot_be_is_refused(retries: Any) -> None:
    with pytest.raises(BadOption, match=r"retries cannot be .* whole number from 0 to 1000"):
        RetryPolicy(retries)
