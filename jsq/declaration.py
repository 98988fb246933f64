"""The declaration of a task: how its jobs are submitted and run, unless a submit sets other options.

`TaskOptions` are the options that users write, `Declaration` is their checked form.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Protocol, TypedDict, Unpack

from jsq.batch import BatchLimits, name_of
from jsq.codec.signature import hides_coroutine_function, is_coroutine_function, resolve_hints
from jsq.context import Context
from jsq.errors import BadOption
from jsq.middleware import Middleware, read_middleware
from jsq.model.callback import Callbacks
from jsq.model.durations import Duration, seconds
from jsq.model.job import DEFAULT_QUEUE, ExecutorKind, Priority, check_queue, check_task
from jsq.model.options import (
    check_executor,
    check_hard_timeout,
    check_keep_arguments,
    check_known,
    check_slots,
    parse_options,
    read_tags,
)
from jsq.model.rate_limit import Rate, read_rate
from jsq.model.retry import (
    BackoffOption,
    ExceptionTypes,
    Predicate,
    Retries,
    RetryPolicy,
    build_backoff,
    build_policy,
)
from jsq.model.unique import OnDuplicate, UniqueUntil

DEFAULT_RESULT_SECONDS = 7 * 86_400.0

KeyFunction = Callable[..., object]
"""Makes the unique key of a job from its arguments."""


class DeclaredTask(Protocol):
    """A task that another task's declaration names."""

    @property
    def name(self) -> str:
        """The name of the task."""
        ...

    @property
    def declaration(self) -> "Declaration":
        """How its jobs are submitted and run."""
        ...


@dataclass(frozen=True, slots=True)
class FunctionLocation:
    """Where a child process finds a function: a module, or the file that runs as main, and a name in it.

    `app` is where it finds the App that has included the Router of the task.
    """

    module: str
    file: str
    name: str
    app: "FunctionLocation | None" = None


class TaskOptions(TypedDict, total=False):
    """The options of a task. Durations are seconds, a `timedelta`, or text such as `"5m"`.

    `name`: the name of the task [the name of the function].
    `queue`, `priority`, `tags`, `deadline`, `expires`, `per_key`: defaults for the jobs, which a submit can
    override; see `SubmitOptions`.
    `retries`: how often a job that raises is retried [3], or None for no limit but `retry_for`.
    `backoff`: the waits between attempts: `"none"`, `"linear"`, `"exponential"` (with full jitter), a list of
    seconds, or a `Backoff` ["exponential"].
    `backoff_max`: the longest wait. `jitter`: the random share of each wait, from 0 (False) to 1 (True) [1
    for exponential, 0 for the others].
    `retry_for`: the time for retries, counted from the first start of a job. A failure after it is final.
    `retry_on`, `no_retry_on`: exception types: only these are retried, or these are not retried.
    `retry`: exception types, each with its own `Retries(...)`. Of all types that these three options name,
    the closest base class of the exception decides.
    `retry_if`: a function of the exception and the number of the attempt; returns whether to retry.
    `on_failure`, `on_dead`: a task, or its name, that is submitted with a `Failure` after each failed
    attempt, or once a job is dead.
    `fallback`: a task, or its name, that is submitted with the same arguments when a job is dead.
    `timeout`: the limit of each attempt, which then has 5 seconds to clean up.
    `hard_timeout`: the limit after which a child process is killed, not below `timeout`. An attempt that
    cannot be killed is abandoned, and its slot is free.
    `keep_result`: how long a result is kept [7 days, as the record]; 0 keeps only the outcome.
    `keep_arguments`: whether the record of an ended job holds its arguments [yes]; see `SubmitOptions`.
    `executor`: `"async"` is the worker's loop, for coroutine functions; `"thread"` a thread, for other
    functions; `"process"` a child process, which can be killed, for both [async or thread].
    `aliases`: older names of the task, whose jobs it runs too.
    `quarantine`: the queue for jobs that crashed too many workers; see `App.queue`.
    `unique`: the unique key as for a submit, or the names of the arguments that make two jobs the same, or a
    function that makes a key from the arguments. It goes with `unique_until`, `unique_for`, `on_duplicate`,
    `debounce` and `throttle`.
    `rate`: how often jobs of the task may start, by all workers together: "10/s", "100/m", or a `Rate`.
    `key_rate`: the same for the jobs of each `key=` of a submit. Jobs without a key are not limited by it.
    `slots`: how many slots of its worker a job takes [1]; see `SubmitOptions`.
    `middleware`: the middleware of this task, inside that of the App and of the queue; see `Middleware`.
    """

    name: str | None
    queue: str
    priority: Priority
    retries: int | None
    backoff: BackoffOption
    backoff_max: Duration | None
    jitter: float | None
    retry_for: Duration | None
    retry_on: ExceptionTypes | None
    no_retry_on: ExceptionTypes | None
    retry: Mapping[type[BaseException], Retries] | None
    retry_if: Predicate | None
    on_failure: "DeclaredTask | str | None"
    on_dead: "DeclaredTask | str | None"
    fallback: "DeclaredTask | str | None"
    timeout: Duration | None
    keep_result: Duration
    keep_arguments: bool
    tags: Iterable[str]
    executor: ExecutorKind | None
    hard_timeout: Duration | None
    aliases: Iterable[str]
    deadline: Duration | None
    expires: Duration | None
    quarantine: str | None
    per_key: int | None
    unique: str | bytes | bool | Sequence[str] | KeyFunction | None
    unique_until: UniqueUntil | None
    unique_for: Duration | None
    on_duplicate: OnDuplicate | None
    debounce: Duration | None
    throttle: Duration | None
    rate: Rate | str | None
    key_rate: Rate | str | None
    slots: int
    middleware: Iterable[Middleware]


