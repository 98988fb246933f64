"""The client: one connection, and a namespace of methods for each noun of the command line."""

from typing import Any, Self

from jsq.broker import Broker
from jsq.client.admin import AdminClient, BlockingAdmin
from jsq.client.connection import Connection
from jsq.client.dead_letters import BlockingDeadLetters, DeadLettersClient
from jsq.client.handle import BlockingJobHandle, JobHandle
from jsq.client.jobs import BlockingJobs, JobsClient
from jsq.client.queues import BlockingQueues, QueuesClient
from jsq.client.schedules import BlockingSchedules, SchedulesClient
from jsq.client.submitter import SubmitTarget, Submitter
from jsq.client.workflows import BlockingWorkflows, WorkflowsClient
from jsq.model.job import DEFAULT_QUEUE
from jsq.model.options import Options
from jsq.model.peer_terms import CLIENT_TERMS, explain_missing
from jsq.settings import Login


class Client:
    """Submits jobs and manages them, in one namespace. Connects on first use, once for each event loop.

    `url` may name several servers, joined by commas. The default is `JSQ_URL`, then the context of the nats
    CLI, then localhost. The default of `namespace` is `JSQ_NAMESPACE`, then `jsq`. The methods raise the
    errors of `jsq.errors`; if no server can be reached, they raise `BrokerUnavailable` within 5 s.
    """

    def __init__(
        self, url: str | Login | None = None, *, namespace: str | None = None, name: str = "jsq"
    ) -> None:
        self.connection = Connection(url, namespace=namespace, name=name)
        self.jobs = JobsClient(self.connection)
        self.queues = QueuesClient(self.connection)
        self.dead_letters = DeadLettersClient(self.connection)
        self.schedules = SchedulesClient(self.connection)
        self.workflows = WorkflowsClient(self.connection)
        self.admin = AdminClient(self.connection)
        self.blocking = BlockingClient(self)

    @property
    def namespace(self) -> str:
        """The installation on the server."""
        return self.connection.namespace

    @property
    def login(self) -> Login:
        """The server's address, and the user to log in as."""
        return self.connection.login

    def task(self, name: str) -> Submitter[..., Any]:
        """A submitter for a task by its name, for callers that cannot import the code of the task.

        `await client.task("emails.send").submit("a@b.c")`. Raises `BadName`.
        """
        return Submitter(self.connection, target_of(name, self.connection), Options())

    async def submit(self, name: str, /, *args: Any, **kwargs: Any) -> JobHandle[Any]:
        """Submit a job of a task by its name, or of a function by its reference: `"shop.tasks:send"`.

        The App of the worker must allow a function; see `AppOptions`. For options of the job, use
        `task(name).options(...).submit(...)`. Raises the errors of `Submitter.submit`.
        """
        return await self.task(name).submit(*args, **kwargs)

    async def connect(self) -> Self:
        """Connect now. Raises `BrokerUnavailable`, `NotAllowed`, `ServerTooOld`."""
        await self.connection.broker()
        return self

    async def close(self) -> None:
        """Close this loop's connection, and the connection of the blocking calls."""
        await self.connection.close()

    async def broker(self) -> Broker:
        """This loop's broker, the layer below this API. Raises the same errors as `connect`."""
        return await self.connection.broker()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class BlockingClient:
    """`client.blocking`: the namespaces of a client for callers without an event loop."""

    def __init__(self, client: Client) -> None:
        portal = client.connection.portal
        self._client = client
        self._portal = portal
        self.jobs = BlockingJobs(client.jobs, portal, "client.jobs")
        self.queues = BlockingQueues(client.queues, portal, "client.queues")
        self.dead_letters = BlockingDeadLetters(client.dead_letters, portal, "client.dead_letters")
        self.schedules = BlockingSchedules(client.schedules, portal, "client.schedules")
        self.workflows = BlockingWorkflows(client.workflows, portal, "client.workflows")
        self.admin = BlockingAdmin(client.admin, portal, "client.admin")

    def submit(self, name: str, /, *args: Any, **kwargs: Any) -> BlockingJobHandle[Any]:
        """As `Client.submit`."""
        return self._client.task(name).blocking.submit(*args, **kwargs)

    def close(self) -> None:
        """Close the connection of the blocking calls; the next call opens it again."""
        self._portal.stop()


def target_of(name: str, connection: Connection) -> SubmitTarget:
    """The target of a submit by name, on the queue that the routes of an App give it. Raises `BadName`."""
    return SubmitTarget(name, connection.routes.queue_of(name) or DEFAULT_QUEUE)


explain_missing(Client, CLIENT_TERMS)
explain_missing(BlockingClient, CLIENT_TERMS)
