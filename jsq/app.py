"""An App declares tasks, queues and schedules: clients submit jobs to it, and workers run them."""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar, Unpack

from jsq.client.client import Client
from jsq.client.flows import Flow
from jsq.client.handle import JobHandle
from jsq.client.workflows import WorkflowBuilder
from jsq.declaration import Declaration, find_location
from jsq.declarations import Declarations, WrittenSchedule
from jsq.discovery import import_matching
from jsq.embedded import EmbeddedWorker
from jsq.errors import BadOption, UnknownTask, count_noun
from jsq.functions import read_functions
from jsq.hooks import AppHooks, AppHooksOptions
from jsq.immediate import Immediate, ImmediateOptions
from jsq.model.durations import Duration, seconds
from jsq.model.job import DEFAULT_QUEUE
from jsq.model.options import check_known
from jsq.model.peer_terms import APP_TERMS, explain_missing
from jsq.model.routes import check_pattern, read_routes
from jsq.model.schedule import Schedule
from jsq.model.workflow import WORKFLOW_TASK
from jsq.router import Router
from jsq.settings import Login, WorkerArguments, WorkerSettings
from jsq.task import AnyTask, Task

R = TypeVar("R")

TaskNames = Literal["function", "module"]
"""The default name of a task: that of its function, or that with the module before it, `shop.tasks.send`."""


class AppOptions(AppHooksOptions, total=False):
    """The options of an App that concern the layout of its code, and what runs around its tasks.

    `include`: modules with tasks, which workers import: `["shop.tasks", "shop.mail.*"]`; see `App.load`.
    `task_names`: the default names of tasks: `"function"` for `send`, or `"module"` for `shop.tasks.send`.
    `routes`: the queues of tasks by patterns of their names, `{"mail.*": "mail"}`. The first match decides. A
    `queue=` of a task, a Router or a submit has priority.
    `allow_functions`: functions that jobs may name by reference: `["shop.tasks:send", "shop.jobs:*"]`.
    `timeout`: the timeout of its tasks that declare none [none]; see `TaskOptions`.
    `lifespan`, `middleware`: see `AppHooksOptions`.
    """

    include: Sequence[str]
    task_names: TaskNames
    routes: Mapping[str, str]
    allow_functions: Sequence[str]
    timeout: Duration | None


