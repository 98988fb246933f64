"""The JetStream API: streams, consumers and their messages, by calls that are retried over an election.

A stream without responders does not exist, or its replicas elect a leader. A server without JetStream has
none, or it is starting in a cluster. The servers give the same answer in both cases, so every caller decides
by the functions of this module.
"""

import functools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from jsq.codec.revisions import format_time
from jsq.errors import BrokerError, BrokerUnavailable, CannotChange, JetStreamOff, Refused
from jsq.transport.replies import NoReply, NoResponders
from jsq.transport.retrying import ABSENT_SECONDS, with_retry
from jsq.transport.server_clock import PAST
from jsq.transport.wire import API_SECONDS, NO_STREAM, TRY_SECONDS, Wire

CALL_SECONDS = 15.0
"""Seconds for which a call is retried: longer than an election. Every call is safe to make twice."""

_NO_CONSUMER = 10014
_NO_MESSAGE = frozenset({10037, 10043, 10057})

JsonObject = dict[str, Any]
"""A configuration or a report of the server, as JSON."""

ApiCall = Callable[[str, Mapping[str, Any] | None], Awaitable[Any]]


async def call_api(
    wire: Wire, name: str, request: Mapping[str, Any] | None = None, *, timeout: float = API_SECONDS
) -> Any:
    """Make one call of the JetStream API.

    Raises the errors of `Wire.api`, but `NoReply` if a server of a cluster has no JetStream: while it starts,
    its accounts have none yet. The cause of that error is `JetStreamOff`.
    """
    try:
        return await wire.api(name, request, timeout=timeout)
    except JetStreamOff as error:
        if not wire.server.cluster:
            raise
        raise NoReply(str(error), sent=False) from error


async def find_stream(
    call: ApiCall, stream: str, request: Mapping[str, Any] | None = None
) -> JsonObject | None:
    """The server's report of a stream, read by `call`; None if the stream does not exist.

    A stream that elects its leader exists: the leader of the cluster's metadata knows it.
    """
    try:
        found: JsonObject = await call(f"STREAM.INFO.{stream}", request)
    except Refused as error:
        if error.code == NO_STREAM:
            return None
        raise
    return found


async def may_be_electing(wire: Wire, stream: str) -> bool:
    """Whether a stream without responders may exist, so that a repeated read gets an answer.

    Asks once. It is true if the servers do not answer, or if the user may not ask.
    """
    if not wire.server.cluster:
        return False

    async def ask_once(name: str, request: Mapping[str, Any] | None) -> Any:
        return await call_api(wire, name, request, timeout=TRY_SECONDS)

    try:
        return await find_stream(ask_once, stream) is not None
    except BrokerError:
        return True


