"""Batch tasks: functions that receive many jobs at once, each job as one item of a list."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar

from jsq.codec.signature import resolve_hints
from jsq.errors import BadOption
from jsq.model.job import Job

T = TypeVar("T")

MOST_ITEMS = 1_000
LONGEST_WAIT = 3_600.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How jobs are collected: up to `size` jobs, or as many as arrive within `wait` seconds."""

    size: int = 100
    wait: float = 0.5

    def __post_init__(self) -> None:
        is_integer = isinstance(self.size, int) and not isinstance(self.size, bool)
        if not is_integer or not 1 <= self.size <= MOST_ITEMS:
            raise BadOption("size", self.size, f"must be a whole number from 1 to {MOST_ITEMS:,}")
        if not 0 <= self.wait <= LONGEST_WAIT:
            raise BadOption("wait", self.wait, f"must be 0 to {LONGEST_WAIT:g} seconds")


@dataclass(frozen=True, slots=True)
class BatchItem(Generic[T]):
    """One item of a batch, with its job.

    A batch task that needs to know the jobs takes `list[BatchItem[T]]` instead of `list[T]`. `value` is the
    job's argument. `token` rises with each attempt of the job, as `Context.token` does.
    """

    value: T
    job: Job
    token: int

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.job.attempt

    @property
    def headers(self) -> Mapping[str, str]:
        return self.job.headers


@dataclass(frozen=True, slots=True)
class Items:
    """The parameter and the result of a batch task's function, seen from one job.

    `function` has the signature of a call for one job: its one parameter is `item`. `wrapped` means that the
    items are `BatchItem`s.
    """

    function: Callable[..., object]
    wrapped: bool

    def value(self, item: BatchItem[Any]) -> Any:
        return item if self.wrapped else item.value


def items_of(function: Callable[..., object]) -> Items:
    """Read the function of a batch task. Raises `BadOption` if it cannot be one."""
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 1 or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise BadOption("batch_task", name_of(function), "must take one parameter, the list of items")
    hints = resolve_hints(function)
    kind, wrapped = item_of(function, hints.get(parameters[0].name, list))

    def one(item: Any) -> Any: ...

    one.__annotations__ = {"item": kind, "return": result_of(function, hints.get("return", list))}
    one.__qualname__ = name_of(function)
    return Items(one, wrapped)


def item_of(function: Callable[..., object], listed: Any) -> tuple[Any, bool]:
    """The type of one item, from the annotation of the list, and whether the items are `BatchItem`s."""
    if listed is not list and typing.get_origin(listed) is not list:
        raise BadOption("batch_task", name_of(function), "must annotate its parameter as list[...]")
    [kind] = typing.get_args(listed) or (Any,)
    if kind is BatchItem:
        return Any, True
    if typing.get_origin(kind) is BatchItem:
        return typing.get_args(kind)[0], True
    return kind, False


def result_of(function: Callable[..., object], returned: Any) -> Any:
    """The type of one job's result, from the return type of the function, without the exceptions in it."""
    if returned in (None, NoneType):
        return None
    if returned is Any or returned is list:
        return Any
    if typing.get_origin(returned) is not list:
        raise BadOption(
            "batch_task", name_of(function), "must return None, or a list with one element for each item"
        )
    [kind] = typing.get_args(returned)
    united = isinstance(kind, UnionType) or typing.get_origin(kind) is typing.Union
    kinds = [one for one in (typing.get_args(kind) if united else (kind,)) if not is_exception(one)]
    return typing.Union[tuple(kinds)] if kinds else None  # noqa: UP007 -- built at run time


def is_exception(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def name_of(function: object) -> str:
    return str(getattr(function, "__qualname__", repr(function)))
