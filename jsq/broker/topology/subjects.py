"""The names of streams, subjects and keys on the server.

The namespace prefixes every subject, and in upper case every stream.
"""

import hashlib
from dataclasses import dataclass, field

from jsq.model.job import check_namespace


@dataclass(frozen=True, slots=True)
class StreamNames:
    """The names of the streams of one namespace."""

    namespace: str

    @property
    def events(self) -> str:
        return f"{self._upper}_EVENTS"

    @property
    def dead(self) -> str:
        return f"{self._upper}_DEAD"

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
        """The stream of a KV bucket: `jobs`, `ids`, `workers`, `schedules`, `limits`."""
        return f"KV_{self.namespace}_{name}"

    @property
    def _upper(self) -> str:
        return self.namespace.upper()


@dataclass(frozen=True, slots=True)
class KeyGroupSubjects:
    """The subjects of the key groups of one namespace."""

    namespace: str

    def job(self, queue: str, token: str, id: str) -> str:
        """The subject of a job that waits for a slot of its key group; `token` stands for the key."""
        return f"{self.namespace}.group.{queue}.{token}.{id}"

    def sentinel(self, queue: str) -> str:
        """The subject of the first message of a GROUPS stream, which is never deleted.

        If the first waiting job were the first message of its stream, the server would take 17 ms to find it
        among a hundred thousand; behind another message it takes 0.2 ms.
        """
        return f"{self.namespace}.group-sentinel.{queue}"

    def due(self, queue: str, token: str, id: str) -> str:
        """The subject to which the server publishes a scheduled job of a key group when it is due."""
        return f"{self.namespace}.group-due.{queue}.{token}.{id}"

    def state(self, queue: str, token: str) -> str:
        return f"{self.namespace}.group-state.{queue}.{token}"

    def wakeup(self, queue: str, token: str) -> str:
        """The subject of the wake-up that the server stores when a job joins a key group."""
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
        """The subject on which a worker announces how it changed the slots of a queue (core NATS)."""
        return f"{self.namespace}.slots-changed.{queue}"


@dataclass(frozen=True, slots=True)
class GroupSubjects:
    """The streams of the key groups of one queue, and what the subjects of their messages begin with.

    A key token and an id follow on `group_prefix`, a key token on `state_prefix`, a priority and an id on
    `ready_prefix`.
    """

    groups_stream: str
    state_stream: str
    group_prefix: str
    state_prefix: str
    ready_prefix: str


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subjects of one namespace, and the names of its streams."""

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
        return f"{self.namespace}.q.{queue}.{level}.{id}"

    def scheduled(self, queue: str, id: str) -> str:
        """The subject of a job that is not due yet."""
        return f"{self.namespace}.scheduled.{queue}.{id}"

    def due(self, queue: str, level: str, id: str) -> str:
        """The subject to which the server publishes a scheduled job when it is due."""
        return f"{self.namespace}.due.{queue}.{level}.{id}"

    def of_groups(self, queue: str) -> GroupSubjects:
        """What the subjects of a queue's key groups have in common."""
        return GroupSubjects(
            self.streams.groups(queue),
            self.streams.group_state(queue),
            self.groups.job(queue, "", "").removesuffix("."),
            self.groups.state(queue, ""),
            self.ready(queue, "", "").removesuffix("."),
        )

    def next_tick(self, queue: str, name: str) -> str:
        """The subject at which the server holds the next tick of a schedule: no consumer covers it."""
        return f"{self.namespace}.next-tick.{queue}.{name}"

    def due_tick(self, queue: str, level: str, name: str) -> str:
        """The subject to which the server publishes a tick when it is due."""
        return f"{self.namespace}.due-tick.{queue}.{level}.{name}"

    @property
    def event_prefix(self) -> str:
        """What the subject of each event begins with; a queue, an id and a state follow."""
        return f"{self.namespace}.ev."

    @property
    def stored_event_prefix(self) -> str:
        """What the subject of each stored event begins with; see `stored_events`."""
        return f"{self.namespace}.on."

    def event(self, queue: str, id: str, state: str) -> str:
        return f"{self.namespace}.ev.{queue}.{id}.{state}"

    def checkpoint(self, queue: str, id: str, place: str) -> str:
        """The subject of a value that a job keeps between its attempts: in the event stream, but no event."""
        return f"{self.namespace}.checkpoint.{queue}.{id}.{place}"

    def stored_events(self, queue: str, id: str) -> str:
        """The subjects on which the server republishes the events of a job that it has stored.

        Unlike the subject of the event itself, they never carry a write that was refused.
        """
        return f"{self.namespace}.on.{queue}.{id}.>"

    def stored_outcomes(self, queue: str, state: str) -> str:
        """The subject on which the server republishes the final events of a queue's jobs with one state."""
        return f"{self.namespace}.on.{queue}.*.run.{state}"

    def stored_cancellations(self, queue: str) -> str:
        """The subject on which the server republishes the cancellations of a queue's jobs."""
        return f"{self.namespace}.on.{queue}.*.run.cancelled"

    def dead(self, queue: str, task: str, id: str) -> str:
        return f"{self.namespace}.dead.{queue}.{task.replace('.', '/')}.{id}"

    def max_deliveries(self, queue: str) -> str:
        """The subject of the server's advisory that it delivers a message of a queue no more (core NATS)."""
        return f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self.streams.ready(queue)}.*"

    def cancel(self, queue: str) -> str:
        return f"{self.namespace}.cancel.{queue}"

    def refresh(self, queue: str) -> str:
        """The subject that makes the workers of a queue read its settings and pauses again."""
        return f"{self.namespace}.refresh.{queue}"

    def holders(self, queue: str) -> str:
        """The subject on which the workers of a queue ask which of them holds a job (core NATS)."""
        return f"{self.namespace}.holders.{queue}"

    def key(self, bucket: str, key: str) -> str:
        return f"$KV.{self.namespace}_{bucket}.{key}"


def digest(text: str) -> str:
    """A token that stands for any text in a subject."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
