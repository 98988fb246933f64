"""The value that the constructor of every class takes that reads or stores jobs."""

from dataclasses import dataclass

from jsq.broker.jobs.backpressure import Backpressure
from jsq.broker.jobs.expiry import JobExpiry
from jsq.broker.jobs.reader import JobReader
from jsq.broker.jobs.records import RecordStore
from jsq.broker.jobs.writer import JobWriter
from jsq.broker.topology.namespace import Namespace


@dataclass(frozen=True, slots=True)
class JobStore:
    """The jobs of one namespace: their records and expiry, and the objects that find and store them."""

    records: RecordStore
    expiry: JobExpiry
    reader: JobReader
    writer: JobWriter
    backpressure: Backpressure

    @classmethod
    def of(cls, namespace: Namespace) -> "JobStore":
        records, backpressure = RecordStore(namespace), Backpressure(namespace)
        expiry = JobExpiry(namespace, records)
        reader = JobReader(namespace, records, expiry)
        return cls(records, expiry, reader, JobWriter(namespace, records, reader, backpressure), backpressure)
