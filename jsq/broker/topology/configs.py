"""What lives on the server: each stream and consumer, as it should be. Pure: it asks nobody.

A queue's settings are kept beside its stream, in the stream's metadata.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jsq.broker.topology.subjects import Subjects
from jsq.errors import BadOption
from jsq.settings import QueueSettings

NS = 1_000_000_000
DAY = 86_400 * NS
EVENTS_DAYS = 7
DEAD_DAYS = 30
ID_SECONDS = EVENTS_DAYS * 86_400 + 3_600
"""How long a caller's own id is remembered: until no event of its job is left."""

MAX_DELIVER = 1_000
"""Where the server would hide a message for ever. A worker gives a job a new message long before."""

MAX_WAITING = 32_768
"""Pull requests one consumer may hold; it cannot be changed later, and the default, 512, is too few."""

MOST_ADVISORIES = 100_000

TIMES = frozenset({"ack_wait", "duplicate_window", "max_age"})
"""Fields that hold a time."""

KNOCKS = "knocks"
KNOCK_SECONDS = 5.0
"""How long a knock is one worker's before another gets it. To look after a key takes milliseconds, and may be
done twice."""

TICKS = "ticks"
TICK_LEASE = 10.0
"""Seconds until a tick goes to another worker, where the one that took it has died."""

Config = dict[str, Any]


