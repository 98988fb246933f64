"""Subjects refused by permissions. The server reports them apart from the refused requests."""

import functools
import logging
import re
from collections.abc import Callable

from jsq.errors import NotAllowed
from jsq.settings import Login
from jsq.transport.auth import as_user

log = logging.getLogger("jsq.broker")

MAX_REFUSED_SUBJECTS = 1_000
"""Maximum number of remembered refused subjects."""

_violation = re.compile(r'(publish|subscription) to "([^"]+)"', re.IGNORECASE)


class Refusals:
    """The subjects to which a connection may not publish or subscribe, as known from its attempts.

    `subscriptions` are the refused ones, in lower case: most connections have none. `refuse` fails the
    requests to a subject, and returns False if there are none.
    """

    def __init__(self, login: Login, refuse: Callable[[str, Callable[[str], str]], bool]) -> None:
        self.subscriptions: set[str] = set()
        self._login = login
        self._refuse = refuse
        self._publishes: set[str] = set()

    def note(self, error: str, *, connected: bool) -> bool:
        """Record a permissions violation that the server reported; False for any other error.

        A refused request fails at once: its caller would only see a timeout.
        """
        found = _violation.search(error)
        if found is None:
            return False
        subject = found[2].lower()
        if found[1].lower() == "subscription":
            self.subscriptions.add(subject)
            if connected:
                log.warning("subscription refused", extra={"subject": subject})
        elif not self._refuse(subject, functools.partial(self._why, "publish")):
            self._note_publish(subject)
        return True

    def refuses_subscription(self, subject: str) -> bool:
        return subject.lower() in self.subscriptions

    def check_subscription(self, subject: str) -> None:
        """Raise `NotAllowed` if the server refused a subscription to `subject`."""
        if self.refuses_subscription(subject):
            raise NotAllowed(self._why("subscribe", subject))

    def check_publish(self, subject: str) -> None:
        """Raise `NotAllowed` if the server refused a publish to `subject` that asked for no reply."""
        if subject.lower() in self._publishes:
            raise NotAllowed(self._why("publish", subject))

    def _note_publish(self, subject: str) -> None:
        """Log a refused publish without a request, once for all subjects that differ in their last token."""
        kind = subject.rpartition(".")[0]
        if kind not in self._publishes:
            log.warning("publish refused", extra={"subject": subject})
        if len(self._publishes) < MAX_REFUSED_SUBJECTS:
            self._publishes |= {kind, subject}

    def _why(self, act: str, subject: str) -> str:
        return f"not allowed to {act} to {subject}{as_user(self._login)}"
