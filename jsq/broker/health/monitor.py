"""The report of each server over HTTP: its health, its clock, and its own copies of the namespace's streams.

The leader of a stream answers clients, and does not know that its copy is damaged; `/healthz` does not
either. Only a comparison of the servers' own reports shows the damage.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from jsq.broker.health.finding import Finding, judge_clock, judge_use
from jsq.codec import revisions
from jsq.errors import BadOption
from jsq.transport.connection import FLOOR

REPORT_SECONDS = 5.0
"""How long the doctor waits for a server's report."""

MAX_REPORT_BYTES = 64 * 2**20
"""The size above which a report is not read; the report of a thousand queues has about 4 MB."""

REPORT_ROUNDS = 3
SECONDS_BETWEEN_REPORTS = 0.4
"""How often reports are read, and the pause between. While jobs are stored, copies differ at any one moment.
"""


@dataclass(frozen=True, slots=True)
class StreamCopy:
    """One server's copy of a stream: how many messages, and the sequences of the first and the last."""

    messages: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ServerReport:
    """The report of one server.

    `clock` is the least number of seconds by which its clock is ahead of this machine's. `current` has, for
    each stream that the server leads, the servers whose copies are up to date, itself included.
    """

    server: str
    version: str
    health: str
    clock: float
    storage: int
    max_storage: int
    copies: Mapping[str, StreamCopy]
    current: Mapping[str, frozenset[str]]


async def examine_servers(urls: Sequence[str], namespace: str, lease: float) -> list[Finding]:
    """Check each server by itself, then compare the servers' copies of the namespace's streams.

    Raises `BadOption` if a URL is not the address of a monitoring endpoint.
    """
    for url in urls:
        check_url(url)
    rounds: list[list[ServerReport]] = []
    findings: list[Finding] = []
    for number in range(REPORT_ROUNDS):
        if number:
            await asyncio.sleep(SECONDS_BETWEEN_REPORTS)
        read = await asyncio.gather(*(asyncio.to_thread(fetch_report, url, namespace) for url in urls))
        findings = [one for one in read if isinstance(one, Finding)]
        rounds.append([one for one in read if isinstance(one, ServerReport)])
    for one in rounds[-1]:
        findings += judge_server(one, lease)
    return findings + judge_copies(rounds)


def judge_server(one: ServerReport, lease: float) -> list[Finding]:
    """The findings for one server by itself."""
    what = f"server {one.server}"
    found = [judge_clock(what, one.clock, lease), judge_use(what, "storage", one.storage, one.max_storage)]
    if one.health != "ok":
        found.append(Finding("error", what, f"is not healthy: {one.health}"))
    if tuple(int(part) for part in one.version.partition("-")[0].split(".")) < FLOOR:
        floor = ".".join(str(part) for part in FLOOR)
        found.append(Finding("error", what, f"runs nats-server {one.version}; update it to {floor} or newer"))
    wrong = [finding for finding in found if finding.severity != "ok"]
    return wrong or [Finding("ok", what, f"nats-server {one.version}, healthy; {found[0].message}")]


def judge_copies(rounds: Sequence[Sequence[ServerReport]]) -> list[Finding]:
    """The findings for streams whose copies differ.

    Each number is compared as the range of its readings. However busy a stream is, the ranges of healthy
    copies overlap; the range of a damaged copy does not.
    """
    seen: dict[str, dict[str, list[StreamCopy]]] = defaultdict(lambda: defaultdict(list))
    current = rounds[-1] if rounds else ()
    for stream, servers in ((s, names) for one in current for s, names in one.current.items()):
        for one in (report for reading in rounds for report in reading):
            if one.server in servers and stream in one.copies:
                seen[stream][one.server].append(one.copies[stream])
    findings = [
        Finding("error", f"stream {stream}", copies_message(stream, copies))
        for stream, copies in sorted(seen.items())
        if copies_differ(copies.values())
    ]
    compared = sum(len(copies) > 1 for copies in seen.values())
    if not findings and compared:
        findings = [Finding("ok", "replicas", f"the copies of {compared} streams are the same")]
    return findings


