"""The declaration of a task: how its jobs are submitted and run, where a submit does not say otherwise.

`TaskOptions` is how users write it, `Declaration` what was read and checked of it.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack

from jsq.batch import BatchLimits
from jsq.codec.signature import resolve_hints
from jsq.context import Context
from jsq.errors import BadOption, Duration, seconds
from jsq.model.callback import Callbacks
from jsq.model.job import DEFAULT_QUEUE, Priority, check_queue, check_task
from jsq.model.options import check_keep_arguments, check_known, check_slots, parse_options, read_tags
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
"""Makes a job's unique key of its arguments."""

ExecutorKind = Literal["async", "thread", "process"]
"""Where a task's function runs: on the worker's loop, in a thread, or in a process of its own."""


class DeclaredTask(Protocol):
    """A task, as far as another task's declaration names it."""

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
    """Where another process finds a function: a module (or the file run as main), and its name there."""

    module: str
    file: str
    name: str


class TaskOptions(TypedDict, total=False):
    """What may be written for a task. Durations are seconds, a `timedelta`, or text such as `"5m"`.

    `name`: the function's own by default.
    `queue`, `priority`, `tags`, `deadline`, `expires`, `per_key`: of its jobs, where a submit does not say
    otherwise; see `SubmitOptions`.
    `retries`: how often a job that raises is tried again [3], after waits that `backoff` gives: none, linear,
    exponential (with full jitter), a list of seconds, or a `Backoff`. None leaves the end to `retry_for`.
    `backoff_max`: the longest wait. `jitter`: the share of each wait that is left to chance, from 0 (False)
    to 1 (True) [1 for exponential, 0 for the others].
    `retry_for`: from a job's first start; no failure is tried again after that, nor after `retries`.
    `retry_on`, `no_retry_on`: types of exceptions: only those are tried again, those are not.
    `retry`: types of exceptions, each with `Retries(...)` of its own. Of all types that these three name, the
    one nearest to the exception's own decides.
    `retry_if`: is asked with the exception and the number of the attempt whether it is tried again.
    `on_failure`, `on_dead`: a task, or its name, which is submitted with a `Failure` after each attempt that
    failed, and once a job is dead.
    `fallback`: a task, or its name, which is submitted with the same arguments when a job is dead.
    `timeout`: for each attempt, which then has 5 seconds to clean up.
    `hard_timeout`: no less than `timeout`; a process is killed then, and what cannot be killed is given up,
    its slot free.
    `keep_result`: how long a result is kept [7 days, as the record]; 0 keeps only the outcome.
    `keep_arguments`: whether the record of a job that has ended holds its arguments [yes]; see
    `SubmitOptions`.
    `executor`: a coroutine function runs on the worker's loop, any other in a thread; `process` runs either
    in a process of its own, which can be killed.
    `aliases`: older names of the task, whose jobs it runs too.
    `quarantine`: the queue where a job goes on that took down too many workers; see `App.queue`.
    `unique`: as for a submit, or the names of the arguments that make two jobs the same, or a function which
    makes a key of the arguments; with `unique_until`, `unique_for`, `on_duplicate`, `debounce`, `throttle`.
    `rate`: how often jobs of the task may start, by all workers together: "10/s", "100/m", or a `Rate`.
    `key_rate`: the same for those of each `key=` of a submit; of jobs without one it says nothing.
    `slots`: how many of its worker's slots a job takes [1]; see `SubmitOptions`.
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


OF_SUBMIT = (
    *("queue", "priority", "tags", "deadline", "expires", "per_key"),
    *("unique", "unique_until", "unique_for", "on_duplicate", "debounce", "throttle"),
)
"""What a task declares of the options of each submit."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """How the jobs of a task are submitted and run, where a submit does not say otherwise."""

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

    def __post_init__(self) -> None:
        check_task(self.name)
        parse_options(**self.submit_options)
        check_executor(self.executor)
        check_slots(self.slots)
        check_keep_arguments(self.keep_arguments)
        hard, limit = self.hard_timeout, self.timeout
        if hard is not None and limit is not None and hard < limit:
            raise BadOption("hard_timeout", hard, f"it takes no less than the timeout, {limit:g} s")
        for alias in self.aliases:
            check_task(alias)
        check_quarantine(self.quarantine, self.queue)
        if self.callbacks.fallback in (self.name, *self.aliases):
            raise BadOption("fallback", self.callbacks.fallback, "it takes another task")

    @property
    def submit_options(self) -> dict[str, Any]:
        """The options of each submit, where that says nothing else."""
        said = {name: getattr(self, name) for name in OF_SUBMIT}
        if not self.keep_arguments:
            said["keep_arguments"] = False  # whoever cancels the job does not know its task
        return {**said, "unique": True} if self.makes_keys else said

    @property
    def makes_keys(self) -> bool:
        """Whether the unique key of each job is made of its arguments."""
        return isinstance(self.unique, tuple) or callable(self.unique)


class BatchOptions(TaskOptions, total=False):
    """What may be written for a batch task: what may be for any, but for `executor="process"`.

    `size`: how many jobs it gets at most, up to 1,000 [100].
    `wait`: how long others are waited for, when there is one [half a second].
    """

    size: int
    wait: Duration


_OPTION_NAMES = (*TaskOptions.__annotations__,)


def read_declaration(default_name: str, **written: Unpack[TaskOptions]) -> Declaration:
    """A declaration as a user wrote it. Raises `BadName`, `BadOption`."""
    given: dict[str, Any] = {name: value for name, value in written.items() if value is not None}
    check_known(given, _OPTION_NAMES)
    given["name"] = given.get("name") or default_name
    for name in ("timeout", "hard_timeout", "deadline", "expires", "keep_result"):
        if name in given:
            given[name] = seconds(name, given[name], least=0.0 if name == "keep_result" else 0.001)
    for name in ("rate", "key_rate"):
        given[name] = read_rate(name, given.get(name))
    if isinstance(given.get("aliases"), str):
        raise BadOption("aliases", given["aliases"], "it takes a list of names")
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
    for name in RETRY_OPTIONS:
        given.pop(name, None)
    return Declaration(retry=read_policy(written), **given)


CALLBACKS = (*Callbacks.__annotations__,)

RETRY_OPTIONS = (
    *("retries", "backoff", "backoff_max", "jitter"),
    *("retry_for", "retry_on", "no_retry_on", "retry", "retry_if"),
)


def read_policy(written: TaskOptions) -> RetryPolicy:
    """How a task is tried again, as a user wrote it. Raises `BadOption`."""
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
    """The name of a task that is given as itself, or by its name. Raises `BadOption`, `BadName`."""
    declaration = getattr(task, "declaration", None)
    if isinstance(declaration, Declaration):
        return declaration.name
    if not isinstance(task, str):
        raise BadOption(option, task, "it takes a task, or the name of one")
    return check_task(task)


def read_batch(**written: Any) -> tuple[BatchLimits, dict[str, Any]]:
    """How a batch task's jobs are gathered, and its other options. Raises `BadOption`."""
    check_known(written, (*_OPTION_NAMES, "size", "wait"))
    wait = written.pop("wait", 0.5)
    batch = BatchLimits(written.pop("size", 100), seconds("wait", wait) or 0.0)
    if written.get("executor") == "process":
        raise BadOption("executor", "process", "a batch task runs on the worker's loop, or in a thread")
    return batch, written