OF_SUBMIT = (
    *("queue", "priority", "tags", "deadline", "expires", "per_key"),
    *("unique", "unique_until", "unique_for", "on_duplicate", "debounce", "throttle"),
)
"""Options of a submit for which a task can declare defaults."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """How the jobs of a task are submitted and run, unless a submit sets other options.

    `given` are the options that its author has set. The others may change when a Router is included.
    """

    name: str
    queue: str = DEFAULT_QUEUE
    priority: Priority = "normal"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    keep_result: float = DEFAULT_RESULT_SECONDS
    keep_arguments: bool = True
    tags: tuple[str, ...] = ()
    hard_timeout: float | None = None
    executor: ExecutorKind | None = None
    deadline: float | None = None
    quarantine: str | None = None
    aliases: tuple[str, ...] = ()
    per_key: int | None = None
    expires: float | None = None
    callbacks: Callbacks = field(default_factory=Callbacks)
    batch: BatchLimits | None = None
    unique: str | bytes | bool | tuple[str, ...] | KeyFunction | None = None
    unique_until: UniqueUntil | None = None
    unique_for: float | None = None
    on_duplicate: OnDuplicate | None = None
    debounce: float | None = None
    throttle: float | None = None
    rate: Rate | None = None
    key_rate: Rate | None = None
    slots: int = 1
    given: frozenset[str] = frozenset()
    middleware: tuple[Middleware, ...] = ()

    def __post_init__(self) -> None:
        check_task(self.name)
        parse_options(**self.submit_options)
        check_executor(self.executor)
        check_slots(self.slots)
        check_keep_arguments(self.keep_arguments)
        check_hard_timeout(self.hard_timeout, self.timeout)
        for alias in self.aliases:
            check_task(alias)
        check_quarantine(self.quarantine, self.queue)
        if self.callbacks.fallback in (self.name, *self.aliases):
            raise BadOption("fallback", self.callbacks.fallback, "must be another task")

    @property
    def submit_options(self) -> dict[str, Any]:
        """The default options of each submit."""
        said = {name: getattr(self, name) for name in OF_SUBMIT}
        if not self.keep_arguments:
            said["keep_arguments"] = False  # a cancel of the job does not know its task
        return {**said, "unique": True} if self.makes_keys else said

    @property
    def published_options(self) -> dict[str, Any]:
        """The options of a submit that a submit by name lacks, in values that JSON has."""
        chosen = {name: getattr(self, name) for name in OF_SUBMIT if name in self.given}
        if self.queue != DEFAULT_QUEUE:
            chosen["queue"] = self.queue
        plain = (str, int, float, bool, tuple)
        return {name: value if isinstance(value, plain) else True for name, value in chosen.items()}

    @property
    def makes_keys(self) -> bool:
        """Whether the unique key of each job is made from its arguments."""
        return isinstance(self.unique, tuple) or callable(self.unique)


class BatchOptions(TaskOptions, total=False):
    """The options of a batch task: those of any task, without `executor="process"`, and two of its own.

    `size`: the maximum number of jobs in one call, up to 1,000 [100].
    `wait`: how long to wait for more jobs after the first one [0.5 seconds].
    """

    size: int
    wait: Duration


_OPTION_NAMES = (*TaskOptions.__annotations__,)


def read_declaration(default_name: str, **written: Unpack[TaskOptions]) -> Declaration:
    """Read and check the options of a task. Raises `BadName`, `BadOption`."""
    given: dict[str, Any] = {name: value for name, value in written.items() if value is not None}
    check_known(given, _OPTION_NAMES)
    options = frozenset(given) | ({"timeout"} & written.keys())  # None is a choice too: see `App`
    given["name"] = given.get("name") or default_name
    for name in ("timeout", "hard_timeout", "deadline", "expires", "keep_result"):
        if name in given:
            given[name] = seconds(name, given[name], least=0.0 if name == "keep_result" else 0.001)
    for name in ("rate", "key_rate"):
        given[name] = read_rate(name, given.get(name))
    if isinstance(given.get("aliases"), str):
        raise BadOption("aliases", given["aliases"], "must be a list of names")
    given["callbacks"] = Callbacks(
        **{name: task_name(name, given.pop(name)) for name in CALLBACKS if name in given}
    )
    for name in ("unique_for", "debounce", "throttle"):
        if name in given:
            given[name] = seconds(name, given[name])
    if isinstance(given.get("unique"), list | tuple):
        given["unique"] = check_parameters(given["unique"])
    given["aliases"] = tuple(given.get("aliases", ()))
    given["tags"] = read_tags(given.get("tags", ()))
    given["middleware"] = read_middleware(given.get("middleware", ()))
    for name in RETRY_OPTIONS:
        given.pop(name, None)
    return Declaration(retry=read_policy(written), given=options, **given)


CALLBACKS = (*Callbacks.__annotations__,)

RETRY_OPTIONS = (
    *("retries", "backoff", "backoff_max", "jitter"),
    *("retry_for", "retry_on", "no_retry_on", "retry", "retry_if"),
)


def read_policy(written: TaskOptions) -> RetryPolicy:
    """Read the retry options of a task. Raises `BadOption`."""
    shape = written.get("backoff")
    waits = "exponential" if shape is None else shape
    return build_policy(
        written.get("retries", 3),
        build_backoff(waits, written.get("backoff_max"), written.get("jitter")),
        retry_for=written.get("retry_for"),
        retry_on=written.get("retry_on"),
        no_retry_on=written.get("no_retry_on"),
        retry_if=written.get("retry_if"),
        retry=written.get("retry"),
    )


def task_name(option: str, task: DeclaredTask | str) -> str:
    """The name of a task that is given as a Task or by its name. Raises `BadOption`, `BadName`."""
    declaration = getattr(task, "declaration", None)
    if isinstance(declaration, Declaration):
        return declaration.name
    if not isinstance(task, str):
        raise BadOption(option, task, "must be a task, or the name of a task")
    return check_task(task)


def read_batch(**written: Any) -> tuple[BatchLimits, dict[str, Any]]:
    """The limits of a batch task, and its other options. Raises `BadOption`."""
    check_known(written, (*_OPTION_NAMES, "size", "wait"))
    wait = written.pop("wait", 0.5)
    batch = BatchLimits(written.pop("size", 100), seconds("wait", wait) or 0.0)
    if written.get("executor") == "process":
        raise BadOption("executor", "process", "must be async or thread for a batch task")
    return batch, written


def check_parameters(names: Sequence[str]) -> tuple[str, ...]:
    """Raises `BadOption` for anything but a list of names of arguments."""
    if not names or not all(isinstance(name, str) for name in names):
        raise BadOption("unique", names, "must be a list of at least one argument name")
    return tuple(names)


def takes_context(function: Callable[..., object]) -> bool:
    """Whether the first parameter of a function is annotated as a `Context`.

    Raises `BadOption` if another parameter is.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if all(one.annotation is inspect.Parameter.empty for one in parameters):
        return False
    hints = resolve_hints(function)
    first, *others = (is_context(hints.get(one.name)) for one in parameters)
    if any(others) or (first and parameters[0].kind not in POSITIONAL):
        raise BadOption("task", name_of(function), "must take the Context as its first parameter")
    return first


POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_context(kind: object) -> bool:
    """Whether an annotation is a `Context`, or `Context | None`, with or without `Annotated`."""
    inner = [one for one in typing.get_args(kind) if one is not NoneType]
    if typing.get_origin(kind) is Annotated:
        return is_context(inner[0])
    if typing.get_origin(kind) in (typing.Union, UnionType):
        return len(inner) == 1 and is_context(inner[0])
    return isinstance(kind, type) and issubclass(kind, Context)


def check_function(function: Callable[..., object]) -> None:
    """Raises `BadOption` for anything that cannot run as a job."""
    if isinstance(function, classmethod) or is_unbound_method(function):
        rule = "must be a function, not a method; nothing would be passed as its self or cls, so write a "
        raise BadOption("task", name_of(function), rule + "function that creates the object")
    if not callable(function):
        raise BadOption("task", function, "must be a function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise BadOption(
            "task", function, "must be a function with one result; return a list instead of yielding"
        )
    try:
        inspect.signature(function)
    except ValueError as error:
        raise BadOption(
            "task", function, "must be a function with known parameters; wrap it in a function"
        ) from error


def is_unbound_method(function: object) -> bool:
    """Whether a function was defined in a class, and needs an instance or the class as its first argument."""
    if not inspect.isfunction(function):
        return False
    *outer, _ = function.__qualname__.split(".")
    first = next(iter(inspect.signature(function).parameters), "")
    return bool(outer) and outer[-1] != "<locals>" and first in ("self", "cls")


