"""The value that every class is given that reads or stores jobs."""

from dataclasses import dataclass

from jsq.broker.jobs.backpressure import Backpressure
from jsq.broker.jobs.event_log import EventLog
from jsq.broker.jobs.expiry import JobExpiry
from jsq.broker.jobs.reader import JobReader
from jsq.broker.jobs.writer import JobWriter
from jsq.broker.topology.namespace import Namespace


@dataclass(frozen=True, slots=True)
class JobStore:
    """The jobs of one namespace: their events and expiry, and the ways to find and to store them."""

    event_log: EventLog
    expiry: JobExpiry
    reader: JobReader
    writer: JobWriter
    backpressure: Backpressure

    @classmethod
    def of(cls, namespace: Namespace) -> "JobStore":
        log, backpressure = EventLog(namespace), Backpressure(namespace)
        expiry = JobExpiry(namespace, log)
        reader = JobReader(namespace, log, expiry)
        return cls(log, expiry, reader, JobWriter(namespace, log, reader, backpressure), backpressure)
