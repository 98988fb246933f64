"""The text form of rates, and the starts that a rate limit admits."""

import heapq
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as some

from jsq.codec.rate_limits import decode_state, encode_state
from jsq.errors import BadOption
from jsq.model.rate_limit import (
    RESERVE_AHEAD,
    SLICES,
    Rate,
    RateKind,
    RateLimitState,
    RateReply,
    RateRequest,
    convert_state,
    read_rate,
    reserve,
    state_ttl,
)
from tests.helpers.examples import examples
from tests.helpers.rate_limits import most_in_a_window

NOW = 1_764_000_000.0


def simulated_starts(
    rate: Rate, arrivals: Iterable[float], *, late: random.Random, state: RateLimitState | None = None
) -> list[float]:
    """The start times of jobs with these arrivals.

    Each job requests a reservation, is deferred or starts, and starts late by a random part of the margin.
    """
    state = state or RateLimitState()
    waiting = [(arrival, number, False) for number, arrival in enumerate(arrivals)]
    heapq.heapify(waiting)
    starts = []
    while waiting:
        now, number, deferred = heapq.heappop(waiting)
        state, [answer] = reserve(
            decode_state(encode_state(state, rate), rate, now), rate, now, [RateRequest(now, deferred)]
        )
        if answer.reserved:
            starts.append(answer.moment + late.uniform(0, rate.slack))
        else:
            back = answer.moment + late.uniform(-0.1, 0.15)
            heapq.heappush(waiting, (max(now + 0.01, back), number, True))
    return starts


# -- the text form of a rate -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", Rate(10)),
        ("100/m", Rate(100, 60)),
        ("1000/h", Rate(1000, 3600)),
        ("5/10s", Rate(5, 10)),
        ("1/d", Rate(1, 86_400)),
        ("3/1.5s", Rate(3, 1.5)),
        (" 7/2m ", Rate(7, 120)),
        ("10/s burst 20", Rate(10, 1, "bucket", 20)),
    ],
)
def test_a_rate_is_parsed_from_text_and_formatted_as_it(text: str, rate: Rate) -> None:
    assert read_rate("rate", text) == rate
    assert read_rate("rate", str(rate)) == rate
    assert read_rate("rate", rate) is rate


@pytest.mark.parametrize(
    "text",
    [
        *("", "10", "/s", "10/", "0/s", "-1/s", "1.5/s", "10/0s", "10/ms", "10/s burst 0", "10/s burst"),
        *("1/9999d", "1/0.5s", "9999999/s", "10/s;", "1e3/s", "٣/s", 10, 1.5, True, b"10/s", ["10/s"], {}),
    ],
)
def test_an_invalid_rate_text_is_refused_with_field_value_and_limit(text: object) -> None:
    with pytest.raises(BadOption) as caught:
        read_rate("key_rate", text)

    assert caught.value.field == "key_rate"
    assert caught.value.value == text
    assert "must be" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"count": 0}, "rate.count"),
        ({"count": True}, "rate.count"),
        ({"count": 1.5}, "rate.count"),
        ({"count": 10**7}, "rate.count"),
        ({"count": 1, "per": 0.5}, "rate.per"),
        ({"count": 1, "per": float("nan")}, "rate.per"),
        ({"count": 1, "per": float("inf")}, "rate.per"),
        ({"count": 1, "per": "m"}, "rate.per"),
        ({"count": 1, "kind": "leaky"}, "rate.kind"),
        ({"count": 1, "burst": 5}, "rate.burst"),
        ({"count": 1, "kind": "bucket", "burst": 0}, "rate.burst"),
    ],
)
def test_an_invalid_rate_is_refused_by_its_field(given: dict[str, object], field: str) -> None:
    with pytest.raises(BadOption) as caught:
        Rate(**given)  # type: ignore[arg-type]  # that is what is tested

    assert caught.value.field == field


# -- never above the limit -------------------------------------------------------------------------------

rates = some.builds(
    Rate,
    count=some.one_of(some.integers(1, 60), some.integers(61, 500)),
    per=some.sampled_from([1.0, 1.5, 10.0, 60.0, 3600.0]),
)


@examples(100)
@given(
    rates,
    some.lists(some.floats(0, 3), min_size=1, max_size=60),
    some.randoms(use_true_random=False),
)
def test_no_window_contains_more_starts_than_the_limit(
    rate: Rate, gaps: list[float], late: random.Random
) -> None:
    arrivals = [NOW + sum(gaps[:place]) * rate.per / 20 for place in range(len(gaps))]

    starts = simulated_starts(rate, arrivals, late=late)

    assert len(starts) == len(gaps)
    assert most_in_a_window(starts, rate.per) <= rate.count


