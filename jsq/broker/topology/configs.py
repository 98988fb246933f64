"""The configuration that each stream and consumer should have. Pure: this module sends no request.

The metadata of a queue's READY stream hold the settings of the queue.
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
"""Days for which the server keeps records and dead letters: the `max_age` of the bucket of records."""

MAX_HISTORY = 64
"""Revisions of a record that the server keeps. A KV bucket cannot have more."""

ID_SECONDS = 7 * 86_400 + 3_600
"""Seconds for which the claim of a caller's own id stays. After that, a record of its job still claims it."""

MAX_DELIVER = 1_000
"""Deliveries after which the server never delivers a message again.

A worker stores a new message for the job long before that.
"""

MAX_WAITING = 32_768
"""Open pull requests of one consumer. A consumer cannot change it later, and the default, 512, is too few."""

MAX_ADVISORIES = 100_000

QUEUE_SETTINGS = "jsq.queue"
"""The field of the metadata of a READY stream that holds the settings of its queue."""

TIME_FIELDS = frozenset({"ack_wait", "duplicate_window", "max_age"})
"""Fields that hold a duration in nanoseconds."""

WAKEUPS = "wakeups"
WAKEUP_LEASE = 5.0
"""Seconds after which the server delivers an unsettled wake-up to another worker.

A worker handles a wake-up within milliseconds, and handling it twice is safe.
"""

TICKS_CONSUMER = "ticks"
DUE_CONSUMER = "due"
TICK_LEASE = 10.0
"""Seconds after which the server delivers a tick to another worker, if the first worker has died."""

DUE_LEASE = 5.0
"""The same for a due job, which a worker moves to its queue within milliseconds."""

FIRST = Token("{{wildcard(1)}}")
"""In the destination of a subject transform: the token that the first `*` matched."""

Config = dict[str, Any]
"""The configuration of a stream or consumer, as the JSON of the server's API."""


def records_config(subjects: Subjects, replicas: int) -> Config:
    """The bucket of records. Its stream holds the dead letters too.

    A worker writes the record of a failed job and its dead letter in one atomic batch.
    """
    ns = subjects.namespace
    return bucket_config(subjects, "jobs", replicas) | {
        "subjects": [f"$KV.{ns}_jobs.>", f"{ns}.dead.>"],
        "max_msgs_per_subject": MAX_HISTORY,
        "max_age": RECORD_DAYS * DAY_NS,
        "allow_atomic": True,
        # The server republishes a revision once it is stored. A subscriber of the key itself would also
        # receive writes that the server refuses.
        "republish": {"src": f"$KV.{ns}_jobs.>", "dest": f"{ns}.on.>"},
    }


def events_config(subjects: Subjects, replicas: int, days: float) -> Config:
    """The optional event log. It holds every revision of every record, with a retention of its own."""
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
        "metadata": owner_metadata(subjects),
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
        "metadata": owner_metadata(subjects),
    }


def advisories_config(subjects: Subjects, queues: Iterable[str], replicas: int) -> Config:
    """The stream that stores advisories for the next sweep; the server publishes each advisory only once.

    It has one subject per queue, because no wildcard matches the streams of one namespace only.
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
        "metadata": owner_metadata(subjects),
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
        "metadata": owner_metadata(subjects),
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
        "sources": None,  # see `jsq.broker.flow.due_jobs`
        "metadata": owner_metadata(subjects)
        | {
            QUEUE_SETTINGS: settings.as_json(),
            "jsq.declared": "yes" if declared else "no",
        },
    }


def groups_config(subjects: Subjects, queue: str, settings: QueueSettings) -> Config:
    """The stream in which the jobs of key groups wait. It has the limits of the queue.

    Its retention is not `workqueue`: the server deletes a message from a work queue once another stream has
    sourced it.
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
        "sources": None,
        "metadata": owner_metadata(subjects),
    }


