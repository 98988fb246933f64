"""The permissions of this login, found by probes.

Each probe is a request that changes nothing, or that the server refuses for another reason. Examples are a
write that expects a sequence which does not exist, and a pull that is not JSON. So any reply except a
permissions violation means that the request is allowed.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from jsq.broker.broker import Broker
from jsq.broker.health.finding import Finding
from jsq.broker.jobs.records import expectation_headers
from jsq.broker.topology.configs import TICKS_CONSUMER, WAKEUPS
from jsq.broker.topology.subjects import Subjects
from jsq.codec.envelope import new_id
from jsq.errors import NotAllowed
from jsq.model.job import PRIORITIES
from jsq.transport.replies import NoResponders
from jsq.transport.wire import Headers

UNREACHED_SEQUENCE = 10**18
"""A sequence that no stream has reached."""

MAX_CONCURRENT_PROBES = 50


@dataclass(frozen=True, slots=True)
class PermissionProbe:
    """A request that shows whether an act is allowed on a queue."""

    act: str
    queue: str
    subject: str
    payload: bytes = b""
    headers: Headers | None = None


async def examine_permissions(broker: Broker) -> list[Finding]:
    """The acts that this login may not do, by queue, with the reason; or one finding that it may do all."""
    id = new_id()
    queues = list(await broker.streams.queues())
    probes = iter([one for queue in queues for one in permission_probes(broker.subjects, queue, id)])
    denied: dict[tuple[str, str], str] = {}

    async def send_probes() -> None:
        for one in probes:
            reason = await _request_denial(broker, one)
            if reason:
                denied.setdefault((one.act, one.queue), reason)

    await asyncio.gather(*(send_probes() for _ in range(MAX_CONCURRENT_PROBES)))
    for queue in queues:
        reason = await _subscription_denial(broker, broker.subjects.stored_record(queue, id))
        if reason:
            denied.setdefault(("follow jobs", queue), reason)
    if denied or not queues:
        return [
            Finding("warning", "permissions", f"this login may not {act} on queue {queue}: {reason}")
            for (act, queue), reason in sorted(denied.items())
        ]
    return [Finding("ok", "permissions", "this login may submit, follow, cancel and run jobs on every queue")]


def permission_probes(subjects: Subjects, queue: str, id: str) -> Iterator[PermissionProbe]:
    """The requests that show which acts are allowed on a queue; `id` is an id that no job has."""
    ready = subjects.streams.ready(queue)

    def write(act: str, subject: str) -> PermissionProbe:
        return PermissionProbe(act, queue, subject, b"", expectation_headers(UNREACHED_SEQUENCE, subject))

    yield write("submit", subjects.ready(queue, "normal", id))
    yield write("submit", subjects.scheduled(queue, id))
    yield write("submit with a key", subjects.groups.job(queue, id, id))
    yield write("submit under an own id", subjects.own_id(id))
    yield write("submit under a unique key", subjects.unique_key(id))
    record = f"{subjects.streams.records}.{subjects.record(queue, id)}"
    yield PermissionProbe("read jobs", queue, f"$JS.API.DIRECT.GET.{record}")
    for level in PRIORITIES:
        yield PermissionProbe("run jobs", queue, f"$JS.API.CONSUMER.MSG.NEXT.{ready}.{level}", b"{")
        yield PermissionProbe(
            "run jobs",
            queue,
            f"$JS.ACK.{ready}.{level}.1.{UNREACHED_SEQUENCE}.{UNREACHED_SEQUENCE}.0.0",
            b"+WPI",
        )
    groups, states = subjects.streams.groups(queue), subjects.streams.group_state(queue)
    yield PermissionProbe("run jobs with a key", queue, f"$JS.API.CONSUMER.MSG.NEXT.{states}.{WAKEUPS}", b"{")
    yield PermissionProbe("run jobs with a key", queue, f"$JS.API.STREAM.MSG.DELETE.{groups}", b"{")
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


async def _request_denial(broker: Broker, one: PermissionProbe) -> str:
    """The reason why a request is not allowed; empty if it is allowed."""
    try:
        await broker.wire.ask(one.subject, one.payload, one.headers)
    except NotAllowed as error:
        return str(error)
    except NoResponders:
        pass  # the request is allowed; a missing stream or consumer is a finding of its own
    return ""


async def _subscription_denial(broker: Broker, subject: str) -> str:
    """The reason why a subscription is not allowed; empty if it is allowed."""
    subscription = await broker.wire.subscribe(subject, lambda message: None)
    try:
        await broker.wire.flush()
        broker.wire.refusals.check_subscription(subject)
    except NotAllowed as error:
        return str(error)
    finally:
        await broker.wire.unsubscribe(subscription)
    return ""
