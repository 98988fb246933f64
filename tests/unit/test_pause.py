"""The pauses of a queue, and their ends."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from jsq.codec.pauses import decode_pauses, encode_pauses
from jsq.errors import BadOption
from jsq.model.outcome import TryAgain, judge_outcome
from jsq.model.pause import MAX_PAUSES, WHOLE_QUEUE, Pause, PauseSet, ends_earlier, pauses_ttl, read_pause_end
from jsq.model.retry import RetryPolicy
from jsq.model.signals import RateLimited

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_pauses_of_task_and_key_hold_a_job_until_the_later_end() -> None:
    holds = PauseSet().with_pause(Pause(task="send", until=after(5)), NOW).with_pause(Pause(key="a"), NOW)

    assert holds.of_job("send", "", NOW) == Pause(task="send", until=after(5))
    assert holds.of_job("send", "a", NOW) == Pause(key="a")
    assert holds.of_job("send", "b", after(5)) is None
    assert holds.of_job("other", "", NOW) is None
    assert holds.of_queue(NOW) is None


def test_pauses_of_a_task_a_key_and_a_queue_of_one_name_are_distinct() -> None:
    places = {Pause(task="queue").scope, Pause(key="queue").scope, Pause().scope}

    assert len(places) == 3
    assert Pause().scope == WHOLE_QUEUE


def test_an_ended_pause_is_removed() -> None:
    holds = PauseSet().with_pause(Pause(until=after(5)), NOW)

    assert holds.of_queue(after(4)) is not None
    assert not holds.active(after(5))
    assert not holds.without("other", after(5))


def test_a_pause_replaces_another_and_a_rate_limit_never_shortens_one() -> None:
    paused = PauseSet().with_pause(Pause(until=after(60)), NOW)
    assert paused.with_pause(Pause(until=after(5)), NOW).of_queue(NOW) == Pause(until=after(5))

    limited = Pause(until=after(10), reason="rate_limited")
    assert paused.with_pause(limited, NOW).of_queue(NOW) == Pause(until=after(60))
    assert PauseSet().with_pause(limited, NOW).with_pause(Pause(until=after(1)), NOW).of_queue(NOW) == limited
    assert PauseSet().with_pause(limited, NOW).with_pause(Pause(), NOW).of_queue(NOW) == Pause()


def test_too_many_pauses_are_refused_with_the_limit() -> None:
    holds = PauseSet({Pause(key=str(number)).scope: Pause(key=str(number)) for number in range(MAX_PAUSES)})

    with pytest.raises(BadOption, match=r"key must not be paused: the queue has 1,000 pauses"):
        holds.with_pause(Pause(key="x"), NOW)
    assert holds.with_pause(Pause(key="5"), NOW) == holds


def test_pauses_are_decoded_as_they_were_encoded() -> None:
    holds = PauseSet()
    for hold in (Pause(), Pause(task="a.b", until=after(1.5)), Pause(key="ä \u202e", reason="rate_limited")):
        holds = holds.with_pause(hold, NOW)

    assert decode_pauses(encode_pauses(holds)) == holds


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"task":1}]', b"null", b"\xff"])
def test_an_invalid_record_of_pauses_pauses_nothing(body: bytes) -> None:
    assert decode_pauses(body) == PauseSet()


def test_a_pause_that_now_ends_earlier_releases_its_jobs() -> None:
    before = PauseSet().with_pause(Pause(task="a", until=after(60)), NOW)

    assert ends_earlier(before, PauseSet(), Pause(task="a").scope)
    assert ends_earlier(
        before, before.with_pause(Pause(task="a", until=after(5)), NOW), Pause(task="a").scope
    )
    assert not ends_earlier(before, before.with_pause(Pause(task="a"), NOW), Pause(task="a").scope)
    assert not ends_earlier(PauseSet(), before, Pause(task="a").scope)


def test_a_record_of_pauses_lives_as_long_as_its_last_pause() -> None:
    holds = PauseSet().with_pause(Pause(key="a", until=after(60)), NOW)

    assert 60 < (pauses_ttl(holds, NOW) or 0) <= 62
    assert pauses_ttl(PauseSet(), NOW) == 1
    assert pauses_ttl(holds.with_pause(Pause(), NOW), NOW) is None


@pytest.mark.parametrize("until", [60, 60.0, timedelta(minutes=1), NOW + timedelta(minutes=1)])
def test_the_end_of_a_pause_is_a_time_or_a_number_of_seconds(until: float) -> None:
    assert read_pause_end(until, NOW) == after(60)
    assert read_pause_end(after(60).astimezone(timezone(timedelta(hours=5))), NOW) == after(60)
    assert read_pause_end(None, NOW) is None


@pytest.mark.parametrize(
    "until", [0, -1, float("nan"), float("inf"), 10**9, True, "soon", after(-1), NOW, datetime(2030, 1, 1)]
)
def test_an_invalid_end_of_a_pause_is_refused(until: float) -> None:
    with pytest.raises(BadOption) as caught:
        read_pause_end(until, NOW)

    assert caught.value.field == "until"


def test_rate_limited_defers_its_job_and_counts_no_retry() -> None:
    outcome = judge_outcome(RateLimited(30, "429"), failures=0, policy=RetryPolicy(0), pick=max)

    assert isinstance(outcome, TryAgain)
    assert (outcome.delay, outcome.counts_as_failure, outcome.reason) == (30, False, "rate_limited")
    assert RateLimited(timedelta(minutes=1)).retry_after == 60


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "soon", True, 10**12])
def test_a_bad_retry_after_is_refused(seconds: float) -> None:
    with pytest.raises(BadOption) as caught:
        RateLimited(retry_after=seconds)

    assert caught.value.field == "retry_after"
