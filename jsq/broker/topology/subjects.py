"""The names of streams, subjects and keys on the server.

Every subject begins with the namespace, and every stream with the namespace in upper case.
"""

import hashlib
from dataclasses import dataclass, field

from jsq.codec.subject_token import STEM, Token, decode_token, encode_token
from jsq.errors import BadName
from jsq.model.job import check_id, check_namespace

PROGRESS, RESULT, CANCELLED = "progress", "result", "cancelled"
"""The last tokens of the keys below a record.

They hold the progress, a result that is stored beside the record, and the mark of a cancel for the worker of
a running job.
"""


@dataclass(frozen=True, slots=True)
class StreamNames:
    """The names of the streams of one namespace."""

    namespace: str

    @property
    def records(self) -> str:
        """The KV bucket of the records of jobs. The dead letters are in the same stream."""
        return self.bucket("jobs")

    @property
    def events(self) -> str:
        """The event log, which exists only if an operator has enabled it."""
        return f"{self._upper}_EVENTS"

    @property
    def advisories(self) -> str:
        return f"{self._upper}_ADVISORIES"

    @property
    def ready_prefix(self) -> str:
        return f"{self._upper}_READY_"

    def ready(self, queue: str) -> str:
        return f"{self._upper}_READY_{queue}"

    def scheduled(self, queue: str) -> str:
        """Holds the jobs of a queue that are not due yet, and the next ticks of its schedules."""
        return f"{self._upper}_SCHEDULED_{queue}"

    def groups(self, queue: str) -> str:
        """Holds the jobs of a queue's key groups that wait for a slot."""
        return f"{self._upper}_GROUPS_{queue}"

    def group_state(self, queue: str) -> str:
        """Holds the state of each key group of a queue, and the wake-ups for them."""
        return f"{self._upper}_GROUP_STATE_{queue}"

    def bucket(self, name: str) -> str:
        """The stream of a KV bucket: `jobs`, `ids`, `workers`, `schedules`, `limits`, `flows`."""
        return f"KV_{self.namespace}_{name}"

    @property
    def _upper(self) -> str:
        return self.namespace.upper()


@dataclass(frozen=True, slots=True)
class KeyGroupSubjects:
    """The subjects of the key groups of one namespace."""

    namespace: str

    def job(self, queue: str, token: str, id: str) -> str:
        """The subject of a job that waits for a slot of its key group; `token` is the token of the key."""
        return f"{self.namespace}.group.{queue}.{token}.{token_of(id)}"

    def sentinel(self, queue: str) -> str:
        """The subject of the first message of a GROUPS stream, which is never deleted.

        Among a hundred thousand messages, the server takes 17 ms to find a group's first job if that is the
        first message of the stream, and 0.2 ms if another message precedes it.
        """
        return f"{self.namespace}.group-sentinel.{queue}"

    def due(self, queue: str, token: str, id: str) -> str:
        """The subject to which the server publishes a scheduled job of a key group when it is due."""
        return f"{self.namespace}.group-due.{queue}.{token}.{token_of(id)}"

    def state(self, queue: str, token: str) -> str:
        return f"{self.namespace}.group-state.{queue}.{token}"

    def wakeup(self, queue: str, token: str) -> str:
        """The subject of the wake-up that the server stores when a client adds a job to a key group."""
        return f"{self.namespace}.group-wakeup.{queue}.{token}"

    def created(self, queue: str) -> str:
        """The subject on which a client announces that it created a queue's GROUPS stream (core NATS)."""
        return f"{self.namespace}.groups-created.{queue}"


@dataclass(frozen=True, slots=True)
class LimitKeys:
    """The keys of rate limits, pauses and slots of queues, in the bucket `limits` of one namespace."""

    namespace: str

    def queue_rate(self, queue: str) -> str:
        return f"$KV.{self.namespace}_limits.rate.queue.{queue}"

    def task_rate(self, task: str) -> str:
        return f"$KV.{self.namespace}_limits.rate.task.{task.replace('.', '/')}"

    def key_rate(self, task: str, key: str) -> str:
        return f"$KV.{self.namespace}_limits.rate.key.{task.replace('.', '/')}.{digest(key)}"

    def pauses(self, queue: str) -> str:
        return f"$KV.{self.namespace}_limits.pause.{queue}"

    def slots(self, queue: str) -> str:
        return f"$KV.{self.namespace}_limits.slots.{queue}"

    def slots_changed(self, queue: str) -> str:
        """The subject on which a worker announces its change to the slots of a queue (core NATS)."""
        return f"{self.namespace}.slots-changed.{queue}"


