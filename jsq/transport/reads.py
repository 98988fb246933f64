"""Reads of stored messages: from any replica by direct gets, or from the leader of the stream."""

import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsq.errors import NotAllowed, Refused
from jsq.transport.jetstream import call_api, may_be_electing
from jsq.transport.replies import MESSAGE_NOT_FOUND, NoReply, NoResponders, Reply, leader_reply
from jsq.transport.retrying import ABSENT_SECONDS, READ_SECONDS, with_retry
from jsq.transport.wire import API_SECONDS, NO_STREAM, TRY_SECONDS, Wire

_NO_MESSAGE = 10037

ROOM_FOR_REQUEST = 1_024
"""Bytes of a request for many subjects that its other fields may take."""


class Reads:
    """Reads the streams behind one connection."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._closed_leaders: set[str] = set()

    async def last(self, stream: str, subject: str, *, consistent: bool = False) -> Reply | None:
        """The last message on a subject, which may hold wildcards.

        A replica answers, and may be a little behind the leader. With `consistent` the leader answers, if the
        user may ask it. That permission allows reading the whole stream. The other request has the read
        subject in its own subject, so a permission can be limited to it.
        """
        if consistent and stream not in self._closed_leaders:
            try:
                return await self._ask_leader(stream, {"last_by_subj": subject})
            except NotAllowed:
                self._closed_leaders.add(stream)
        return await self._get(f"{stream}.{subject}", b"")

    def may_ask_leader(self, stream: str) -> bool:
        """Whether the user may ask the leader of a stream; true until the server refuses it."""
        return stream not in self._closed_leaders

    async def get(self, stream: str, sequence: int, *, consistent: bool = False) -> Reply | None:
        """The message with a sequence; see `last`."""
        request = {"seq": sequence}
        if consistent and stream not in self._closed_leaders:
            try:
                return await self._ask_leader(stream, request)
            except NotAllowed:
                self._closed_leaders.add(stream)
        return await self._get(stream, json.dumps(request).encode())

    async def next(
        self, stream: str, subject: str, *, after: int = 0, consistent: bool = False
    ) -> Reply | None:
        """The first message on a subject (with wildcards) after a sequence; see `last`."""
        request = {"seq": after + 1, "next_by_subj": subject}
        if consistent and stream not in self._closed_leaders:
            try:
                return await self._ask_leader(stream, request)
            except NotAllowed:
                self._closed_leaders.add(stream)
        return await self._get(stream, json.dumps(request).encode())

    async def fetch(
        self, stream: str, subject: str, *, after: int = 0, limit: int | None = None, since: str = ""
    ) -> list[Reply]:
        """The messages on a subject (with wildcards), in order, after a sequence or since a time."""
        found: list[Reply] = []
        start: dict[str, Any] = {"start_time": since} if since else {"seq": after + 1}
        while limit is None or len(found) < limit:
            batch = min(1000, limit - len(found)) if limit is not None else 1000
            request = {**start, "next_by_subj": subject, "batch": batch}
            page, left = await self._retry_page(stream, request)
            found += page
            if not page or not left:
                break
            start = {"seq": int(page[-1].headers["Nats-Sequence"]) + 1}
        return found

    async def page(
        self, stream: str, subject: str, *, after: int = 0, limit: int, max_bytes: int
    ) -> tuple[list[Reply], bool]:
        """The next `limit` messages on a subject, or `max_bytes` of them; and whether more follow."""
        request = {"seq": after + 1, "next_by_subj": subject, "batch": limit, "max_bytes": max_bytes}
        found, left = await self._retry_page(stream, request)
        return found, left > 0

    async def count(self, stream: str, subject: str) -> int:
        """How many messages are on a subject (with wildcards).

        It costs the server 0.15 ms for each thousand; `STREAM.INFO`, which lists their subjects, 3 ms.
        """
        found, left = await self._retry_page(stream, {"seq": 1, "next_by_subj": subject, "batch": 1})
        return len(found) + left

    async def last_per_subject(self, stream: str, subjects: Sequence[str]) -> list[Reply]:
        """The last message on each of the subjects (with wildcards): a thousand messages at most."""
        found: list[Reply] = []
        for some in by_size(subjects, self._wire.max_payload - ROOM_FOR_REQUEST):
            page, _ = await self._retry_page(stream, {"multi_last": some, "batch": 1000})
            found += page
        return found

    async def _ask_leader(self, stream: str, request: Mapping[str, Any]) -> Reply | None:
        call, wire, began = f"STREAM.MSG.GET.{stream}", self._wire, time.monotonic()
        try:
            try:
                found = await call_api(wire, call, request, timeout=TRY_SECONDS)
            except (NoReply, NoResponders) as failed:
                again = functools.partial(call_api, wire, call, request, timeout=TRY_SECONDS)
                found = await with_retry(wire, again, failed=failed, began=began)
        except Refused as error:
            if error.code in (_NO_MESSAGE, NO_STREAM):
                return None
            raise
        return leader_reply(stream, found["message"])

    async def _get(self, place: str, body: bytes) -> Reply | None:
        subject, wire, began = f"$JS.API.DIRECT.GET.{place}", self._wire, time.monotonic()
        try:
            reply = await wire.ask(subject, body)
        except (NoReply, NoResponders) as failed:
            again = functools.partial(wire.ask, subject, body)
            try:
                reply = await with_retry(
                    wire, again, seconds=READ_SECONDS, absent=ABSENT_SECONDS, failed=failed, began=began
                )
            except NoResponders:
                if not await may_be_electing(wire, place.partition(".")[0]):
                    raise
                reply = await with_retry(wire, again, seconds=READ_SECONDS, absent=READ_SECONDS)
        return None if reply.raw.startswith(MESSAGE_NOT_FOUND) else reply

    async def _retry_page(self, stream: str, request: Mapping[str, Any]) -> tuple[list[Reply], int]:
        return await with_retry(
            self._wire,
            functools.partial(self._page, stream, request),
            seconds=READ_SECONDS,
            absent=ABSENT_SECONDS,
        )

    async def _page(self, stream: str, request: Mapping[str, Any]) -> tuple[list[Reply], int]:
        """One batch of a direct get, and how many messages follow it."""
        wire, subject = self._wire, f"$JS.API.DIRECT.GET.{stream}"
        if not wire.connected:
            raise NoReply(f"not connected to {wire.login.shown}", sent=False)
        inbox = wire.new_inbox()
        page: list[Reply] = []
        token, ended = wire.pending.add(subject, API_SECONDS)

        def take(message: Reply) -> None:
            # A status ends the batch: 204 after its last message, 404 if there is none.
            if not message.status:
                page.append(message)
            elif not ended.done():
                ended.set_result(message)

        subscription = await wire.subscribe(inbox, take)
        try:
            wire.send(subject, json.dumps(request).encode(), reply=inbox)
            last = await ended
        finally:
            wire.pending.waiting.pop(token, None)
            await wire.unsubscribe(subscription)
        if last.status == "503":
            raise NoResponders(f"no responders at {wire.login.shown} for {stream}")
        return page, int(last.headers.get("Nats-Num-Pending", "0"))


def by_size(subjects: Sequence[str], most: int) -> Iterator[list[str]]:
    """The subjects in their order, in parts whose JSON takes `most` bytes at most, or one subject each."""
    part: list[str] = []
    left = most
    for subject in subjects:
        size = len(subject) + 4  # quotes, a comma and a space
        if part and size > left:
            yield part
            part, left = [], most
        part.append(subject)
        left -= size
    if part:
        yield part
