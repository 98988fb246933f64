"""Requests under way: each waits for its reply, and fails when the reply is late or the connection breaks."""

import asyncio
from dataclasses import dataclass

from jsq.errors import NotAllowed
from jsq.transport.replies import NoReply, NoResponders, Reply

WINDOW = 4_000
"""Requests under way at once: the server refuses more than some tens of thousands."""

TIMEOUT_CHECK_SECONDS = 0.1
"""Seconds between two searches for late requests: one timer for all, instead of one for each."""

OTHER_ACCOUNT_SECONDS = 0.5
"""Seconds to wait for the reply of another account after the client's own account has replied."""

NO_JETSTREAM_HERE = b'"err_code":10039'
"""The reply of an account that has no JetStream of its own."""


@dataclass(slots=True)
class PendingReply:
    """A request without a reply yet."""

    future: asyncio.Future[Reply]
    subject: str
    end: float
    seconds: float
    refused: bool = False


class PendingReplies:
    """The requests of one connection that have no reply yet, by the token in their reply subject."""

    def __init__(self, server: str) -> None:
        self.inbox = ""
        self.waiting: dict[int, PendingReply] = {}
        self._server = server
        self._token = 0
        self._checking = False
        self._room = asyncio.Event()

    def add(self, subject: str, seconds: float) -> tuple[int, asyncio.Future[Reply]]:
        """Add a request. Its future fails when the reply is late or refused, or the connection breaks."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._token = token = self._token + 1
        self.waiting[token] = PendingReply(future, subject, loop.time() + seconds, seconds)
        if not self._checking:
            self._checking = True
            loop.call_later(TIMEOUT_CHECK_SECONDS, self._fail_late)
        return token, future

    def resolve(self, message: Reply) -> None:
        """Give a message of the inbox to the request that waits for it."""
        token = int(message.subject[len(self.inbox) + 1 :])
        found = self.waiting.pop(token, None)
        if found is None or found.future.done():
            return
        elsewhere = NO_JETSTREAM_HERE in message.payload and found.subject.startswith("$JS.API.")
        if elsewhere and not found.refused:
            # An account that imports the API of another account gets two replies: its own, and that one's.
            found.refused = True
            self.waiting[token] = found
            asyncio.get_running_loop().call_later(OTHER_ACCOUNT_SECONDS, self.resolve, message)
            return
        if message.raw and message.status == "503":
            found.future.set_exception(NoResponders(f"nobody at {self._server} serves {found.subject}"))
        else:
            found.future.set_result(message)
        if len(self.waiting) < WINDOW:
            self._room.set()

    async def wait_for_room(self) -> None:
        """Wait until fewer requests than `WINDOW` are under way."""
        while len(self.waiting) >= WINDOW:
            self._room.clear()
            await self._room.wait()

    def refuse(self, subject: str, why: str) -> bool:
        """Fail the requests to a subject, in any case of letters, as not allowed; False if there are none."""
        found = [one for one in self.waiting.values() if one.subject.lower() == subject.lower()]
        for one in found:
            if not one.future.done():
                one.future.set_exception(NotAllowed(why))
        return bool(found)

    def fail_all(self, why: str) -> None:
        for one in list(self.waiting.values()):
            if not one.future.done():
                one.future.set_exception(NoReply(f"{why} while {one.subject} was under way"))

    def _fail_late(self) -> None:
        """Fail late requests, and remove those that nobody awaits any more."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for token, one in list(self.waiting.items()):
            if one.future.done():
                del self.waiting[token]
            elif one.end <= now:
                del self.waiting[token]
                one.future.set_exception(
                    NoReply(
                        f"no answer from {self._server} to {one.subject} within {one.seconds:g} s, though "
                        "the connection stands: if that lasts, ask its /healthz whether the disk is full"
                    )
                )
        self._room.set()
        self._checking = bool(self.waiting)
        if self._checking:
            loop.call_later(TIMEOUT_CHECK_SECONDS, self._fail_late)
