"""Observed rates."""

from collections.abc import Iterable


def most_in_a_window(starts: Iterable[float], per: float) -> int:
    """The largest number of starts in a window of `per` seconds, including both ends of the window."""
    times = sorted(starts)
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] > per:
            first += 1
        most = max(most, last - first + 1)
    return most
