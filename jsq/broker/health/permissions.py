"""What this login may do, found out by trying.

Each try is one that the server refuses for another reason, or that changes nothing: a write that expects a
sequence which never was, a pull that is no JSON. So any answer means that it would be allowed.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from jsq.broker.broker import Broker
from jsq.broker.health.finding import Finding
from jsq.broker.jobs.records import expecting
from jsq.broker.topology.configs import TICKS_CONSUMER, WAKEUPS
from jsq.broker.topology.subjects import Subjects
from jsq.codec.envelope import new_id
from jsq.errors import NotAllowed
from jsq.model.job import PRIORITIES
from jsq.transport.replies import NoResponders
from jsq.transport.wire import Headers

UNREACHED_SEQUENCE = 10**18
"""A sequence that no stream has come to."""

MAX_CONCURRENT_PROBES = 50


@dataclass(frozen=True, slots=True)
class PermissionProbe:
    """One request of a kind that an act needs."""

    act: str
    queue: str
    subject: str
    payload: bytes = b""
    headers: Headers | None = None


async def examine_permissions(broker: Broker) -> list[Finding]:
    """What this login may not do, by act and queue, with the reason."""
    id = new_id()
    queues = list(await broker.streams.queues())
    left = iter([one for queue in queues for one in permission_probes(broker.subjects, queue, id)])
    denied: dict[tuple[str, str], str] = {}

    async def make_next() -> None:
        for one in left:
            why = await _denied(broker, one)
            if why:
                denied.setdefault((one.act, one.queue), why)

    await asyncio.gather(*(make_next() for _ in range(MAX_CONCURRENT_PROBES)))
    for queue in queues:
        why = await _deaf(broker, broker.subjects.stored_record(queue, id))
        if why:
            denied.setdefault(("follow jobs", queue), why)
    if denied or not queues:
        return [
            Finding("warning", "permissions", f"this login may not {act} on queue {queue}: {why}")
            for (act, queue), why in sorted(denied.items())
        ]
    return [Finding("ok", "permissions", "this login may submit, follow, cancel and run jobs on every queue")]


def permission_probes(subjects: Subjects, queue: str, id: str) -> Iterator[PermissionProbe]:
    """The requests that show what may be done with a queue; `id` is one that no job has."""
    ready = subjects.streams.ready(queue)

    def write(act: str, subject: str) -> PermissionProbe:
        return PermissionProbe(act, queue, subject, b"", expecting(UNREACHED_SEQUENCE, subject))

    yield write("submit", subjects.ready(queue, "normal", id))
    yield write("submit", subjects.scheduled(queue, id))
    yield write("submit with a key", subjects.groups.job(queue, id, id))
    yield write("submit under an own id", subjects.own_id(id))
    yield write("submit under a unique key", subjects.key("ids", f"u.{id}"))
    place = f"{subjects.streams.records}.{subjects.record(queue, id)}"
    yield PermissionProbe("look at jobs", queue, f"$JS.API.DIRECT.GET.{place}")
    for level in PRIORITIES:
        yield PermissionProbe("run jobs", queue, f"$JS.API.CONSUMER.MSG.NEXT.{ready}.{level}", b"{")
        yield PermissionProbe(
            "run jobs",
            queue,
            f"$JS.ACK.{ready}.{level}.1.{UNREACHED_SEQUENCE}.{UNREACHED_SEQUENCE}.0.0",
            b"+WPI",
        )
    line, turn = subjects.streams.groups(queue), subjects.streams.group_state(queue)
    yield PermissionProbe("run jobs with a key", queue, f"$JS.API.CONSUMER.MSG.NEXT.{turn}.{WAKEUPS}", b"{")
    yield PermissionProbe("run jobs with a key", queue, f"$JS.API.STREAM.MSG.DELETE.{line}", b"{")
    yield write("run jobs with a key", subjects.groups.state(queue, id))
    yield write("run jobs", subjects.record(queue, id))
    yield write("run jobs", subjects.dead(queue, "_", id))
    yield write("run jobs", subjects.key("workers", f"doctor-{id}"))
    later = subjects.streams.scheduled(queue)
    yield PermissionProbe("run schedules", queue, f"$JS.API.CONSUMER.MSG.NEXT.{later}.{TICKS_CONSUMER}", b"{")
    yield PermissionProbe(
        "run schedules",
        queue,
        f"$JS.ACK.{later}.{TICKS_CONSUMER}.1.{UNREACHED_SEQUENCE}.{UNREACHED_SEQUENCE}.0.0",
        b"+WPI",
    )
    yield write("run schedules", subjects.next_tick(queue, id))
    yield write("run schedules", subjects.schedule(queue, id))
    yield write("cancel", subjects.record(queue, id))


async def _denied(broker: Broker, one: PermissionProbe) -> str:
    """Why a try is not allowed, or nothing."""
    try:
        await broker.wire.ask(one.subject, one.payload, one.headers)
    except NotAllowed as error:
        return str(error)
    except NoResponders:
        pass  # allowed; what is missing is told of apart
    return ""


async def _deaf(broker: Broker, subject: str) -> str:
    """Why a subscription is not allowed, or nothing."""
    subscription = await broker.wire.subscribe(subject, lambda message: None)
    try:
        await broker.wire.flush()
        broker.wire.refusals.check_subscription(subject)
    except NotAllowed as error:
        return str(error)
    finally:
        await broker.wire.unsubscribe(subscription)
    return ""
