"""One connection to one namespace, and every place on the server behind it."""

from contextlib import AbstractAsyncContextManager

from jsq.broker.flow.checkpoints import CheckpointStore
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.flow.pauses import PauseStore
from jsq.broker.flow.rate_limits import RateLimitStore
from jsq.broker.jobs.backpressure import Backpressure
from jsq.broker.jobs.event_log import EventLog
from jsq.broker.jobs.expiry import JobExpiry
from jsq.broker.jobs.writer import Jobs
from jsq.broker.maintenance.repairs import Repairs
from jsq.broker.maintenance.scan import Scanner
from jsq.broker.maintenance.sweeper import Sweeper
from jsq.broker.operations.cancel import Canceller
from jsq.broker.operations.completions import Completions, subscribe_completions
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.query import JobQuery
from jsq.broker.operations.queues import Queues
from jsq.broker.operations.remove import Remover
from jsq.broker.operations.reschedule import Rescheduler
from jsq.broker.schedules import ScheduleStore
from jsq.broker.submit.atomic import AtomicSubmit
from jsq.broker.submit.bulk import BulkSubmit
from jsq.broker.submit.unique import UniqueKeys
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.presence import WorkerPresence
from jsq.broker.topology.streams import Streams
from jsq.broker.topology.subjects import Subjects
from jsq.settings import Login
from jsq.transport.wire import Wire


class Broker:
    """The server, as the rest of jsq sees it."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.wire = wire
        self.subjects = Subjects(name)
        self.streams = Streams(wire, self.subjects)
        self.namespace = namespace = Namespace(wire, self.subjects, self.streams)
        self.event_log = log = EventLog(namespace)
        backpressure = Backpressure(namespace)
        self.jobs = jobs = Jobs(namespace, log, backpressure)
        self.expiry = JobExpiry(namespace, log)
        self.checkpoints = CheckpointStore(namespace)
        self.key_groups = KeyGroups(namespace, jobs)
        self.cancel = Canceller(namespace, log, jobs, self.checkpoints, self.key_groups, self.expiry)
        self.reschedule = Rescheduler(wire, self.subjects, jobs, self.expiry)
        self.unique = UniqueKeys(wire, self.subjects, log, jobs, self.cancel, self.expiry, backpressure)
        self.bulk = BulkSubmit(namespace, log, jobs, backpressure)
        self.atomic = AtomicSubmit(wire, self.streams, log, jobs, backpressure)
        self.dead_letters = DeadLetterStore(namespace, log, jobs, self.key_groups)
        self.remove = Remover(namespace, log, jobs, self.dead_letters)
        self.query = JobQuery(namespace, log, self.cancel, self.expiry)
        self.pauses = PauseStore(namespace)
        self.rate_limits = RateLimitStore(namespace)
        self.queues = Queues(namespace, self.pauses, self.key_groups)
        self.presence = WorkerPresence(wire, self.subjects, self.streams)
        self.schedules = ScheduleStore(namespace, log, jobs, self.cancel, self.presence)
        scanner = Scanner(namespace, log, self.dead_letters, self.key_groups, self.unique)
        repairs = Repairs(
            namespace,
            log,
            jobs,
            self.dead_letters,
            self.key_groups,
            self.expiry,
            self.unique,
            self.reschedule,
        )
        self.sweeper = Sweeper(namespace, scanner, repairs)

    @classmethod
    async def connect(cls, login: Login, *, namespace: str = "jsq", name: str = "jsq") -> "Broker":
        """Connect. Raises what `Wire.open` raises, within 5 s."""
        Subjects(namespace)
        return cls(await Wire(login, name=name).open(), namespace)

    def subscribe_completions(self, queue: str) -> AbstractAsyncContextManager[Completions]:
        """Hear the ends of jobs of a queue."""
        return subscribe_completions(self.wire, self.subjects, self.event_log, self.jobs, queue)

    async def close(self) -> None:
        """Write what is still to be noted, then close."""
        await self.event_log.finish()
        await self.wire.close()
