"""What lives on the server: each stream and consumer, as it should be. Pure: it asks nobody.

A queue's settings are kept beside its stream, in the stream's metadata.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsq.broker.topology.subjects import Subjects
from jsq.codec.subject_token import ANY, Token
from jsq.errors import BadOption
from jsq.model.job import PRIORITIES
from jsq.settings import QueueSettings

NS = 1_000_000_000
DAY_NS = 86_400 * NS
RECORD_DAYS = 30
"""Days for which a record and a dead letter stay at most: the `max_age` of the bucket of records."""

MAX_HISTORY = 64
"""Revisions of a record that the server keeps, the most that a KV bucket may have."""

ID_SECONDS = 7 * 86_400 + 3_600
"""Seconds for which the claim of a caller's own id stays. After that, a record of its job still holds it."""

MAX_DELIVER = 1_000
"""Where the server would hide a message for ever. A worker gives a job a new message long before."""

MAX_WAITING = 32_768
"""Pull requests one consumer may hold; it cannot be changed later, and the default, 512, is too few."""

MAX_ADVISORIES = 100_000

TIMES = frozenset({"ack_wait", "duplicate_window", "max_age"})
"""Fields that hold a time."""

WAKEUPS = "wakeups"
WAKEUP_LEASE = 5.0
"""Seconds until a wake-up goes to another worker. Handling one takes milliseconds and is safe to repeat."""

TICKS_CONSUMER = "ticks"
TICK_LEASE = 10.0
"""Seconds until a tick goes to another worker, where the one that took it has died."""

FIRST, SECOND = Token("{{wildcard(1)}}"), Token("{{wildcard(2)}}")
"""The tokens of a sourced message that stood for the first and the second `*`, in the subject it gets."""

Config = dict[str, Any]
"""The configuration of a stream or consumer, as the JSON of the server's API."""


def records_config(subjects: Subjects, replicas: int) -> Config:
    """The bucket of records, with the dead letters: a failed record and its letter are one atomic batch."""
    ns = subjects.namespace
    return bucket_config(subjects, "jobs", replicas) | {
        "subjects": [f"$KV.{ns}_jobs.>", f"{ns}.dead.>"],
        "max_msgs_per_subject": MAX_HISTORY,
        "max_age": RECORD_DAYS * DAY_NS,
        "allow_atomic": True,
        # Published again once it is stored: a subscriber of the key itself also sees writes that are refused.
        "republish": {"src": f"$KV.{ns}_jobs.>", "dest": f"{ns}.on.>"},
    }


def events_config(subjects: Subjects, replicas: int, days: float) -> Config:
    """The optional event log: every revision of every record, with a retention of its own."""
    ns = subjects.namespace
    return {
        "name": subjects.streams.events,
        "subjects": None,
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_age": round(days * DAY_NS),
        "allow_direct": True,
        "duplicate_window": NS // 10,
        "sources": [
            {
                "name": subjects.streams.records,
                "subject_transforms": [
                    {"src": f"$KV.{ns}_jobs.*.*", "dest": f"{ns}.ev.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"}
                ],
            }
        ],
        "metadata": owned(subjects),
    }


def bucket_config(subjects: Subjects, name: str, replicas: int) -> Config:
    return {
        "name": subjects.streams.bucket(name),
        "subjects": [f"$KV.{subjects.namespace}_{name}.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "discard": "new",
        "duplicate_window": NS // 10,
        "metadata": owned(subjects),
    }


def advisories_config(subjects: Subjects, queues: Iterable[str], replicas: int) -> Config:
    """What the server says once and to whoever listens, kept for the next sweep.

    A subject for each queue: no wildcard tells one namespace's streams from another's.
    """
    return {
        "name": subjects.streams.advisories,
        "subjects": sorted(subjects.max_deliveries(queue) for queue in queues),
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_age": DAY_NS,
        "max_msgs": MAX_ADVISORIES,
        "allow_direct": True,
        "duplicate_window": NS // 10,
        "metadata": owned(subjects),
    }


def scheduled_config(subjects: Subjects, queue: str, settings: QueueSettings) -> Config:
    ns = subjects.namespace
    return {
        "name": subjects.streams.scheduled(queue),
        "subjects": [
            subjects.scheduled(queue, ANY),
            f"{ns}.due.{queue}.>",
            f"{ns}.group-due.{queue}.>",
            subjects.next_tick(queue, ANY),
            subjects.due_tick(queue, "*", ANY),
        ],
        "retention": "workqueue",
        "storage": settings.storage,
        "num_replicas": settings.replicas,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
        "allow_atomic": True,
        "duplicate_window": NS // 10,
        "metadata": owned(subjects),
    }


def ready_config(subjects: Subjects, queue: str, settings: QueueSettings, *, declared: bool) -> Config:
    ns = subjects.namespace
    return {
        "name": subjects.streams.ready(queue),
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
                "name": subjects.streams.scheduled(queue),
                "subject_transforms": [
                    {"src": subjects.due(queue, "*", ANY), "dest": subjects.ready(queue, FIRST, SECOND)}
                ],
            }
        ],
        "metadata": owned(subjects)
        | {
            "jsq.queue": settings.as_json(),
            "jsq.declared": "yes" if declared else "no",
        },
    }


def groups_config(subjects: Subjects, queue: str, settings: QueueSettings) -> Config:
    """The stream in which the jobs of key groups wait, with the same limits as the queue.

    It is not a work queue: the server deletes from a work queue what another stream sources from it.
    """
    return {
        "name": subjects.streams.groups(queue),
        "subjects": [subjects.groups.job(queue, "*", ANY), subjects.groups.sentinel(queue)],
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
                "name": subjects.streams.scheduled(queue),
                "subject_transforms": [
                    {
                        "src": subjects.groups.due(queue, "*", ANY),
                        "dest": subjects.groups.job(queue, FIRST, SECOND),
                    }
                ],
            }
        ],
        "metadata": owned(subjects),
    }


