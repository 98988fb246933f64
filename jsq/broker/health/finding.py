"""A finding of the doctor, and the findings that depend on numbers alone."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "error"]

MAX_CLOCK_OFFSET = 1.0
"""Seconds by which two clocks may differ. Delays and due times are off by the same difference."""

NEARLY_FULL = 0.9
"""The used part of a limit above which the doctor warns."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: what was checked, how severe the result is, and a message with the remedy."""

    severity: Severity
    subject: str
    message: str


def judge_clock(what: str, ahead: float, lease: float) -> Finding:
    """The finding for a server's clock, which is `ahead` of this machine's by so many seconds (or behind)."""
    if abs(ahead) <= MAX_CLOCK_OFFSET:
        return Finding("ok", what, "its clock and this machine's agree")
    message = f"its clock is {abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: "
    message += "delays and due times are off by as much; set both clocks (NTP)"
    return Finding("error" if abs(ahead) > lease / 3 else "warning", what, message)


def judge_use(what: str, of: str, used: int, limit: int) -> Finding:
    """The finding for the used part of a limit; a limit of 0 or less means no limit."""
    if limit <= 0:
        return Finding("ok", what, f"{used:,} {of}, without a limit")
    message = f"{used:,} of {limit:,} {of}"
    if used >= limit:
        remedy = "raise the limit, or delete old jobs and queues"
        return Finding("error", what, f"{message}: the server accepts no more; {remedy}")
    if used > NEARLY_FULL * limit:
        return Finding("warning", what, f"{message}: raise the limit, or keep results for a shorter time")
    return Finding("ok", what, message)
