"""The signals that a task raises to end its attempt in another way than by success or an error.

They are not errors of jsq: an `except JsqError` in a task does not catch them.
"""

from jsq.errors import BadOption
from jsq.model.durations import Duration, seconds


class Retry(Exception):
    """Retry this job after `delay` seconds, or after the task's backoff. Uses one of its retries."""

    delay: float | None = None  # a subclass may not call this __init__

    def __init__(self, reason: str = "", *, delay: Duration | None = None) -> None:
        if not isinstance(reason, str):
            raise BadOption("reason", reason, "must be a text; write Retry(delay=...) for a delay")
        super().__init__(reason)
        self.delay = seconds("delay", delay)


class Snooze(Exception):
    """Run this job again after `delay` seconds. Uses no retry."""

    delay: float = 0.0

    def __init__(self, delay: Duration, reason: str = "") -> None:
        super().__init__(reason)
        self.delay = seconds("delay", delay) or 0.0


class RateLimited(Snooze):
    """A service that this job needs accepts no more calls for now, for example because it answered 429.

    The job runs again after `retry_after` seconds and uses no retry. For that time the other jobs of its key
    are held, or those of its queue if it has no key.
    """

    def __init__(self, retry_after: Duration, reason: str = "") -> None:
        self.retry_after = seconds("retry_after", retry_after, least=0.001) or 0.0
        super().__init__(self.retry_after, reason)


class Reject(Exception):
    """This job can never succeed: it fails now, without a retry."""
