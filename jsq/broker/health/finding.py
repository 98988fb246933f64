"""A finding of the doctor, and what is found by numbers alone."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "error"]

MAX_CLOCK_OFFSET = 1.0
"""Seconds that two clocks may differ: delays and due times are off by as much."""

NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    severity: Severity
    subject: str
    message: str


def judge_clock(what: str, ahead: float, lease: float) -> Finding:
    """How a server's clock stands to this machine's: `ahead` of it by so many seconds (or behind)."""
    if abs(ahead) <= MAX_CLOCK_OFFSET:
        return Finding("ok", what, "its clock and this machine's agree")
    told = f"its clock is {abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: "
    told += "delays and due times are off by as much; set both clocks (NTP)"
    return Finding("error" if abs(ahead) > lease / 3 else "warning", what, told)


def judge_use(what: str, of: str, used: int, limit: int) -> Finding:
    """How much of a limit is used; 0 or less is no limit."""
    if limit <= 0:
        return Finding("ok", what, f"{used:,} {of}, without a limit")
    told = f"{used:,} of {limit:,} {of}"
    if used >= limit:
        return Finding(
            "error", what, f"{told}: nothing more is taken; raise the limit, or remove what is old"
        )
    if used > NEARLY_FULL * limit:
        return Finding("warning", what, f"{told}: raise the limit, or keep results for less long")
    return Finding("ok", what, told)
