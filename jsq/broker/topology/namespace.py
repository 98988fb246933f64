"""What every repository of the broker is given: the connection, the names on the server, and the streams."""

from dataclasses import dataclass

from jsq.broker.topology.streams import Streams
from jsq.broker.topology.subjects import Subjects
from jsq.transport.wire import Wire


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace on one connection."""

    wire: Wire
    subjects: Subjects
    streams: Streams
