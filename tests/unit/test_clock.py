"""What is known of the server's clock."""

import time

from jsq.broker.clock import Clock


def test_a_clock_learns_how_far_the_server_is_ahead() -> None:
    clock = Clock()

    clock.learn("2026-01-01T12:00:00.123456789Z", 1767268800.0, 1767268800.2)

    assert round(clock.ahead, 3) == 0.023
    assert abs(clock.now() - time.time() - clock.ahead) < 1


def test_an_answer_that_took_long_tells_nothing() -> None:
    clock = Clock()

    clock.learn("2026-01-01T12:00:00Z", 100.0, 102.0)
    clock.learn("2026-01-01T12:00:00Z", 100.0, 99.0)  # our own clock was set back meanwhile

    assert clock.ahead == 0
