"""The names of streams, subjects and keys on the server.

The namespace prefixes every subject, and in upper case every stream.
"""

import hashlib
from dataclasses import dataclass

from jsq.model.job import check_namespace


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
    """Subjects, streams and buckets of one namespace."""

    namespace: str = "jsq"

    def __post_init__(self) -> None:
        check_namespace(self.namespace)

    # streams

    @property
    def events_stream(self) -> str:
        return f"{self._upper}_EVENTS"

    @property
    def dead_stream(self) -> str:
        return f"{self._upper}_DEAD"

    @property
    def advisories_stream(self) -> str:
        return f"{self._upper}_ADVISORIES"

    @property
    def ready_prefix(self) -> str:
        return f"{self._upper}_READY_"

    def ready_stream(self, queue: str) -> str:
        return f"{self._upper}_READY_{queue}"

    def scheduled_stream(self, queue: str) -> str:
        """Holds the jobs of a queue that are not due yet, and the next ticks of its schedules."""
        return f"{self._upper}_SCHEDULED_{queue}"

    def groups_stream(self, queue: str) -> str:
        """Holds the jobs of a queue's key groups that wait for a slot."""
        return f"{self._upper}_GROUPS_{queue}"

    def group_state_stream(self, queue: str) -> str:
        """Holds the state of each key group of a queue, and the wake-ups for them."""
        return f"{self._upper}_GROUP_STATE_{queue}"

    def bucket(self, name: str) -> str:
        """The stream of a KV bucket: `jobs`, `ids`, `workers`, `schedules`, `limits`."""
        return f"KV_{self.namespace}_{name}"

    # subjects

    def ready(self, queue: str, level: str, id: str) -> str:
        return f"{self.namespace}.q.{queue}.{level}.{id}"

    def scheduled(self, queue: str, id: str) -> str:
        """The subject of a job that is not due yet."""
        return f"{self.namespace}.scheduled.{queue}.{id}"

    def due(self, queue: str, level: str, id: str) -> str:
        """The subject to which the server publishes a scheduled job when it is due."""
        return f"{self.namespace}.due.{queue}.{level}.{id}"

    def group_job(self, queue: str, token: str, id: str) -> str:
        """The subject of a job that waits for a slot of its key group; `token` stands for the key."""
        return f"{self.namespace}.group.{queue}.{token}.{id}"

    def of_groups(self, queue: str) -> GroupSubjects:
        """What the subjects of a queue's key groups have in common."""
        return GroupSubjects(
            self.groups_stream(queue),
            self.group_state_stream(queue),
            self.group_job(queue, "", "").removesuffix("."),
            self.group_state(queue, ""),
            self.ready(queue, "", "").removesuffix("."),
        )

    def groups_sentinel(self, queue: str) -> str:
        """The subject of the first message of a GROUPS stream, which is never deleted.

        If the first waiting job were the first message of its stream, the server would take 17 ms to find it
        among a hundred thousand; behind another message it takes 0.2 ms.
        """
        return f"{self.namespace}.group-sentinel.{queue}"

    def group_due(self, queue: str, token: str, id: str) -> str:
        """The subject to which the server publishes a scheduled job of a key group when it is due."""
        return f"{self.namespace}.group-due.{queue}.{token}.{id}"

    def group_state(self, queue: str, token: str) -> str:
        return f"{self.namespace}.group-state.{queue}.{token}"

    def group_wakeup(self, queue: str, token: str) -> str:
        """The subject of the wake-up that the server stores when a job joins a key group."""
        return f"{self.namespace}.group-wakeup.{queue}.{token}"

    def groups_created(self, queue: str) -> str:
        """The subject on which a client announces that it created a queue's GROUPS stream (core NATS)."""
        return f"{self.namespace}.groups-created.{queue}"

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
        return f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self.ready_stream(queue)}.*"

    def cancel(self, queue: str) -> str:
        return f"{self.namespace}.cancel.{queue}"

    def refresh(self, queue: str) -> str:
        """The subject that makes the workers of a queue read its settings and pauses again."""
        return f"{self.namespace}.refresh.{queue}"

    def rate_of_queue(self, queue: str) -> str:
        return self.key("limits", f"rate.queue.{queue}")

    def rate_of_task(self, task: str) -> str:
        return self.key("limits", f"rate.task.{task.replace('.', '/')}")

    def rate_of_key(self, task: str, key: str) -> str:
        return self.key("limits", f"rate.key.{task.replace('.', '/')}.{digest(key)}")

    def pauses(self, queue: str) -> str:
        return self.key("limits", f"pause.{queue}")

    def key(self, bucket: str, key: str) -> str:
        return f"$KV.{self.namespace}_{bucket}.{key}"

    @property
    def _upper(self) -> str:
        return self.namespace.upper()


def digest(text: str) -> str:
    """A token that stands for any text in a subject."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