def group_state_config(subjects: Subjects, queue: str, settings: QueueSettings) -> Config:
    """The stream with the state of each key group, and at most one wake-up for each group that a job joined.

    It is separate from the jobs of the groups: their stream may be full, and the state must still be written.
    """
    wakeup = {
        "src": subjects.groups.job(queue, "*", ANY),
        "dest": subjects.groups.wakeup(queue, FIRST),
    }
    return {
        "name": subjects.streams.group_state(queue),
        "subjects": [subjects.groups.state(queue, "*")],
        "retention": "workqueue",
        "storage": settings.storage,
        "num_replicas": settings.replicas,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "duplicate_window": NS // 10,
        "sources": [{"name": subjects.streams.groups(queue), "subject_transforms": [wakeup]}],
        "metadata": owned(subjects),
    }


def wakeup_consumer(subjects: Subjects, queue: str) -> Config:
    """The consumer by which the workers of a queue share the wake-ups, without the bodies of the jobs."""
    return {
        "durable_name": WAKEUPS,
        "name": WAKEUPS,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": subjects.groups.wakeup(queue, "*"),
        "ack_wait": round(WAKEUP_LEASE * NS),
        "max_ack_pending": -1,
        "max_waiting": MAX_WAITING,
        "headers_only": True,
    }


def queue_consumer(subjects: Subjects, queue: str, level: str, settings: QueueSettings) -> Config:
    return {
        "durable_name": level,
        "name": level,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": subjects.ready(queue, level, ANY),
        "ack_wait": round(settings.lease * NS),
        "max_deliver": MAX_DELIVER,
        "max_ack_pending": settings.concurrency or -1,
        "max_waiting": MAX_WAITING,
    }


def tick_consumer(subjects: Subjects, queue: str) -> Config:
    """The consumer of the due ticks of a queue's schedules, on its SCHEDULED stream."""
    return {
        "durable_name": TICKS_CONSUMER,
        "name": TICKS_CONSUMER,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": subjects.due_tick(queue, "*", ANY),
        "ack_wait": round(TICK_LEASE * NS),
        "max_waiting": MAX_WAITING,
    }


def shared_configs(subjects: Subjects, replicas: int) -> tuple[Config, ...]:
    """The streams and buckets that all queues of a namespace share."""
    return (
        records_config(subjects, replicas),
        bucket_config(subjects, "ids", replicas),
        bucket_config(subjects, "workers", replicas),
        bucket_config(subjects, "schedules", replicas),
        bucket_config(subjects, "limits", replicas),
    )


def consumer_configs(subjects: Subjects, queue: str, settings: QueueSettings) -> Iterator[tuple[str, Config]]:
    """The consumers of a queue, each with its stream: one for each priority, and the consumer of ticks."""
    for level in PRIORITIES:
        yield subjects.streams.ready(queue), queue_consumer(subjects, queue, level, settings)
    yield subjects.streams.scheduled(queue), tick_consumer(subjects, queue)


def owned(subjects: Subjects) -> dict[str, str]:
    return {"jsq.namespace": subjects.namespace}


def settings_of(config: Mapping[str, Any]) -> QueueSettings:
    """A queue's settings, as its stream's metadata tells them."""
    told = (config.get("metadata") or {}).get("jsq.queue")
    try:
        known = {k: v for k, v in json.loads(told or "{}").items() if k in QueueSettings.fields}
        return QueueSettings.read(**known)
    except (ValueError, AttributeError, BadOption):
        return QueueSettings()


def config_differences(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    """Where what is there differs from what is wanted, one line each."""
    told = []
    for field, value in wanted.items():
        found = have.get(field)
        if field == "metadata":
            value = {k: v for k, v in value.items() if k.startswith("jsq.")}
            found = {k: v for k, v in (found or {}).items() if k.startswith("jsq.")}
        if field == "sources":
            found = [with_wildcards_written(source, long=True) for source in found or []]
            value = [with_wildcards_written(source, long=True) for source in value or []]
        if value != found and not (value in (None, False) and not found):
            told.append(f"{field} is {short(field, found)}, should be {short(field, value)}")
    return told


def rewritten_sources(config: Config) -> Config:
    """A configuration with its sources in another notation of the same meaning.

    For the server these are other sources, which it sets up at once.
    """
    sources = config.get("sources") or ()
    long = "{{wildcard(" not in json.dumps(sources)
    return config | {"sources": [source | with_wildcards_written(source, long=long) for source in sources]}


def with_wildcards_written(source: Mapping[str, Any], *, long: bool) -> Config:
    """A source with the wildcards of its transforms as `{{wildcard(1)}}`, or as `$1`."""
    pattern, written = (r"\$(\d+)", r"{{wildcard(\1)}}") if long else (r"\{\{wildcard\((\d+)\)\}\}", r"$\1")
    transforms = source.get("subject_transforms")
    return {
        "name": source["name"],
        "subject_transforms": transforms
        and [{"src": one["src"], "dest": re.sub(pattern, written, one["dest"])} for one in transforms],
    }


def short(field: str, value: object) -> str:
    """The value of a field for people: the server counts times in nanoseconds."""
    if field in TIMES and isinstance(value, int):
        return f"{value / NS:g} s"
    return value if isinstance(value, str) else json.dumps(value)


def count_jobs(state: Mapping[str, Any]) -> int:
    """The jobs among the messages of a stream, by its state with the subjects of what are none."""
    others: dict[str, int] = state.get("subjects") or {}
    return int(state["messages"]) - sum(others.values())
