"""What things are called on the server. `<ns>` prefixes every subject, and in upper case every stream."""

from dataclasses import dataclass

from jsq.job import check_namespace


@dataclass(frozen=True, slots=True)
class Names:
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

    def bucket(self, name: str) -> str:
        """The stream of a KV bucket: `jobs`, `ids`, `workers`."""
        return f"KV_{self.namespace}_{name}"

    # subjects

    def ready(self, queue: str, level: str, id: str) -> str:
        return f"{self.namespace}.q.{queue}.{level}.{id}"

    def later(self, queue: str, id: str) -> str:
        return f"{self.namespace}.later.{queue}.{id}"

    def due(self, queue: str, level: str, id: str) -> str:
        return f"{self.namespace}.due.{queue}.{level}.{id}"

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

    def key(self, bucket: str, key: str) -> str:
        return f"$KV.{self.namespace}_{bucket}.{key}"

    @property
    def _upper(self) -> str:
        return self.namespace.upper()
