"""What things are called on the server. `<ns>` prefixes every subject, and in upper case every stream."""

import hashlib
from dataclasses import dataclass

from jsq.model.job import check_namespace


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

    def later_stream(self, queue: str) -> str:
        return f"{self._upper}_LATER_{queue}"

    def line_stream(self, queue: str) -> str:
        return f"{self._upper}_LINE_{queue}"

    def turn_stream(self, queue: str) -> str:
        """Holds the turns of a queue's keys, and the knocks of those who wait."""
        return f"{self._upper}_TURN_{queue}"

    def bucket(self, name: str) -> str:
        """The stream of a KV bucket: `jobs`, `ids`, `workers`, `schedules`, `limits`."""
        return f"KV_{self.namespace}_{name}"

    # subjects

    def ready(self, queue: str, level: str, id: str) -> str:
        return f"{self.namespace}.q.{queue}.{level}.{id}"

    def later(self, queue: str, id: str) -> str:
        return f"{self.namespace}.later.{queue}.{id}"

    def due(self, queue: str, level: str, id: str) -> str:
        return f"{self.namespace}.due.{queue}.{level}.{id}"

    def line(self, queue: str, token: str, id: str) -> str:
        """Where a job waits among those of its key; `token` stands for the key."""
        return f"{self.namespace}.line.{queue}.{token}.{id}"

    def line_head(self, queue: str) -> str:
        """What stands before the lines of a queue, for good.

        Where the first that waits is also the first of its stream, the server takes 17 ms to find it among a
        hundred thousand, and else 0.2.
        """
        return f"{self.namespace}.linehead.{queue}"

    def lined(self, queue: str, token: str, id: str) -> str:
        """Where a job with a key is due, which goes to the end of its line."""
        return f"{self.namespace}.lined.{queue}.{token}.{id}"

    def turn(self, queue: str, token: str) -> str:
        return f"{self.namespace}.turn.{queue}.{token}"

    def knock(self, queue: str, token: str) -> str:
        """Says that someone came into a line: look after this key."""
        return f"{self.namespace}.knock.{queue}.{token}"

    def lines_made(self, queue: str) -> str:
        """Where it is said that a queue has lines from now on: core messages, said once."""
        return f"{self.namespace}.lines.{queue}"

    def tick(self, queue: str, name: str) -> str:
        """Where the server holds what wakes a worker at a schedule's next tick: no consumer covers it."""
        return f"{self.namespace}.tick.{queue}.{name}"

    def ticked(self, queue: str, level: str, name: str) -> str:
        """Where that goes when it is due."""
        return f"{self.namespace}.ticked.{queue}.{level}.{name}"

    def event(self, queue: str, id: str, state: str) -> str:
        return f"{self.namespace}.ev.{queue}.{id}.{state}"

    def step(self, queue: str, id: str, place: str) -> str:
        """What a job keeps between its attempts: in the log's stream, and no event."""
        return f"{self.namespace}.step.{queue}.{id}.{place}"

    def stored(self, queue: str, id: str) -> str:
        """Where the server says again what it has stored: unlike the event's own subject, never a refused
        write.
        """
        return f"{self.namespace}.on.{queue}.{id}.>"

    def stored_ends(self, queue: str, state: str) -> str:
        """Where the server says again that a job of a queue came to a final state."""
        return f"{self.namespace}.on.{queue}.*.run.{state}"

    def stored_cancels(self, queue: str) -> str:
        """Where the server says again that a job of a queue was cancelled."""
        return f"{self.namespace}.on.{queue}.*.run.cancelled"

    def dead(self, queue: str, task: str, id: str) -> str:
        return f"{self.namespace}.dead.{queue}.{task.replace('.', '/')}.{id}"

    def given_up(self, queue: str) -> str:
        """Where the server says that it delivers a message of a queue no more: core messages, said once."""
        return f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self.ready_stream(queue)}.*"

    def cancel(self, queue: str) -> str:
        return f"{self.namespace}.cancel.{queue}"

    def look(self, queue: str) -> str:
        """Where the workers of a queue are told to look at it anew: what it is set to, and what is held."""
        return f"{self.namespace}.look.{queue}"

    def rate_of_queue(self, queue: str) -> str:
        return self.key("limits", f"rate.queue.{queue}")

    def rate_of_task(self, task: str) -> str:
        return self.key("limits", f"rate.task.{task.replace('.', '/')}")

    def rate_of_key(self, task: str, key: str) -> str:
        return self.key("limits", f"rate.key.{task.replace('.', '/')}.{digest(key)}")

    def holds(self, queue: str) -> str:
        return self.key("limits", f"hold.{queue}")

    def key(self, bucket: str, key: str) -> str:
        return f"$KV.{self.namespace}_{bucket}.{key}"

    @property
    def _upper(self) -> str:
        return self.namespace.upper()


def digest(text: str) -> str:
    """What stands for any text in a subject."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
