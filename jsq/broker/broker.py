"""The facade of the broker: one connection to one namespace, and an object for each kind of operation."""

from contextlib import AbstractAsyncContextManager

from jsq.broker.delivery.holders import Holders
from jsq.broker.delivery.task_knowers import TaskKnowers
from jsq.broker.flow.checkpoints import CheckpointStore
from jsq.broker.flow.due_jobs import DueJobs
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.flow.pauses import PauseStore
from jsq.broker.flow.queue_slots import QueueSlotStore
from jsq.broker.flow.rate_limits import RateLimitStore
from jsq.broker.jobs.event_log import EventLog
from jsq.broker.jobs.store import JobStore
from jsq.broker.maintenance.queue_removal import QueueRemover
from jsq.broker.maintenance.repairs import Repairs
from jsq.broker.maintenance.scan import Scanner
from jsq.broker.maintenance.sweeper import Sweeper
from jsq.broker.operations.cancel import Canceller
from jsq.broker.operations.completions import Completions, subscribe_completions
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.edit import Editor
from jsq.broker.operations.query import JobQuery
from jsq.broker.operations.queue_stats import QueueStatsReader
from jsq.broker.operations.queues import Queues
from jsq.broker.operations.remove import Remover
from jsq.broker.operations.reschedule import Rescheduler
from jsq.broker.operations.second_run import SecondRuns
from jsq.broker.schedules import ScheduleStore, TickRunner
from jsq.broker.submit.atomic import AtomicSubmit
from jsq.broker.submit.bulk import BulkSubmit
from jsq.broker.submit.unique import UniqueKeys
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.presence import WorkerPresence
from jsq.broker.topology.provision import Provisioner
from jsq.broker.topology.subjects import Subjects
from jsq.broker.workflows.workflows import Workflows
from jsq.settings import Login
from jsq.transport.wire import Wire


class Broker:
    """The objects that read and write one namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.wire = namespace.wire
        self.reads = namespace.reads
        self.jetstream = namespace.jetstream
        self.subjects = namespace.subjects
        self.streams = namespace.streams
        self.provisioner = Provisioner(namespace)
        self.store = store = self.build_store(namespace)
        self.records = store.records
        self.event_log = EventLog(namespace, store.records)
        self.expiry = store.expiry
        self.job_reader = store.reader
        self.job_writer = store.writer
        self.checkpoints = CheckpointStore(namespace)
        self.key_groups = KeyGroups(namespace, store)
        self.due_jobs = DueJobs(namespace, store.records)
        self.cancel = Canceller(namespace, store, self.checkpoints, self.key_groups)
        self.reschedule = Rescheduler(namespace, store)
        self.edit = Editor(namespace, store, self.key_groups)
        self.unique = UniqueKeys(namespace, store, self.cancel)
        self.bulk = BulkSubmit(namespace, store)
        self.atomic = AtomicSubmit(namespace, store)
        self.dead_letters = DeadLetterStore(namespace, store, self.key_groups)
        self.second_runs = SecondRuns(namespace, store, self.dead_letters)
        self.remove = Remover(store, self.dead_letters)
        self.workflows = Workflows(namespace, store, self.bulk, self.dead_letters, self.cancel)
        self.query = JobQuery(namespace, store, self.cancel)
        self.pauses = PauseStore(namespace)
        self.rate_limits = RateLimitStore(namespace)
        self.queue_slots = QueueSlotStore(namespace)
        self.queues = Queues(namespace, self.provisioner, self.pauses, self.key_groups)
        self.presence = presence = WorkerPresence(namespace)
        self.queue_stats = QueueStatsReader(namespace, self.pauses, self.dead_letters, self.query, presence)
        self.holders = Holders(namespace)
        self.task_knowers = TaskKnowers(namespace)
        self.schedules = ScheduleStore(namespace, store, self.presence)
        self.ticks = TickRunner(namespace, store, self.cancel, self.schedules)
        self.queue_removal = QueueRemover(
            namespace, self.cancel, self.dead_letters, self.query, self.schedules
        )
        scanner = Scanner(namespace, store.records, self.dead_letters, self.key_groups, self.unique)
        repairs = Repairs(namespace, store, self.dead_letters, self.key_groups, self.unique)
        self.sweeper = Sweeper(namespace, self.provisioner, scanner, repairs)

    def build_store(self, namespace: Namespace) -> JobStore:
        """The objects that read and store the jobs."""
        return JobStore.of(namespace)

    @classmethod
    async def connect(cls, login: Login, *, namespace: str = "jsq", name: str = "jsq") -> "Broker":
        """Connect. Raises the errors of `Wire.open`, within 5 s."""
        Subjects(namespace)
        return cls(Namespace.on(await Wire(login, name=name).open(), namespace))

    def subscribe_completions(self, queue: str) -> AbstractAsyncContextManager[Completions]:
        """Subscribe to the completions of a queue: the final revisions of its jobs."""
        return subscribe_completions(self.namespace, self.store, queue)

    async def close(self) -> None:
        """Close the connection."""
        await self.wire.close()
