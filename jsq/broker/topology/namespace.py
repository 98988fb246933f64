"""The value that the constructor of every repository class of the broker takes."""

from dataclasses import dataclass

from jsq.broker.topology.streams import Streams
from jsq.broker.topology.subjects import Subjects
from jsq.transport.jetstream import JetStreamApi
from jsq.transport.reads import Reads
from jsq.transport.wire import Wire


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace on one connection: its names on the server, and the objects that read and write there."""

    wire: Wire
    reads: Reads
    jetstream: JetStreamApi
    subjects: Subjects
    streams: Streams

    @classmethod
    def on(cls, wire: Wire, name: str) -> "Namespace":
        """The namespace `name` on a connection."""
        reads, jetstream, subjects = Reads(wire), JetStreamApi(wire), Subjects(name)
        return cls(wire, reads, jetstream, subjects, Streams(wire, reads, jetstream, subjects))