@dataclass(frozen=True, slots=True)
class GroupSubjects:
    """The streams of the key groups of one queue, and the prefixes of the subjects of their messages.

    After `group_prefix` follow a key token and the token of an id; after `state_prefix` a key token; after
    `ready_prefix` a priority and the token of an id.
    """

    groups_stream: str
    state_stream: str
    group_prefix: str
    state_prefix: str
    ready_prefix: str


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subjects of one namespace, and the names of its streams.

    An id may be any printable text; a subject holds its encoded form, the token. A `Token` in place of an id
    is used as it is: `ANY` makes a pattern for all ids.
    """

    namespace: str = "jsq"
    streams: StreamNames = field(init=False, repr=False, compare=False)
    groups: KeyGroupSubjects = field(init=False, repr=False, compare=False)
    limits: LimitKeys = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_namespace(self.namespace)
        object.__setattr__(self, "streams", StreamNames(self.namespace))
        object.__setattr__(self, "groups", KeyGroupSubjects(self.namespace))
        object.__setattr__(self, "limits", LimitKeys(self.namespace))

    def ready(self, queue: str, level: str, id: str) -> str:
        return f"{self.namespace}.q.{queue}.{level}.{token_of(id)}"

    def scheduled(self, queue: str, id: str) -> str:
        """The subject of a job that is not due yet."""
        return f"{self.namespace}.scheduled.{queue}.{token_of(id)}"

    def due(self, queue: str, level: str, id: str) -> str:
        """The subject to which the server publishes a scheduled job when it is due."""
        return f"{self.namespace}.due.{queue}.{level}.{token_of(id)}"

    def of_groups(self, queue: str) -> GroupSubjects:
        """The streams and the prefixes of the subjects of a queue's key groups."""
        return GroupSubjects(
            self.streams.groups(queue),
            self.streams.group_state(queue),
            self.groups.job(queue, "", STEM).removesuffix("."),
            self.groups.state(queue, ""),
            self.ready(queue, "", STEM).removesuffix("."),
        )

    def next_tick(self, queue: str, name: str) -> str:
        """The subject at which the server holds the next tick of a schedule. No consumer filters on it."""
        return f"{self.namespace}.next-tick.{queue}.{token_of(name)}"

    def due_tick(self, queue: str, level: str, name: str) -> str:
        """The subject to which the server publishes a tick when it is due."""
        return f"{self.namespace}.due-tick.{queue}.{level}.{token_of(name)}"

    def schedule(self, queue: str, name: str) -> str:
        """The key of a schedule."""
        return f"$KV.{self.namespace}_schedules.{queue}.{token_of(name)}"

    @property
    def record_prefix(self) -> str:
        """The prefix of the key of each record; a queue and the token of an id follow."""
        return f"$KV.{self.namespace}_jobs."

    def record(self, queue: str, id: str) -> str:
        """The key of a job's record. Keys below it hold other values of the job; see `PROGRESS`."""
        return f"$KV.{self.namespace}_jobs.{queue}.{token_of(id)}"

    def own_id(self, id: str) -> str:
        """The key of the claim of an id that a caller chose."""
        return f"$KV.{self.namespace}_ids.id.{token_of(id)}"

    def unique_key(self, hashed: str) -> str:
        """The key of the claim of a unique key, which the claim names by its hash."""
        return f"$KV.{self.namespace}_ids.unique.{hashed}"

    def event(self, queue: str, id: str) -> str:
        """The subject of the copies of a job's revisions in the event log."""
        return f"{self.namespace}.ev.{queue}.{token_of(id)}"

    def checkpoint(self, queue: str, id: str, name: str) -> str:
        """The key of a checkpoint of a job: a value that it keeps between its attempts."""
        return f"$KV.{self.namespace}_jobs.{queue}.{token_of(id)}.checkpoint.{name}"

    def stored_record(self, queue: str, id: str) -> str:
        """The subject on which the server republishes each revision of a job's record that it has stored.

        Unlike the key of the record, it never carries a write that the server refused.
        """
        return f"{self.namespace}.on.{queue}.{token_of(id)}"

    def dead(self, queue: str, task: str, id: str) -> str:
        return f"{self.namespace}.dead.{queue}.{task.replace('.', '/')}.{token_of(id)}"

    def max_deliveries(self, queue: str) -> str:
        """The subject of the advisory that the server no longer delivers a message of a queue (core NATS)."""
        return f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self.streams.ready(queue)}.*"

    def cancel(self, queue: str) -> str:
        return f"{self.namespace}.cancel.{queue}"

    def refresh(self, queue: str) -> str:
        """The subject on which a client asks the workers of a queue to read its settings and pauses again."""
        return f"{self.namespace}.refresh.{queue}"

    def holders(self, queue: str) -> str:
        """The subject on which the workers of a queue ask which of them holds a job (core NATS)."""
        return f"{self.namespace}.holders.{queue}"

    def key(self, bucket: str, key: str) -> str:
        return f"$KV.{self.namespace}_{bucket}.{key}"


def flow_key(subjects: Subjects, queue: str, id: str, place: str) -> str:
    """The key of a workflow's definition, or of a part of a join."""
    return subjects.key("flows", f"{queue}.{token_of(id)}.{place}")


def token_of(id: str) -> str:
    """The token of an id. A `Token` is returned as it is."""
    if (id.isalnum() and id.isascii()) or isinstance(id, Token):  # as generated ids are
        return id
    return encode_token(id)


def read_id(token: str) -> str:
    """The id whose token this is; the token, as a `Token`, if it is not that of an id."""
    if token.isalnum() and token.isascii():
        return token
    try:
        return check_id(decode_token(token))
    except (ValueError, BadName):
        return Token(token)


def digest(text: str) -> str:
    """A token of fixed length for any text, to be used in a subject: the first 128 bits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
