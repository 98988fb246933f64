"""A worker without fencing: its writes expect nothing, and it never believes that its lease is over.

The chaos run must find it out: a checker that passes it proves nothing.
"""

import jsq.broker.log
from jsq.broker.delivery import Lease


def switch_fencing_off() -> None:
    """Turn it off in this process."""

    def expect_nothing(sequence: int, subject: str) -> bytes:
        return b""

    def never(lease: Lease) -> bool:
        return False

    jsq.broker.log.expected = expect_nothing
    Lease.lapsed = never  # type: ignore[assignment, method-assign]  # what this is for