def check_quarantine(quarantine: str | None, queue: str) -> None:
    """Raises `BadName`; raises `BadOption` for a queue that is its own quarantine."""
    if quarantine is not None and check_queue(quarantine) == queue:
        raise BadOption("quarantine", quarantine, "must be another queue, with workers of its own")


def check_runs(function: Callable[..., object], executor: ExecutorKind | None) -> None:
    """Raises `BadOption` for an executor that cannot run the function."""
    if executor == "async" and not (is_coroutine_function(function) or hides_coroutine_function(function)):
        raise BadOption(
            "executor", executor, "must be thread or process for a function that is not async def"
        )
    if executor == "thread" and is_coroutine_function(function):
        raise BadOption("executor", executor, "must be async or process for a coroutine function (async def)")


def check_executor_of_submit(
    function: Callable[..., object], executor: ExecutorKind | None, *, batch: bool
) -> None:
    """Raises `BadOption` for the executor of a submit if the function of its task cannot run there."""
    if batch and executor is not None:
        raise BadOption("executor", executor, "must not be set for a job of a batch task")
    check_runs(function, executor)
    if executor == "process":
        location_of(function)


def location_of(function: Callable[..., object]) -> FunctionLocation:
    """Where a child process finds a function. Raises `BadOption` if the function has no name in a module."""
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
    if not name or "<" in name:
        raise BadOption(
            "executor",
            "process",
            f"must be async or thread: {name or function!r} has no name in a module by which a child process "
            "finds it; define it at the top of a module",
        )
    if inspect.ismethod(function) and not isinstance(function.__self__, type):
        rule = f"must be async or thread: a child process has no object for the method {name}"
        raise BadOption("executor", "process", rule)
    found = name_in_module(module, name)
    if found is None:
        raise BadOption(
            "executor",
            "process",
            f"must be async or thread: {name} was defined interactively; define it in a file",
        )
    return found


def name_in_module(module: str, name: str) -> FunctionLocation | None:
    """The location of a name in a module; None in a program that is typed in."""
    if module != "__main__":
        return FunctionLocation(module, "", name)
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return FunctionLocation(spec.name, "", name)
    return None if file is None else FunctionLocation("", str(Path(file).resolve()), name)


def find_location(value: object) -> FunctionLocation | None:
    """Where a child process finds an object that a module has under a name; None if no module has it."""
    for module, loaded in list(sys.modules.items()):
        for name, one in list(getattr(loaded, "__dict__", {}).items()):
            if one is value:
                return name_in_module(module, name)
    return None
