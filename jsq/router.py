"""A Router declares tasks, queues and schedules in a module that imports no App; an App includes it."""

from dataclasses import replace
from typing import Any, Unpack

from jsq.broker import Broker
from jsq.client.connection import Connection
from jsq.declaration import Declaration, TaskOptions, read_declaration
from jsq.declarations import Declarations, WrittenSchedule
from jsq.errors import BadOption, NotIncluded, count_noun
from jsq.middleware import Middleware
from jsq.model.job import check_task
from jsq.model.schedule import Schedule
from jsq.settings import Login, QueueSettings
from jsq.task import AnyTask


class Router(Declarations):
    """Tasks, queues and schedules without an App: `router = Router("mail", queue="mail", retries=5)`.

    The names of its tasks begin with `prefix` and a dot. `defaults` are options of its tasks, see
    `TaskOptions`; a task may set others. `app.include(router)` adds everything to an App. Before that, a task
    can be called as a function, and a submit raises `NotIncluded`. Raises `BadName`, `BadOption`.
    """

    def __init__(self, prefix: str = "", **defaults: Unpack[TaskOptions]) -> None:
        self.prefix = check_task(prefix) if prefix else ""
        self._late_connection = RouterConnection(self.prefix)
        super().__init__(self._late_connection)
        for option in {"name", "aliases"} & defaults.keys():
            raise BadOption(option, defaults.get(option), "must be an option of one task, not of a Router")
        read_declaration("_", **defaults)
        self._defaults = defaults
        self._owner: Declarations | None = None

    def __repr__(self) -> str:
        return f"<Router {self.prefix!r}: {count_noun(len(self.tasks), 'task')}>"

    @property
    def is_included(self) -> bool:
        """Whether an App or another Router has included this one."""
        return self._owner is not None

    def include(self, router: "Router") -> None:
        """Include another Router. The names of its tasks then begin with both prefixes; see `App.include`."""
        router.join(self)

    def join(self, owner: Declarations) -> None:
        """Add everything that is declared here, now or later, to an App or another Router.

        Raises `BadOption` if this Router is included already, or if a queue or a schedule clashes with that
        of the owner; `TaskExists` if the name of a task is taken.
        """
        if self._owner is not None:
            raise BadOption("router", self, "must be included only once")
        above: Declarations | None = owner
        while isinstance(above, Router):
            if above is self:
                raise BadOption("router", self, "must not include itself")
            above = above._owner
        for name, settings in self.declared.items():
            if owner.declared.get(name, settings) != settings:
                raise BadOption("queue", name, "must have the same settings wherever it is declared")
        renamed = owner.adopt(self.tasks.values())
        for name, settings in self.declared.items():
            owner.add_queue(name, settings, self.queue_middleware[name])
        for written in self.written_schedules:
            owner.add_schedule(written.renamed(renamed))
        self._late_connection.bind(owner.connection)
        self._owner = owner

    # -- inside ------------------------------------------------------------------------------------------

    def add_task(self, task: AnyTask) -> None:
        super().add_task(task)
        if self._owner is not None:
            self._owner.adopt((task,))

    def add_queue(self, name: str, settings: QueueSettings, middleware: tuple[Middleware, ...] = ()) -> None:
        super().add_queue(name, settings, middleware)
        if self._owner is not None:
            self._owner.add_queue(name, settings, middleware)

    def add_schedule(self, written: WrittenSchedule) -> Schedule:
        found = super().add_schedule(written)
        return found if self._owner is None else self._owner.add_schedule(written)

    def _with_defaults(self, written: Any) -> Any:
        return {**self._defaults, **written}

    def _placed(self, declaration: Declaration, module: str) -> Declaration:
        if not self.prefix:
            return declaration
        name, given = f"{self.prefix}.{declaration.name}", declaration.given | {"name"}
        return replace(declaration, name=name, given=given)


class RouterConnection(Connection):
    """The connection of the tasks of a Router: that of the App which includes it.

    Each task gets the App's own connection when it is included. Only submitters that were made before that,
    such as `send.options(priority="high")` in the module of the task, use this one afterwards.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__(None, namespace=None, name="jsq")
        self._prefix = prefix
        self._bound: Connection | None = None
        self._followers: list[RouterConnection] = []

    def bind(self, connection: Connection) -> None:
        """Use the connection of an App, or that of another Router until an App includes it."""
        self._bound = connection
        self.namespace, self.name, self.portal = connection.namespace, connection.name, connection.portal
        self.app = connection.app
        if isinstance(connection, RouterConnection):
            connection._followers.append(self)
        for follower in self._followers:
            follower.bind(connection)

    @property
    def login(self) -> Login:
        """The server's address, and the user to log in as. Raises `NotIncluded`."""
        return self._connection_of_app().login

    async def broker(self) -> Broker:
        """This loop's broker of the App. Raises `NotIncluded`."""
        return await self._connection_of_app().broker()

    def open_broker(self) -> Broker | None:
        """This loop's broker of the App, if it is connected. Raises `NotIncluded`."""
        return self._connection_of_app().open_broker()

    def _connection_of_app(self) -> Connection:
        if self._bound is None:
            raise NotIncluded(self._prefix)
        return self._bound