def check_parameters(names: Sequence[str]) -> tuple[str, ...]:
    """Raises `BadOption` for what is no list of the names of arguments."""
    if not names or not all(isinstance(name, str) for name in names):
        raise BadOption("unique", names, "a list takes the names of arguments, one at least")
    return tuple(names)


def takes_context(function: Callable[..., object]) -> bool:
    """Whether a function's first parameter is declared as a `Context`."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.annotation is inspect.Parameter.empty:
        return False
    kind = resolve_hints(function).get(first.name)
    return isinstance(kind, type) and issubclass(kind, Context)


def check_function(function: Callable[..., object]) -> None:
    """Raises `BadOption` for what cannot run as a job."""
    if not callable(function):
        raise BadOption("task", function, "it takes a function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise BadOption("task", function, "a generator has no one result: return a list")
    try:
        inspect.signature(function)
    except ValueError as error:
        raise BadOption("task", function, "its parameters are not known; wrap it in a function") from error


def check_executor(executor: ExecutorKind | None) -> None:
    """Raises `BadOption` for an executor that there is not."""
    if executor not in (None, *typing.get_args(ExecutorKind)):
        raise BadOption("executor", executor, "it takes async, thread or process")


def check_quarantine(quarantine: str | None, queue: str) -> None:
    """Raises `BadName`, and `BadOption` for a queue that would be its own quarantine."""
    if quarantine is not None and check_queue(quarantine) == queue:
        raise BadOption("quarantine", quarantine, "it takes another queue, with workers of its own")


def check_runs(function: Callable[..., object], executor: ExecutorKind | None) -> None:
    """Raises `BadOption` for an executor that cannot run the function."""
    if executor == "async" and not inspect.iscoroutinefunction(function):
        raise BadOption("executor", executor, "only a coroutine function (async def) runs on the loop")
    if executor == "thread" and inspect.iscoroutinefunction(function):
        raise BadOption("executor", executor, "a coroutine function runs on the loop, or in a process")


def place_of(function: Callable[..., object]) -> FunctionLocation:
    """Where a child process finds a function. Raises `BadOption` for one that has no name of its own."""
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
    if not name or "<" in name:
        raise BadOption(
            "executor",
            "process",
            f"a child process finds a function by its name, and {name or function!r} is no name in a module: "
            "define it at the top of one",
        )
    if module != "__main__":
        return FunctionLocation(module, "", name)
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return FunctionLocation(spec.name, "", name)
    if file is None:
        raise BadOption("executor", "process", f"{name} was typed in, not written to a file: none finds it")
    return FunctionLocation("", str(Path(file).resolve()), name)
