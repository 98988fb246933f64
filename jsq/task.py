"""A task: a declared function, which can be called directly or submitted as a job."""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Generic, ParamSpec, Self, TypeAlias, TypeVar

from pydantic_core import from_json, to_json

from jsq.batch import items_of
from jsq.client.connection import Connection
from jsq.client.handle import BlockingJobHandle
from jsq.client.submitter import SubmitTarget, Submitter
from jsq.codec.signature import (
    Signature,
    explain_refusal,
    hides_coroutine_function,
    is_coroutine_function,
    underlying_function,
)
from jsq.declaration import Declaration, check_executor_of_submit, location_of, takes_context
from jsq.dependencies import plan_dependencies
from jsq.errors import BadArguments, BadOption
from jsq.hooks import AppHooks, TaskHooks
from jsq.model.job import ExecutorKind
from jsq.model.options import Options, check_fallback, read_options
from jsq.model.unique import arguments_key

P = ParamSpec("P")
C = ParamSpec("C")
R = TypeVar("R")
V = TypeVar("V")


class DeclaredTarget(SubmitTarget):
    """The declared task of a submit: its signature checks the arguments, its declaration has the options."""

    check_executor: Callable[[ExecutorKind | None], None]

    def __init__(self, declaration: Declaration, signature: Signature) -> None:
        super().__init__(declaration.name, declaration.queue)
        self.signature = self._signature = signature
        self.declare(declaration)
        self.pack = signature.pack  # type: ignore[method-assign]  # saves a call in each submit
        if isinstance(declaration.unique, tuple):
            self._check_key(declaration.unique)
        elif isinstance(declaration.unique, str):
            self._check_text_key(declaration.unique)

    def declare(self, declaration: Declaration) -> None:
        """Use a declaration. Submitters with other options use its name and its queue too."""
        self.name, self.queue = declaration.name, declaration.queue
        self.middleware = declaration.middleware
        self._declaration = declaration
        self._declared = declaration.submit_options
        del self._declared["queue"]

    def read_options(self, given: Mapping[str, Any]) -> Options:
        """Read the options that a user wrote; the declaration gives the options that are left out."""
        written = {name: value for name, value in given.items() if value is not None}
        if self._declaration.batch is not None:
            check_batch_options(written)
        self.check_executor(written.get("executor"))
        if "backoff" not in written and written.keys() & {"backoff_max", "jitter"}:
            written["backoff"] = self._declaration.retry.backoff
        options = read_options(datetime.now(UTC), **self._declared | written)
        check_fallback(options.fallback, self.name)
        return options

    def with_key(self, options: Options, packed: bytes) -> Options:
        """The options with the unique key of one job, if the key is made of the job's arguments.

        Raises `BadArguments` if the declaration makes no key from these arguments.
        """
        if options.unique is not True:
            return options
        made = self._declaration.makes_keys
        key = self._key(packed) if made else arguments_key(self._signature.filled(packed))
        return replace(options, unique=key)

    def _key(self, packed: bytes) -> str | bytes:
        make = self._declaration.unique
        if isinstance(make, tuple):
            values = from_json(self._signature.filled(packed))
            return to_json([values.get(name) for name in make], inf_nan_mode="constants")
        args, named = self._signature.unpack(packed)
        try:
            key = make(*args, **named) if callable(make) else None
            made = key if isinstance(key, str | bytes) else to_json(key) if key is not None else b""
        except Exception as error:  # the user's function may raise anything
            raise BadArguments(
                f"{self.name}: unique= made no key of them: {explain_refusal(error)}"
            ) from error
        if not made:
            raise BadArguments(f"{self.name}: unique= made no key of them, but {key!r}")
        return made

    def _check_key(self, names: tuple[str, ...]) -> None:
        known = self._signature.shape.parameters
        for name in names:
            if name not in known:
                rule = f"must name arguments of {self.name}; they are {', '.join(known) or 'none'}"
                raise BadOption("unique", list(names), rule)

    def _check_text_key(self, text: str) -> None:
        if text in self._signature.shape.parameters:
            rule = (
                f"must be [{text!r}] for a key of that argument: a text is one key for all jobs of the task"
            )
            raise BadOption("unique", text, rule)