def copies_differ(copies: Any) -> bool:
    """Whether the readings of some copies cannot belong to the same stream."""
    for field in ("messages", "first", "last"):
        ranges = [[getattr(one, field) for one in readings] for readings in copies]
        if max(min(one) for one in ranges) > min(max(one) for one in ranges):
            return True
    return False


def copies_message(stream: str, copies: Mapping[str, Sequence[StreamCopy]]) -> str:
    last = {server: readings[-1] for server, readings in sorted(copies.items())}
    holds = [
        f"{server} holds {one.messages:,} ({one.first:,} to {one.last:,})" for server, one in last.items()
    ]
    fullest = max(last, key=lambda server: last[server].messages)
    return (
        f"its copies differ: {', '.join(holds)}. If they still differ in a minute, let {fullest} lead (`nats "
        f"stream cluster step-down {stream} --preferred {fullest}`); then stop each server whose copy is "
        f"damaged, remove the folder streams/{stream} from its store_dir, and start it again"
    )


# -- reading ---------------------------------------------------------------------------------------------


def fetch_report(url: str, namespace: str) -> ServerReport | Finding:
    """Request the report of one server; returns a finding if it sends none."""
    try:
        health = fetch_json(url, "/healthz")
        before = time.time()
        about = fetch_json(url, "/varz")
        after = time.time()
        jetstream = fetch_json(url, "/jsz?streams=true&config=true")
        return read_report(health, about, jetstream, namespace, (before, after))
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        return Finding("error", f"monitor {url}", f"no report of a nats-server: {why}; check the address")


def read_report(
    health: Any, about: Any, jetstream: Any, namespace: str, asked: tuple[float, float]
) -> ServerReport:
    """The report in a server's `/healthz`, `/varz` and `/jsz`.

    `asked` is when `/varz` was requested and when it was received, in seconds since the epoch.
    """
    name = about["server_name"]
    streams = [
        one for account in jetstream.get("account_details", ()) for one in account.get("stream_detail", ())
    ]
    ours = [one for one in streams if (one["config"].get("metadata") or {}).get("jsq.namespace") == namespace]
    return ServerReport(
        server=name,
        version=about["version"],
        health=health.get("error") or health["status"],
        clock=clock_offset(revisions.parse_time(about["now"]).timestamp(), *asked),
        storage=jetstream["storage"],
        max_storage=jetstream["config"].get("max_storage", 0),
        copies={
            one["name"]: StreamCopy(*(one["state"][field] for field in ("messages", "first_seq", "last_seq")))
            for one in ours
        },
        current={one["name"]: current_servers(one["cluster"]) for one in ours if is_leader(one, name)},
    )


def is_leader(stream: Mapping[str, Any], server: str) -> bool:
    return bool((stream.get("cluster") or {}).get("leader") == server)


def current_servers(cluster: Mapping[str, Any]) -> frozenset[str]:
    """The servers whose copies are current, by the report of the stream's leader.

    A follower only knows whether the leader's copy is current.
    """
    others = (one["name"] for one in cluster.get("replicas") or () if one["current"])
    return frozenset((cluster["leader"], *others))


def clock_offset(remote: float, before: float, after: float) -> float:
    """The least number of seconds by which a remote clock is ahead of ours (negative: behind).

    `remote` is a time of that clock, which was read between `before` and `after` of ours.
    """
    if remote > after:
        return remote - after
    return min(0.0, remote - before)


def check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        rule = "must be the address of a monitoring endpoint, such as http://127.0.0.1:8222"
        raise BadOption("monitor", url, rule)


def fetch_json(url: str, path: str) -> Any:
    """One document of a server, whatever the status of the response is."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=REPORT_SECONDS)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}{path}")
        body = connection.getresponse().read(MAX_REPORT_BYTES + 1)
    finally:
        connection.close()
    if len(body) > MAX_REPORT_BYTES:
        raise ValueError(f"it has more than {MAX_REPORT_BYTES:,} bytes")
    return json.loads(body)
