"""The estimate of the clock of the server."""

import time
from datetime import UTC, datetime

import pytest

from jsq.transport.replies import Reply, write_headers
from jsq.transport.server_clock import OUTLIVED_SECONDS, Clock, has_outlived_ttl


def test_a_clock_learns_how_far_the_server_is_ahead() -> None:
    clock = Clock()

    clock.update("2026-01-01T12:00:00.123456789Z", 1767268800.0, 1767268800.2)

    assert round(clock.ahead, 3) == 0.023
    assert abs(clock.now() - time.time() - clock.ahead) < 1


def test_a_slow_reply_is_ignored() -> None:
    clock = Clock()

    clock.update("2026-01-01T12:00:00Z", 100.0, 102.0)
    clock.update("2026-01-01T12:00:00Z", 100.0, 99.0)  # the local clock was set back meanwhile

    assert clock.ahead == 0


@pytest.mark.parametrize(
    ("ttl", "age", "outlived"),
    [
        ("3", 3 + OUTLIVED_SECONDS + 5, True),
        ("3", OUTLIVED_SECONDS - 5, False),
        ("3600", 2 * OUTLIVED_SECONDS, False),
        ("", 1e6, False),
        ("never", 1e6, False),
    ],
)
def test_a_message_that_a_server_restored_without_its_ttl_counts_as_expired(
    ttl: str, age: float, outlived: bool
) -> None:
    stored = datetime.fromtimestamp(time.time() - age, UTC).isoformat().replace("+00:00", "Z")
    headers = {"Nats-Time-Stamp": stored} | ({"Nats-TTL": ttl} if ttl else {})

    assert has_outlived_ttl(Reply("key", "", b"", write_headers(headers)), Clock()) is outlived


def add_reply(clock: Clock, at: float, took: float, ahead: float) -> None:
    """Add a reply to a request sent `at` a local time, from a server whose clock is `ahead` seconds ahead."""
    moment = datetime.fromtimestamp(at + ahead, UTC).isoformat().replace("+00:00", "Z")
    clock.update(moment, at, at + took)


def test_the_fastest_reply_determines_the_offset() -> None:
    clock = Clock()

    add_reply(clock, 1_000_000.0, 0.002, ahead=5.001)
    add_reply(clock, 1_000_001.0, 0.8, ahead=5.0)

    assert round(clock.ahead, 4) == 5.0


def test_a_clock_that_was_set_is_noticed() -> None:
    clock = Clock()

    add_reply(clock, 1_000_000.0, 0.002, ahead=0.0)
    add_reply(clock, 1_000_001.0, 0.4, ahead=60.0)

    assert round(clock.ahead) == 60


def test_a_slower_reply_replaces_an_old_one_after_a_while() -> None:
    clock = Clock()

    add_reply(clock, 1_000_000.0, 0.0, ahead=0.0)
    add_reply(clock, 1_003_600.0, 0.2, ahead=0.3)

    assert round(clock.ahead, 3) == 0.2


def test_setting_the_local_clock_does_not_change_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, wall = Clock(), time.time()

    monkeypatch.setattr(time, "time", lambda: wall + 86_400.0)

    assert abs(clock.now() - wall) < 60
    clock.update("2026-01-01T12:00:00Z", wall + 86_400.0, wall + 86_400.2)
    assert abs(clock.now() - 1767268800.0) < 60