class JetStreamApi:
    """The JetStream API of one account."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def call(self, name: str, request: Mapping[str, Any] | None = None) -> Any:
        """Make one call. Raises the errors of `Wire.api`; `JetStreamOff` if the server has no JetStream."""
        wire, began = self._wire, time.monotonic()
        try:
            try:
                return await call_api(wire, name, request)
            except (NoReply, NoResponders) as failed:
                return await with_retry(
                    wire,
                    functools.partial(call_api, wire, name, request),
                    seconds=CALL_SECONDS,
                    absent=ABSENT_SECONDS,
                    failed=failed,
                    began=began,
                )
        except NoReply as error:
            if isinstance(error.__cause__, JetStreamOff):
                raise error.__cause__ from error
            raise
        except NoResponders as error:
            if self._wire.server.has_jetstream:
                raise
            raise JetStreamOff(
                f"{self._wire.login.shown} has no JetStream; add `jetstream {{ store_dir: ... }}` to its "
                "conf, or start it with -js"
            ) from error

    async def account_info(self) -> JsonObject:
        """The server's report of the account: limits and use."""
        found: JsonObject = await self.call("INFO")
        return found

    async def pages(self, call: str, subject: str) -> AsyncIterator[list[Any]]:
        """The answer to STREAM.LIST or STREAM.NAMES for the streams of a subject, page by page."""
        offset, total = 0, 1
        while offset < total:
            page = await self.call(call, {"subject": subject, "offset": offset})
            total = page["total"]
            offset += max(1, len(page.get("streams") or []))
            yield page.get("streams") or []

    async def stream_info(self, stream: str, subjects: str = "") -> JsonObject | None:
        """The server's `{config, state, ...}` of a stream, or None; with the counts of some subjects."""
        return await find_stream(self.call, stream, {"subjects_filter": subjects} if subjects else None)

    async def is_absent(self, stream: str) -> bool:
        """Whether a stream without responders does not exist; if it exists, it has no leader now."""
        return await self.stream_info(stream) is None

    async def check_absent(self, stream: str) -> None:
        """Raise `BrokerUnavailable` if a stream without responders exists; see `is_absent`."""
        if not await self.is_absent(stream):
            raise BrokerUnavailable(f"{stream} has no leader just now; try again")

    async def create_stream(self, config: JsonObject) -> JsonObject:
        """Create a stream; returns its configuration."""
        created: JsonObject = await self.call(f"STREAM.CREATE.{config['name']}", config)
        return dict(created["config"])

    async def update_stream(self, config: JsonObject) -> None:
        """Update a stream. Raises `CannotChange`."""
        try:
            await self.call(f"STREAM.UPDATE.{config['name']}", config)
        except Refused as error:
            raise CannotChange(f"{config['name']} cannot be changed while it exists: {error}") from error

    async def consumer_info(self, stream: str, name: str) -> JsonObject | None:
        try:
            found: JsonObject = await self.call(f"CONSUMER.INFO.{stream}.{name}")
        except Refused as error:
            if error.code in (NO_STREAM, _NO_CONSUMER):
                return None
            raise
        return found

    async def put_consumer(self, stream: str, config: JsonObject) -> None:
        """Create or update a consumer."""
        name = f"CONSUMER.CREATE.{stream}.{config['name']}"
        if "filter_subject" in config:
            name += f".{config['filter_subject']}"
        await self.call(name, {"stream_name": stream, "config": config})

    async def pause_consumer(self, stream: str, name: str, until: datetime | None) -> None:
        """Stop the deliveries of a consumer until a time, or resume them now. Skips a missing consumer."""
        request = {"pause_until": format_time(until or PAST)}
        try:
            await self.call(f"CONSUMER.PAUSE.{stream}.{name}", request)
        except Refused as error:
            if error.code not in (NO_STREAM, _NO_CONSUMER):
                raise

    async def count(self, stream: str, subject: str) -> int:
        """The number of messages on a subject (with wildcards); for streams of few subjects."""
        found = await self.stream_info(stream, subject)
        return sum((found["state"].get("subjects") or {}).values()) if found is not None else 0

    async def count_subjects(self, stream: str, subject: str) -> int:
        """How many subjects of a stream match one with wildcards; 0 if there is no stream.

        A consumer of the last message of each subject reports that when it is created. The server deletes it
        a second later.
        """
        name = f"count-{secrets.token_hex(8)}"
        config = {
            "name": name,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "filter_subject": subject,
            "inactive_threshold": 1_000_000_000,
            "mem_storage": True,
            "num_replicas": 1,
        }
        request = {"stream_name": stream, "config": config, "action": "create"}
        try:
            created = await self.call(f"CONSUMER.CREATE.{stream}.{name}", request)
        except Refused as error:
            if error.code == NO_STREAM:
                return 0
            raise
        return int(created["num_pending"])

    async def purge(self, stream: str, subject: str, *, below: int | None = None, keep: int = 0) -> int:
        """Delete the messages on a subject (with wildcards), or those below a sequence; returns how many.

        The last `keep` of them stay.
        """
        request: JsonObject = {"filter": subject}
        request |= {"seq": below} if below is not None else {"keep": keep} if keep else {}
        try:
            answer = await self.call(f"STREAM.PURGE.{stream}", request)
        except Refused as error:
            if error.code == NO_STREAM:
                return 0
            raise
        return int(answer["purged"])

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """Delete the message with a sequence; False if it does not exist."""
        try:
            await self.call(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except Refused as error:
            if error.code in {NO_STREAM, *_NO_MESSAGE}:
                return False
            raise
        return True