def check_batch_options(written: Mapping[str, Any]) -> None:
    """Raises `BadOption` for an option that one job must not set for the others of its batch."""
    for name in ("timeout", "hard_timeout"):
        if name in written:
            raise BadOption(
                name, written[name], "must not be set for a job of a batch task; set it in the declaration"
            )


class Task(Submitter[P, R], Generic[C, V, P, R]):
    """A declared function. A call runs the function in this process; a submit runs it on a worker.

    `is_included` is true for a task of a Router that is included. `C` and `V` are the parameters and the
    return type of the function itself. `P` and `R` are the parameters
    of a submit (without the `Context`) and the type of its result (without the `Awaitable`).
    """

    def __init__(self, function: Callable[C, V], declaration: Declaration, connection: Connection) -> None:
        self.function = function
        self.declaration = declaration
        self.items = items_of(function) if declaration.batch is not None else None
        self.takes_context = self.items is None and takes_context(function)
        self.dependencies = None if self.items is not None else plan_dependencies(function)
        self._hooks: dict[str, TaskHooks | None] = {}
        self.is_async = declaration.executor == "async" or is_coroutine_function(function)
        self.hides_coroutine = not self.is_async and hides_coroutine_function(function)
        self.location = location_of(function) if declaration.executor == "process" else None
        self.is_included = False
        called = function if self.items is None else self.items.function
        provided = self.dependencies.names if self.dependencies is not None else ()
        self.signature = Signature(called, skip=int(self.takes_context), omit=provided)
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", declaration.name)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.__module__ = getattr(function, "__module__", __name__)
        self.__wrapped__ = function
        vars(self).update(code_attributes(function))
        target = DeclaredTarget(declaration, self.signature)
        batch = self.items is not None
        target.check_executor = functools.partial(check_executor_of_submit, function, batch=batch)
        self._declared_target = target
        super().__init__(connection, target, target.read_options({}))

    def __call__(self, *args: C.args, **kwargs: C.kwargs) -> V:
        return self.function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """The task itself, also as an attribute of a class. `help` describes a descriptor as a function."""
        return self

    def redeclare(self, declaration: Declaration, connection: Connection) -> None:
        """Use another declaration and another connection, before the first submit.

        The declaration differs from the first one in its name, its queue or its callbacks.
        """
        self.declaration = declaration
        self._declared_target.declare(declaration)
        self._connection = connection
        self.is_included = True
        self._hooks.clear()

    def on_executor(self, executor: ExecutorKind) -> "Task[C, V, P, R]":
        """This task on another executor. Raises `BadOption` if that cannot run its function."""
        check_executor_of_submit(self.function, executor, batch=self.items is not None)
        other = copy.copy(self)
        other.location = location_of(self.function) if executor == "process" else None
        return other

    @property
    def app(self) -> AppHooks | None:
        """The App of the task; None before the Router that declared it is included."""
        app = self._connection.app
        return app if isinstance(app, AppHooks) else None

    def hooks_on(self, queue: str) -> TaskHooks | None:
        """The middleware and dependencies of the jobs of this task on a queue; None if there are none."""
        if queue not in self._hooks:
            app = self.app
            of_app = () if app is None else app.middleware.find(queue)
            middleware = of_app + self.declaration.middleware
            used = bool(middleware) or self.dependencies is not None
            overrides = None if app is None else app.overrides
            self._hooks[queue] = TaskHooks(middleware, self.dependencies, overrides) if used else None
        return self._hooks[queue]

    def uses_context(self, queue: str) -> bool:
        """Whether a run of a job on a queue needs a `Context`: for the function, or for its hooks."""
        return self.takes_context or self.hooks_on(queue) is not None

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> BlockingJobHandle[R]:
        """The same as `blocking.submit`, under the name that Celery uses."""
        return self.blocking.submit(*args, **kwargs)


def code_attributes(function: Any) -> dict[str, Any]:
    """The attributes by which `inspect` recognises a function, and whether it is a coroutine function."""
    found = underlying_function(function)
    names = ("__code__", "__defaults__", "__kwdefaults__", "__annotations__")
    return {name: getattr(found, name) for name in names if hasattr(found, name)}


AnyTask: TypeAlias = Task[Any, Any, Any, Any]
