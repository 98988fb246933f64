"""Rates as they were observed."""

from collections.abc import Iterable


def most_in_a_window(starts: Iterable[float], per: float) -> int:
    """The most starts in any window of that length, both of whose ends count."""
    times = sorted(starts)
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] > per:
            first += 1
        most = max(most, last - first + 1)
    return most
