"""The types by which pydantic checks arguments and results, from the annotations of a function."""

import inspect
import types
import typing
from collections import abc
from typing import Annotated, Any, NotRequired

import typing_extensions
from typing_extensions import TypedDict

_unpack = (typing.Unpack, typing_extensions.Unpack)
_qualifiers = (typing.Required, typing.NotRequired, typing_extensions.ReadOnly)
_arrive_as_lists = (abc.Iterable, abc.Collection)
_unstorable = frozenset(
    {
        *(abc.Callable, abc.Iterator, abc.Generator, type),
        *(abc.AsyncIterable, abc.AsyncIterator, abc.AsyncGenerator, abc.Awaitable, abc.Coroutine),
    }
)
"""Types of which no value comes back from JSON."""
_containers: Any = (list, tuple, set, frozenset, dict, abc.Sequence, abc.Mapping)
_optional: Any = NotRequired  # the types in it are made at run time


def field_type(shape: inspect.Signature, key: str, kind: Any) -> Any:
    """The type of one argument: `*key` and `**key` hold those of a variable parameter."""
    if key.startswith("**"):
        return keywords_type(kind)
    kind = listed_type(kind)
    if key.startswith("*"):
        return _optional[list[kind]]
    return kind if shape.parameters[key].default is inspect.Parameter.empty else _optional[kind]


def result_type(kind: Any) -> Any:
    """The type of a result. A function that never returns has the result None."""
    return types.NoneType if kind in (typing.NoReturn, typing.Never) else listed_type(kind)


def keywords_type(kind: Any) -> Any:
    """The type of `**options`, which a TypedDict may describe: `**options: Unpack[Options]`."""
    if typing.get_origin(kind) not in _unpack:
        return _optional[types.GenericAlias(dict, (str, listed_type(kind)))]
    [described] = typing.get_args(kind)
    fields: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(described, include_extras=True).items():
        while typing.get_origin(hint) in _qualifiers:
            [hint] = typing.get_args(hint)
        kind = listed_type(hint)
        fields[name] = kind if name in described.__required_keys__ else _optional[kind]
    # Before Python 3.12 pydantic takes only the TypedDict of typing_extensions.
    shape: Any = TypedDict(described.__name__, fields)  # type: ignore[misc]  # run time
    setattr(shape, "__pydantic_config__", {"extra": "forbid"})  # noqa: B010
    return shape if described.__required_keys__ else _optional[shape]


def listed_type(kind: Any) -> Any:
    """A type with `list` in place of `Iterable` and `Collection`, whose values arrive as lists."""
    origin: Any = typing.get_origin(kind)
    inner = typing.get_args(kind)
    if kind in _arrive_as_lists or origin in _arrive_as_lists:
        return types.GenericAlias(list, listed_type(inner[0]) if inner else Any)
    if origin is Annotated:
        return Annotated[(listed_type(inner[0]), *inner[1:])]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(listed_type, inner))]  # noqa: UP007 -- built at run time
    if origin in _containers and inner:
        return origin[tuple(map(listed_type, inner))]
    return kind


def unstorable_part(kind: Any) -> type | None:
    """The type in an annotation, or in its containers, of which no value can be sent; None if there is none.

    A member of a union is not examined, because the value may be of another one.
    """
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and (origin in _unstorable or is_secret(origin)):
        return origin
    if isinstance(origin, type) and origin in _containers:
        return next(filter(None, map(unstorable_part, typing.get_args(kind))), None)
    return None


def is_secret(kind: type) -> bool:
    """Whether a type is one of pydantic's secrets, whose JSON has asterisks in place of the value."""
    return kind.__module__ == "pydantic.types" and kind.__name__ in ("SecretStr", "SecretBytes")