def events(names: Subjects, replicas: int) -> Config:
    ns = names.namespace
    return {
        "name": names.events_stream,
        # What jobs keep stands in the same stream, so that a write of it can expect an event.
        "subjects": [f"{ns}.ev.>", f"{ns}.step.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_age": EVENTS_DAYS * DAY,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_atomic": True,
        "allow_batched": True,
        "duplicate_window": NS // 10,
        # Said again after it was stored: a plain subscriber of the events also sees writes that were refused.
        "republish": {"src": f"{ns}.ev.>", "dest": f"{ns}.on.>"},
        "metadata": owned(names),
    }


def view(names: Subjects, replicas: int) -> Config:
    ns = names.namespace
    key = f"$KV.{ns}_jobs.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"
    return bucket(names, "jobs", replicas) | {
        "subjects": None,
        "sources": [
            {
                "name": names.events_stream,
                "subject_transforms": [
                    {"src": f"{ns}.ev.*.*.*", "dest": key},
                    {"src": f"{ns}.ev.*.*.run.*", "dest": key},
                ],
            }
        ],
    }


def bucket(names: Subjects, name: str, replicas: int) -> Config:
    return {
        "name": names.bucket(name),
        "subjects": [f"$KV.{names.namespace}_{name}.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "discard": "new" if name != "jobs" else "old",
        "duplicate_window": NS // 10,
        "metadata": owned(names),
    }


def dead(names: Subjects, replicas: int) -> Config:
    return {
        "name": names.dead_stream,
        "subjects": [f"{names.namespace}.dead.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_age": DEAD_DAYS * DAY,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "duplicate_window": NS // 10,
        "metadata": owned(names),
    }


def advisories(names: Subjects, queues: Iterable[str], replicas: int) -> Config:
    """What the server says once and to whoever listens, kept for the next sweep.

    A subject for each queue: no wildcard tells one namespace's streams from another's.
    """
    return {
        "name": names.advisories_stream,
        "subjects": sorted(names.given_up(queue) for queue in queues),
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_age": DAY,
        "max_msgs": MOST_ADVISORIES,
        "allow_direct": True,
        "duplicate_window": NS // 10,
        "metadata": owned(names),
    }


def later(names: Subjects, queue: str, settings: QueueSettings) -> Config:
    ns = names.namespace
    return {
        "name": names.later_stream(queue),
        "subjects": [
            f"{ns}.later.{queue}.*",
            f"{ns}.due.{queue}.>",
            f"{ns}.lined.{queue}.>",
            names.tick(queue, "*"),
            names.ticked(queue, "*", "*"),
        ],
        "retention": "workqueue",
        "storage": settings.storage,
        "num_replicas": settings.replicas,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
        "allow_atomic": True,
        "duplicate_window": NS // 10,
        "metadata": owned(names),
    }


def ready(names: Subjects, queue: str, settings: QueueSettings, *, declared: bool) -> Config:
    ns = names.namespace
    return {
        "name": names.ready_stream(queue),
        "subjects": [f"{ns}.q.{queue}.*.*"],
        "retention": "workqueue",
        "storage": settings.storage,
        "num_replicas": settings.replicas,
        "max_msgs": settings.max_jobs or -1,
        "max_bytes": settings.max_bytes or -1,
        "discard": "new",
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_atomic": True,
        "allow_batched": True,
        "duplicate_window": NS // 10,
        "sources": [
            {
                "name": names.later_stream(queue),
                "subject_transforms": [{"src": f"{ns}.due.{queue}.>", "dest": f"{ns}.q.{queue}.>"}],
            }
        ],
        "metadata": owned(names)
        | {"jsq.queue": settings.model_dump_json(), "jsq.declared": "yes" if declared else "no"},
    }


def line(names: Subjects, queue: str, settings: QueueSettings) -> Config:
    """Where the jobs of a queue's keys wait for their turn, as many again as may wait on the queue itself.

    Not a work queue: what is sourced from such a one is removed there.
    """
    ns = names.namespace
    return {
        "name": names.line_stream(queue),
        "subjects": [names.line(queue, "*", "*"), names.line_head(queue)],
        "retention": "limits",
        "storage": settings.storage,
        "num_replicas": settings.replicas,
        "max_msgs": settings.max_jobs + 1 if settings.max_jobs else -1,
        "max_bytes": settings.max_bytes or -1,
        "max_msgs_per_subject": 1,
        "discard": "new",
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_atomic": True,
        "allow_batched": True,
        "duplicate_window": NS // 10,
        "sources": [
            {
                "name": names.later_stream(queue),
                "subject_transforms": [{"src": f"{ns}.lined.{queue}.>", "dest": f"{ns}.line.{queue}.>"}],
            }
        ],
        "metadata": owned(names),
    }


def turn(names: Subjects, queue: str, settings: QueueSettings) -> Config:
    """The turns of a queue's keys, and one knock at most of each key into whose line someone came.

    Apart from the lines: these may be full, and a turn must be written all the same.
    """
    knock = {"src": names.line(queue, "*", "*"), "dest": names.knock(queue, "{{wildcard(1)}}")}
    return {
        "name": names.turn_stream(queue),
        "subjects": [names.turn(queue, "*")],
        "retention": "workqueue",
        "storage": settings.storage,
        "num_replicas": settings.replicas,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "duplicate_window": NS // 10,
        "sources": [{"name": names.line_stream(queue), "subject_transforms": [knock]}],
        "metadata": owned(names),
    }


def knocks(names: Subjects, queue: str) -> Config:
    """The consumer by which all workers of a queue share the knocks, without the jobs that they came with."""
    return {
        "durable_name": KNOCKS,
        "name": KNOCKS,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": names.knock(queue, "*"),
        "ack_wait": round(KNOCK_SECONDS * NS),
        "max_ack_pending": -1,
        "max_waiting": MAX_WAITING,
        "headers_only": True,
    }


def consumer(names: Subjects, queue: str, level: str, settings: QueueSettings) -> Config:
    return {
        "durable_name": level,
        "name": level,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": names.ready(queue, level, "*"),
        "ack_wait": round(settings.lease * NS),
        "max_deliver": MAX_DELIVER,
        "max_ack_pending": settings.concurrency or -1,
        "max_waiting": MAX_WAITING,
    }


def ticker(names: Subjects, queue: str) -> Config:
    """The consumer of the ticks of a queue's schedules, on its LATER stream."""
    return {
        "durable_name": TICKS,
        "name": TICKS,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": names.ticked(queue, "*", "*"),
        "ack_wait": round(TICK_LEASE * NS),
        "max_waiting": MAX_WAITING,
    }


def owned(names: Subjects) -> dict[str, str]:
    return {"jsq.namespace": names.namespace}


def settings_of(config: Mapping[str, Any]) -> QueueSettings:
    """A queue's settings, as its stream's metadata tells them."""
    told = (config.get("metadata") or {}).get("jsq.queue")
    try:
        known = {k: v for k, v in json.loads(told or "{}").items() if k in QueueSettings.model_fields}
        return QueueSettings.read(**known)
    except (ValueError, AttributeError, BadOption):
        return QueueSettings()


def differences(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    """Where what is there differs from what is wanted, one line each."""
    told = []
    for field, value in wanted.items():
        found = have.get(field)
        if field == "metadata":
            value = {k: v for k, v in value.items() if k.startswith("jsq.")}
            found = {k: v for k, v in (found or {}).items() if k.startswith("jsq.")}
        if field == "sources":
            found = [
                {key: source.get(key) for key in ("name", "subject_transforms")} for source in found or []
            ]
        if value != found and not (value in (None, False) and not found):
            told.append(f"{field} is {short(field, found)}, should be {short(field, value)}")
    return told


def short(field: str, value: object) -> str:
    """The value of a field for people: the server counts times in nanoseconds."""
    if field in TIMES and isinstance(value, int):
        return f"{value / NS:g} s"
    return value if isinstance(value, str) else json.dumps(value)


def count_jobs(state: Mapping[str, Any]) -> int:
    """The jobs among the messages of a stream, by its state with the subjects of what are none."""
    others: dict[str, int] = state.get("subjects") or {}
    return int(state["messages"]) - sum(others.values())