def group_state_config(subjects: Subjects, queue: str, settings: QueueSettings) -> Config:
    """The stream that holds the state of each key group, and at most one wake-up per group that a job joined.

    The jobs of the groups have another stream: when that one is full, workers must still write the state.
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
        "metadata": owner_metadata(subjects),
    }


def wakeup_consumer(subjects: Subjects, queue: str) -> Config:
    """The consumer through which the workers of a queue share its wake-ups. It delivers headers only.

    The body of a wake-up is that of the job which joined the group.
    """
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
    """The consumer on the SCHEDULED stream of a queue that delivers the due ticks of its schedules."""
    return {
        "durable_name": TICKS_CONSUMER,
        "name": TICKS_CONSUMER,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": subjects.due_tick(queue, "*", ANY),
        "ack_wait": round(TICK_LEASE * NS),
        "max_waiting": MAX_WAITING,
    }


def due_consumer(subjects: Subjects, queue: str) -> Config:
    """The consumer on the SCHEDULED stream of a queue that delivers its due jobs."""
    return {
        "durable_name": DUE_CONSUMER,
        "name": DUE_CONSUMER,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subjects": [subjects.due(queue, "*", ANY), subjects.groups.due(queue, "*", ANY)],
        "ack_wait": round(DUE_LEASE * NS),
        "max_ack_pending": -1,
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
        bucket_config(subjects, "flows", replicas),
    )


def consumer_configs(subjects: Subjects, queue: str, settings: QueueSettings) -> Iterator[tuple[str, Config]]:
    """The consumers of a queue, each with its stream: one per priority, and those of due jobs and ticks."""
    for level in PRIORITIES:
        yield subjects.streams.ready(queue), queue_consumer(subjects, queue, level, settings)
    yield subjects.streams.scheduled(queue), due_consumer(subjects, queue)
    yield subjects.streams.scheduled(queue), tick_consumer(subjects, queue)


def owner_metadata(subjects: Subjects) -> dict[str, str]:
    return {"jsq.namespace": subjects.namespace}


def settings_of(config: Mapping[str, Any]) -> QueueSettings:
    """The settings of a queue, read from the metadata of its READY stream; the defaults if there are none."""
    stored = (config.get("metadata") or {}).get(QUEUE_SETTINGS)
    try:
        known = {k: v for k, v in json.loads(stored or "{}").items() if k in QueueSettings.fields}
        return QueueSettings.read(**known)
    except (ValueError, AttributeError, BadOption):
        return QueueSettings()


def config_differences(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    """The fields of `wanted` whose value in `have` is another one, one line per field."""
    differences = []
    for field, value in wanted.items():
        found = have.get(field)
        if field == "metadata":
            differences += metadata_differences(value, found or {})
            continue
        if field == "sources":
            found = [with_wildcards_written(source, long=True) for source in found or []]
            value = [with_wildcards_written(source, long=True) for source in value or []]
        if value != found and not (value in (None, False) and not found):
            differences.append(
                f"{field} is {format_field(field, found)}, should be {format_field(field, value)}"
            )
    return differences


def metadata_differences(wanted: Mapping[str, str], have: Mapping[str, str]) -> list[str]:
    """The differences in the metadata of jsq; those in the settings of a queue one by one."""
    found = []
    for name in sorted(one for one in {*wanted, *have} if one.startswith("jsq.")):
        value, old = wanted.get(name), have.get(name)
        if value == old:
            continue
        settings = setting_differences(value, old) if name == QUEUE_SETTINGS and value and old else []
        found += settings or [f"{name} is {old}, should be {value}"]
    return found


def setting_differences(wanted: str, have: str) -> list[str]:
    """The settings of a queue that differ between two texts in the metadata; empty if one cannot be read."""
    try:
        settings, held = dict(json.loads(wanted)), dict(json.loads(have))
    except (ValueError, TypeError):
        return []
    return [
        f"setting {name} is {json.dumps(held.get(name))}, should be {json.dumps(settings.get(name))}"
        for name in {**held, **settings}
        if settings.get(name) != held.get(name)
    ]


def rewritten_sources(config: Config) -> Config:
    """A configuration whose sources use the other notation of wildcards, with the same meaning.

    The server compares sources as text. It takes these for new sources and sets them up at once.
    """
    sources = config.get("sources") or ()
    long = "{{wildcard(" not in json.dumps(sources)
    return config | {"sources": [source | with_wildcards_written(source, long=long) for source in sources]}


def with_wildcards_written(source: Mapping[str, Any], *, long: bool) -> Config:
    """A source that writes the wildcards of its transforms as `{{wildcard(1)}}` if `long`, else as `$1`."""
    pattern, written = (r"\$(\d+)", r"{{wildcard(\1)}}") if long else (r"\{\{wildcard\((\d+)\)\}\}", r"$\1")
    transforms = source.get("subject_transforms")
    return {
        "name": source["name"],
        "subject_transforms": transforms
        and [{"src": one["src"], "dest": re.sub(pattern, written, one["dest"])} for one in transforms],
    }


def format_field(field: str, value: object) -> str:
    """The value of a field as text for people. Durations, which the server counts in ns, become seconds."""
    if field in TIME_FIELDS and isinstance(value, int):
        return f"{value / NS:g} s"
    return value if isinstance(value, str) else json.dumps(value)


def count_jobs(state: Mapping[str, Any]) -> int:
    """The number of jobs in a stream by its `state`, whose `subjects` count messages that are not jobs."""
    others: dict[str, int] = state.get("subjects") or {}
    return int(state["messages"]) - sum(others.values())