class App(Declarations, AppHooks):
    """Tasks, queues and schedules under one name, and the client that submits to them.

    `url`: see `Client`. `name` is the name of the connections on the server. `namespace` separates
    installations that share a server. `events`, such as "30d", is how long an event log keeps each change of
    each job; without it there is no event log. Workers and `provision` create the log. `AppOptions` lists the
    other options. Raises `BadOption`.
    """

    def __init__(
        self,
        url: str | Login | None = None,
        *,
        name: str = "jsq",
        namespace: str | None = None,
        events: Duration | None = None,
        **options: Unpack[AppOptions],
    ) -> None:
        check_known(options, (*AppOptions.__annotations__,), APP_TERMS)
        self.client = Client(url, namespace=namespace, name=name)
        Declarations.__init__(self, self.client.connection)
        AppHooks.__init__(self, lifespan=options.get("lifespan"), middleware=options.get("middleware", ()))
        self.middleware.of_queues = self.queue_middleware
        self.client.connection.app = self
        self.name = name
        self.events = None if events is None else seconds("events", events, least=1.0)
        self.namespace = self.client.namespace
        self._modules = read_modules(options.get("include", ()))
        self._timeout = seconds("timeout", options.get("timeout"), least=0.001)
        self._task_names = read_task_names(options.get("task_names", "function"))
        self.client.connection.routes = self._routes = read_routes(options.get("routes"))
        self.functions = read_functions(options.get("allow_functions"), self.client.connection)

    def __repr__(self) -> str:
        return f"<App {self.name!r} in namespace {self.namespace!r}: {count_noun(len(self.tasks), 'task')}>"

    # -- layout ------------------------------------------------------------------------------------------

    def include(self, router: Router) -> None:
        """Add the tasks, queues and schedules of a Router, also those that it declares later.

        A Router can be included once. Raises `BadOption`, `TaskExists`.
        """
        router.join(self)

    def load(self, *modules: str) -> Self:
        """Import the modules of `include` and `allow_functions`, and include the Routers in them.

        `modules` are more patterns, as in `include`.

        Workers and the commands that load an App do this. A program that only submits needs it if it uses
        tasks of these modules. Safe to call twice. Raises `UsageError` with the name of a module that cannot
        be imported.
        """
        for module in import_matching((*self._modules, *read_modules(modules))):
            for value in list(vars(module).values()):
                if isinstance(value, Router) and not value.is_included:
                    self.include(value)
        self.functions.load()
        return self

    def add_schedule(self, written: WrittenSchedule) -> Schedule:
        """Add a schedule. Raises `BadName`, `BadArguments`; `BadOption` for the name of another one."""
        queue = self._routes.queue_of(written.task) if isinstance(written.task, str) else None
        if queue is not None and written.options.get("queue") is None:
            written = replace(written, options={**written.options, "queue": queue})
        return super().add_schedule(written)

    def _placed(self, declaration: Declaration, module: str) -> Declaration:
        given, name = declaration.given, declaration.name
        if self._task_names == "module" and "name" not in given and module:
            name = f"{module}.{name}"
        queue = self._routes.queue_of(name) if "queue" not in given else None
        timeout, hard = declaration.timeout, declaration.hard_timeout
        if self._timeout is not None and "timeout" not in given:
            timeout = self._timeout if hard is None else min(self._timeout, hard)
        return replace(declaration, name=name, queue=queue or declaration.queue, timeout=timeout)

    def _build_schedule(self, written: WrittenSchedule, declared: str = "") -> Schedule:
        return super()._build_schedule(written, self.name)

    # -- workflows ---------------------------------------------------------------------------------------

    async def submit(self, flow: Flow[R], *, name: str | None = None) -> JobHandle[R]:
        """Submit a workflow: a chain, a group, a single step, or one built with `workflow`.

        All of it is stored with one message, or nothing. `name` is its name for people. Options of the
        workflow's job are given before: `app.submit(chain(...).options(unique="nightly"))`. Raises
        `BadWorkflow` with the node that is wrong, before anything is sent; otherwise the errors of
        `Submitter.submit`.
        """
        return await self.client.workflows.submit(flow, name=name)

    def workflow(self, name: str) -> WorkflowBuilder:
        """Build a workflow of any shape, node by node: `with app.workflow("order") as wf: wf.add(...)`.

        See `WorkflowBuilder`. Raises `BadName`.
        """
        return WorkflowBuilder(name, self.client.workflows, self.find)

    # -- find --------------------------------------------------------------------------------------------

    def find(self, name: str) -> AnyTask:
        """A task by its name, or by an older name (`aliases`). Raises `UnknownTask`."""
        task = self.known(name)
        if task is None:
            raise UnknownTask(name)
        return task

    def known(self, name: str) -> AnyTask | None:
        """A task by its name or an older name; None if there is no such task."""
        found = self.tasks.get(name) or self.tasks.get(self.aliases.get(name, name))
        return found or self.functions.find(name) or (self._workflows if name == WORKFLOW_TASK else None)

    @functools.cached_property
    def _workflows(self) -> AnyTask:
        """The task of workflows, which every worker knows."""
        return Task(run_workflow, Declaration(WORKFLOW_TASK), self.client.connection)

    def check(self) -> None:
        """Check that the tasks fit together. A worker does this before it starts.

        Raises `UnknownTask` for a callback or fallback that is not declared. Raises `BadOption` for a
        callback or fallback with other parameters, for fallbacks in a circle, and for a `retry_if`, a
        lifespan, middleware or dependencies that a child process would not find.
        """
        self._locate()
        for task in self.tasks.values():
            for option, name in task.declaration.callbacks.task_names.items():
                other = self.known(name)
                if other is None:
                    raise UnknownTask(name, f"{option} of task {task.name}")
                check_callback(task, option, other)
            check_circle(task, self.known)
            check_reach(task)

    def _locate(self) -> None:
        """Note where a child process finds this App: the module of a Router does not lead to it."""
        included = [task for task in self.tasks.values() if task.is_included and task.location is not None]
        place = find_location(self) if included else None
        for task in included:
            assert task.location is not None, "it is a process task"
            task.location = replace(task.location, app=place)

    @property
    def queues(self) -> list[str]:
        """The queues that are declared, named by a task, or those of allowed functions.

        They do not include quarantines: other workers serve these.
        """
        declared = [task.declaration for task in self.tasks.values()]
        named = {one.queue for one in declared} | {one.job.queue for one in self.schedules.values()}
        named |= {self._routes.queue_of(one) or DEFAULT_QUEUE for one in self.functions.patterns}
        apart = {one.quarantine for one in declared}
        apart |= {settings.quarantine for settings in self.declared.values()}
        return sorted(named | (set(self.declared) - apart)) or [DEFAULT_QUEUE]

    # -- connect -----------------------------------------------------------------------------------------

    async def connect(self) -> Self:
        """Connect now; otherwise the first submit connects.

        Raises `BrokerUnavailable`, `NotAllowed`, `ServerTooOld`.
        """
        await self.client.connect()
        return self

    async def close(self) -> None:
        await self.client.close()

    def working(
        self,
        *,
        queues: Sequence[str] | Mapping[str, int] | None = None,
        **settings: Unpack[WorkerArguments],
    ) -> EmbeddedWorker:
        """A worker in this process: `async with app.working(concurrency=4) as worker:`.

        See `EmbeddedWorker`. `queues` are those of `Worker`: all of the App, names, or names with weights;
        `settings` are those of `WorkerSettings`. Raises `BadName`, `BadOption`, and `UsageError` for a
        module of `include` that cannot be imported.
        """
        from jsq.worker import Worker

        return EmbeddedWorker(Worker(self, queues=queues, settings=WorkerSettings(**settings)), self.connect)

    def immediate(self, **options: Unpack[ImmediateOptions]) -> Immediate:
        """A block for tests, without a server: `async with app.immediate() as immediate:`.

        In the block, a submit runs its job at once, in this process. `ImmediateOptions` lists the options.
        Entering the block raises what the start of a worker raises. Raises `BadOption`.
        """
        from jsq.testing.immediate import ImmediateSession

        check_known(options, (*ImmediateOptions.__annotations__,), APP_TERMS)
        return Immediate(ImmediateSession(self, options), self.client.connection.portal)

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


