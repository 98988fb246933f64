"""Batch tasks: functions that get many jobs at once, each job one item of a list."""

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
    """How jobs are gathered: up to `size` of them, or as many as came within `wait` seconds."""

    size: int = 100
    wait: float = 0.5

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if not whole or not 1 <= self.size <= MOST_ITEMS:
            raise BadOption("size", self.size, f"it takes a whole number from 1 to {MOST_ITEMS:,}")
        if not 0 <= self.wait <= LONGEST_WAIT:
            raise BadOption("wait", self.wait, f"it takes seconds from 0 to {LONGEST_WAIT:g}")


@dataclass(frozen=True, slots=True)
class BatchItem(Generic[T]):
    """One item of a batch, with the job that it is.

    A batch task which wants to know the jobs takes `list[BatchItem[T]]` in place of `list[T]`. `value` is the
    job's argument; `token` rises with each attempt of the job, as `Context.token` does.
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
    """What a batch task's function takes and gives, as that of one job.

    `function` stands for the call of one job: its one parameter is `item`. `wrapped` tells that the items
    are to be `BatchItem`s.
    """

    function: Callable[..., object]
    wrapped: bool

    def value(self, item: BatchItem[Any]) -> Any:
        return item if self.wrapped else item.value


def items_of(function: Callable[..., object]) -> Items:
    """Read a batch task's function. Raises `BadOption` for one that is none."""
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 1 or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise BadOption("batch_task", name_of(function), "it takes one parameter, the list of items")
    hints = resolve_hints(function)
    kind, wrapped = item_of(function, hints.get(parameters[0].name, list))

    def one(item: Any) -> Any: ...

    one.__annotations__ = {"item": kind, "return": result_of(function, hints.get("return", list))}
    one.__qualname__ = name_of(function)
    return Items(one, wrapped)


def item_of(function: Callable[..., object], listed: Any) -> tuple[Any, bool]:
    """What one item is, by the annotation of the list, and whether it is to be wrapped."""
    if listed is not list and typing.get_origin(listed) is not list:
        raise BadOption("batch_task", name_of(function), "its parameter is a list: annotate it as list[...]")
    [kind] = typing.get_args(listed) or (Any,)
    if kind is BatchItem:
        return Any, True
    if typing.get_origin(kind) is BatchItem:
        return typing.get_args(kind)[0], True
    return kind, False


def result_of(function: Callable[..., object], returned: Any) -> Any:
    """What one job's result is, by what the function returns: the exceptions in a list are no results."""
    if returned in (None, NoneType):
        return None
    if returned is Any or returned is list:
        return Any
    if typing.get_origin(returned) is not list:
        raise BadOption(
            "batch_task", name_of(function), "it returns None, or a list with a place for each item"
        )
    [kind] = typing.get_args(returned)
    united = isinstance(kind, UnionType) or typing.get_origin(kind) is typing.Union
    kinds = [one for one in (typing.get_args(kind) if united else (kind,)) if not is_exception(one)]
    return typing.Union[tuple(kinds)] if kinds else None  # noqa: UP007 -- made at run time


def is_exception(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def name_of(function: Callable[..., object]) -> str:
    return str(getattr(function, "__qualname__", repr(function)))