@examples(60)
@given(
    some.integers(1, 50),
    some.sampled_from([1.0, 10.0, 60.0]),
    some.integers(1, 30),
    some.lists(some.floats(0, 3), min_size=1, max_size=60),
    some.randoms(use_true_random=False),
)
def test_a_bucket_admits_its_burst_and_then_its_rate(
    count: int, per: float, burst: int, gaps: list[float], late: random.Random
) -> None:
    rate = Rate(count, per, "bucket", burst)
    arrivals = [NOW + sum(gaps[:place]) * per / 20 for place in range(len(gaps))]

    starts = sorted(simulated_starts(rate, arrivals, late=late))

    # Without a burst in reserve, a start may be late by the full margin.
    slack = rate.slack if burst - rate.slack * count / per < 1 else 1e-6
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            allowed = burst + (starts[last] - starts[first] + slack) * count / per
            assert last - first + 1 <= allowed + 1e-3


@examples(60)
@given(rates, some.lists(some.integers(0, 40), min_size=1, max_size=12), some.randoms(use_true_random=False))
def test_returned_reservations_can_be_reused_within_the_limit(
    rate: Rate, batches: list[int], pick: random.Random
) -> None:
    state, now = RateLimitState(), NOW
    held: list[float] = []
    for size in batches:
        asks = [RateRequest(now + pick.uniform(0, 1), deferred=True) for _ in range(size)]
        asks += [
            RateRequest(returned_moment=held.pop(pick.randrange(len(held))), needs_moment=False)
            for _ in range(len(held) // 3)
        ]
        pick.shuffle(asks)
        state, answers = reserve(state, rate, now, asks)
        held += [answer.moment for ask, answer in zip(asks, answers, strict=True) if answer.reserved]
        now += pick.uniform(0, rate.per / 3)

    # Checked for every window that the slices of the reserved times can represent.
    assert most_in_a_window(held, (SLICES - 1) * rate.slice_seconds) <= rate.count


# -- full use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sliding", "bucket"])
@pytest.mark.parametrize("text", ["1/s", "10/s", "50/s", "200/s", "100/m", "60/h", "5/10s"])
def test_under_load_nearly_all_of_a_limit_is_used(text: str, kind: RateKind) -> None:
    rate = read_rate("rate", text)
    assert rate is not None
    rate = Rate(rate.count, rate.per, kind)
    windows = max(12, 100 // rate.count)
    count = rate.count * windows

    starts = simulated_starts(rate, [NOW] * count, late=random.Random(7))

    # A bucket is full at the beginning; the burst that it admits at once is not part of the rate.
    first = rate.count if kind == "bucket" else 0
    used = (count - first) / ((max(starts) - NOW) / rate.per) / rate.count
    assert 0.95 <= used <= 1.05


def test_jobs_that_fit_start_at_once() -> None:
    state, answers = reserve(RateLimitState(), Rate(100, 60), NOW, [RateRequest(NOW)] * 100)

    assert answers == [RateReply(NOW, reserved=True)] * 100
    assert reserve(state, Rate(100, 60), NOW + 1, [RateRequest(NOW + 1)])[1][0].moment == pytest.approx(
        NOW + 61, abs=1
    )


def test_a_burst_is_spread_if_its_jobs_could_not_start_in_time() -> None:
    _, answers = reserve(RateLimitState(), Rate(50), NOW, [RateRequest(NOW)] * 50)

    assert all(answer.reserved for answer in answers)
    assert 0.05 < answers[-1].moment - NOW < 0.15


def test_deferred_requests_keep_their_order_and_none_overtakes_them() -> None:
    rate = Rate(1)
    state, answers = reserve(RateLimitState(), rate, NOW, [RateRequest(NOW)] * 4)
    moments = [answer.moment for answer in answers]
    assert moments == sorted(moments)
    assert [answer.reserved for answer in answers] == [True, False, False, False]

    # A new request is placed after the deferred ones, although there is room before the second one returns.
    state, [new] = reserve(state, rate, NOW + 1.04, [RateRequest(NOW + 1.04)])
    assert not new.reserved
    assert new.moment > moments[-1]
    assert reserve(state, rate, NOW + 1.04, [RateRequest(NOW + 1.04, deferred=True)])[1][0].reserved


def test_abandoned_deferred_requests_expire() -> None:
    rate = Rate(1)
    state, _ = reserve(
        RateLimitState(), rate, NOW, [RateRequest(NOW)] * 100
    )  # these jobs are cancelled later
    assert not reserve(state, rate, NOW + 3, [RateRequest()])[1][0].reserved

    assert reserve(state, rate, NOW + 12, [RateRequest()])[1] == [RateReply(NOW + 12, reserved=True)]


# -- encoding of the state -------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"rate":"x"}', b"\xff", b'{"slices":[1]}'])
def test_an_invalid_rate_limit_state_is_an_empty_one(body: bytes) -> None:
    assert decode_state(body, Rate(1), NOW) == RateLimitState()


@pytest.mark.parametrize("burst", [None, 10, 20])
def test_the_state_of_a_bucket_is_decoded_as_it_was_encoded(burst: int | None) -> None:
    rate = Rate(10, 1, "bucket", burst)
    state, _ = reserve(RateLimitState(), rate, NOW, [RateRequest(NOW, deferred=True)] * 100)

    assert decode_state(encode_state(state, rate), rate, NOW) == state


def test_a_state_stays_small_for_any_number_of_waiting_jobs() -> None:
    rate = Rate(1000)
    state, _ = reserve(RateLimitState(), rate, NOW, [RateRequest(NOW)] * 20_000)

    assert len(encode_state(state, rate)) < 4_000
    assert decode_state(encode_state(state, rate), rate, NOW) == state
    assert state_ttl(state, rate, NOW) > 19


def test_earlier_starts_count_after_a_change_of_rate() -> None:
    before, after = Rate(10, 10), Rate(20, 10)
    state, _ = reserve(RateLimitState(), before, NOW, [RateRequest(NOW)] * 30)
    assert state.deferred_until > NOW

    state = decode_state(encode_state(state, before), after, NOW)
    _, answers = reserve(state, after, NOW + 1, [RateRequest(NOW + 1)] * 11)

    assert [answer.reserved for answer in answers] == [True] * 10 + [False]
    assert (
        convert_state(
            RateLimitState(full_at=NOW + 1e6), Rate(1, 1, "bucket"), Rate(9, 1, "bucket"), NOW
        ).full_at
        <= NOW + 1
    )


def test_reservations_are_made_for_the_near_future_only() -> None:
    rate = Rate(10)
    _, answers = reserve(RateLimitState(), rate, NOW, [RateRequest(NOW)] * 100)

    assert max(answer.moment for answer in answers if answer.reserved) <= NOW + RESERVE_AHEAD


# -- simultaneous starts ---------------------------------------------------------------------------------


def test_simultaneous_starts_share_one_reserved_time_within_the_limit() -> None:
    rate = Rate(100, 1.0)
    apart = reserve(RateLimitState(), rate, NOW, [RateRequest(NOW, deferred=True)] * 120)[1]
    together = reserve(
        RateLimitState(), rate, NOW, [RateRequest(NOW, deferred=True, simultaneous=True)] * 120
    )[1]

    assert [answer.reserved for answer in together] == [True] * 100 + [False] * 20
    assert {answer.moment for answer in together[:100]} == {NOW}
    assert len({answer.moment for answer in apart if answer.reserved}) > 10


@given(count=some.integers(2, 60), per=some.sampled_from([1.0, 2.0, 60.0]), seed=some.integers(0, 2**16))
def test_batches_with_starts_counted_later_keep_the_limit(count: int, per: float, seed: int) -> None:
    """Each job reserves a time of its own; all start with the last one, jobs without room are deferred."""
    chance, rate, state, now = random.Random(seed), Rate(count, per), RateLimitState(), NOW
    starts: list[float] = []
    while now < NOW + 2.5 * per:
        state, given_now = reserve(
            state, rate, now, [RateRequest(now, deferred=True)] * chance.randint(1, 2 * count)
        )
        moments = [answer.moment for answer in given_now if answer.reserved]
        if moments:
            now = max(moments) + chance.uniform(0.0, 0.1)
            asks = [
                RateRequest(now, deferred=True, returned_moment=one, simultaneous=True) for one in moments
            ]
            state, answers = reserve(state, rate, now, asks)
            in_time = [answer for answer in answers if answer.reserved and answer.moment <= now + rate.margin]
            rest = [answer for answer in answers if answer.reserved and answer not in in_time]
            assert not rest
            starts += [answer.moment + chance.uniform(0.0, rate.margin) for answer in in_time]
        now += chance.uniform(0.05, 0.5) * per
    assert most_in_a_window(starts, per) <= count