explain_missing(App, APP_TERMS)


async def run_workflow() -> Any:
    """The function of the task of workflows; a stage of the worker acts in its place."""


def read_modules(include: object) -> tuple[str, ...]:
    """The patterns of modules in `include`. Raises `BadOption`."""
    if isinstance(include, str) or not isinstance(include, Sequence):
        raise BadOption("include", include, "must be a list of modules, such as shop.tasks or shop.mail.*")
    return tuple(check_pattern("include", pattern) for pattern in include)


def read_task_names(value: TaskNames) -> TaskNames:
    """Check the option `task_names`. Raises `BadOption`."""
    if value not in ("function", "module"):
        raise BadOption("task_names", value, "must be function or module")
    return value


def check_callback(task: AnyTask, option: str, other: AnyTask) -> None:
    """Raises `BadOption` for a callback without exactly one argument, or a fallback with other parameters."""
    shape, field = other.signature.shape, f"{option} of {task.name}"
    if option != "fallback":
        try:
            shape.bind(None)
        except TypeError as error:
            raise BadOption(
                field, other.name, f"must be a task of one argument, a Failure; {error}"
            ) from error
        return
    given = [one for one in task.signature.shape.parameters.values() if one.kind not in VARIABLE]
    named = ", ".join(one.name for one in given) or "none"
    try:
        shape.bind(**{one.name: None for one in given})
    except TypeError as error:
        raise BadOption(
            field, other.name, f"must be a task with parameters of the same names, {named}; {error}"
        ) from error


def check_circle(task: AnyTask, known: Callable[[str], AnyTask | None]) -> None:
    """Raises `BadOption` for a task whose fallbacks lead back to it."""
    seen: list[str] = []
    following: AnyTask | None = task
    while following is not None and following.name not in seen:
        seen.append(following.name)
        following = known(following.declaration.callbacks.fallback)
    if following is not None:
        rule = f"must not form a circle; it is {' -> '.join((*seen, following.name))}"
        raise BadOption(f"fallback of {seen[-1]}", following.name, rule)


def check_reach(task: AnyTask, declared: AnyTask | None = None) -> None:
    """Raises `BadOption` if a child process would not find what it needs besides the function of a task.

    `declared` is the task itself, if `task` is a variant of it.
    """
    needed = reached_options(task)
    if task.location is None or not needed:
        return
    found: Any = sys.modules.get(task.function.__module__)
    for part in task.location.name.split("."):
        found = getattr(found, part, None)
    if found is not (declared or task):
        rule = "must be found by a child process, but the name of the task does not lead to the task"
        raise BadOption(
            f"{needed[0]} of {task.name}", task.location.name, f"{rule}; declare the task with @app.task"
        )
    of_app = [option for option in needed if option in ("lifespan", "middleware")]
    if of_app and task.is_included and task.location.app is None:
        rule = "must be found by a child process, but no module has the App; give it a name in a module"
        raise BadOption(f"{of_app[0]} of {task.name}", task.location.name, rule)


def reached_options(task: AnyTask) -> list[str]:
    """The options of a task that a child process takes from the task itself."""
    hooks = task.hooks_on(task.declaration.queue)
    used = {
        "retry_if": task.declaration.retry.retry_if is not None,
        "lifespan": task.app is not None and task.app.lifespan.is_used,
        "middleware": hooks is not None and bool(hooks.middleware),
        "dependencies": task.dependencies is not None,
    }
    return [name for name, is_used in used.items() if is_used]


VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""Kinds of parameters that take any number of arguments."""
