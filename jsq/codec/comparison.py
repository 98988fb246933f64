"""Compares a value with the one that came back from its JSON, and names the first part that differs.

`==` does not answer this question. It refuses equal moments in the hour that a clock change repeats (PEP
495), objects without an `__eq__`, and the lock of a model. It accepts a `time` that lost its zone, a `deque`
that lost its limit, and a number that was the member of an enumeration. So the parts are compared with their
types.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Collection
from datetime import datetime, time
from typing import Any

from jsq.errors import shorten

_scalars = frozenset({int, str, bool, float, type(None)})


def same_value(sent: object, back: object) -> bool:
    """Whether a value came back unchanged; a tuple may come back as a list, and NaN equals NaN."""
    if sent is back:
        return True
    kind = type(sent)
    if kind is not type(back):
        if kind is not tuple or type(back) is not list:
            return False
    elif kind in _scalars:
        return sent == back or (sent != sent and back != back)
    if isinstance(sent, list | tuple) and isinstance(back, list | tuple):
        return len(sent) == len(back) and all(map(same_value, sent, back))
    if isinstance(sent, dict) and isinstance(back, dict):
        same_factory = getattr(sent, "default_factory", None) is getattr(back, "default_factory", None)
        return same_factory and len(sent) == len(back) and all(map(same_value, sent.items(), back.items()))
    return same_object(sent, back)


def same_object(sent: Any, back: Any) -> bool:
    """Whether two values of one type, which is not a basic type of JSON, are the same."""
    kind: Any = type(sent)
    if issubclass(kind, datetime | time):
        return same_time(sent, back)
    if issubclass(kind, set | frozenset):
        return same_set(sent, back)
    names = field_names(kind)
    if names is None:
        return same_parts(sent, back)
    for name in names:
        one, other = getattr(sent, name, None), getattr(back, name, None)
        if one is not other and not same_value(one, other):
            return False
    return same_value(other_parts(sent), other_parts(back))


def same_parts(sent: Any, back: Any) -> bool:
    """Whether two objects of one type have the same parts; if they have no parts, whether they are equal."""
    parts, others = parts_of(sent), parts_of(back)
    if parts is None or others is None:
        return bool(sent == back or (sent != sent and back != back))
    return parts.keys() == others.keys() and all(same_value(parts[place], others[place]) for place in parts)


def same_time(sent: Any, back: Any) -> bool:
    """Whether two times have the same clock time and the same offset. The name of the zone may differ."""
    if sent.tzinfo is None or back.tzinfo is None:
        return bool(sent.tzinfo is back.tzinfo and sent == back and sent.fold == back.fold)
    if sent.utcoffset() != back.utcoffset():
        return False
    return bool(sent == back or sent.replace(tzinfo=None) == back.replace(tzinfo=None))


def same_set(sent: Collection[object], back: Collection[object]) -> bool:
    """Whether each element of a set has its like in the other one."""
    if sent == back:
        equal = {element: element for element in back}
        return all(same_value(element, equal[element]) for element in sent)
    left = list(back)
    for element in sent:
        found = next((index for index, other in enumerate(left) if same_value(element, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def first_difference(sent: Any, back: Any, path: str = "") -> str:
    """The path and the type of the first part that differs, for the message."""
    parts, others = parts_of(sent), parts_of(back)
    if parts is not None and others is not None and parts.keys() == others.keys():
        for place, part in parts.items():
            if not same_value(part, others[place]):
                return first_difference(part, others[place], f"{path}{place}")
    return f"{shorten(path.removeprefix('.')) or 'the value'} ({type(sent).__name__})"


def parts_of(value: Any) -> dict[str, Any] | None:
    """The parts of a value by their places in it, such as `.name` and `[0]`; None if it has no parts."""
    if isinstance(value, dict):
        return {f".{key}": part for key, part in value.items()}
    if isinstance(value, list | tuple | deque):
        limit = {".maxlen": value.maxlen} if isinstance(value, deque) else {}
        return {f"[{index}]": part for index, part in enumerate(value)} | limit
    if isinstance(value, type):
        return None
    kind: Any = type(value)
    names = field_names(kind)
    if names is not None:
        own = {name: getattr(value, name, None) for name in names}
        return {f".{name}": part for name, part in (own | (other_parts(value) or {})).items()}
    state = None if has_equality(value) else attributes_of(value)
    return None if state is None else {f".{name}": part for name, part in state.items()}


@functools.lru_cache(maxsize=1_000)
def field_names(kind: type) -> tuple[str, ...] | None:
    """The names of the fields of a pydantic model or a dataclass; None for other types.

    The cached properties of a model are no fields.
    """
    if hasattr(kind, "__pydantic_private__"):
        return tuple(getattr(kind, "__pydantic_fields__", ()))
    return tuple(one.name for one in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def other_parts(value: Any) -> dict[str, Any] | None:
    """The extra fields and the private attributes of a pydantic model; None if it has none.

    A private attribute without a comparable state, such as a lock, is no part of the value.
    """
    extra = getattr(value, "__pydantic_extra__", None)
    private = getattr(value, "__pydantic_private__", None)
    if not extra and not private:
        return None
    kept = {name: part for name, part in (private or {}).items() if not is_opaque(part)}
    return {**(extra or {}), **kept} or None


def is_opaque(value: object) -> bool:
    """Whether an object can be compared neither with `==` nor by its state."""
    return not isinstance(value, type) and not has_equality(value) and attributes_of(value) is None


def has_equality(value: object) -> bool:
    """Whether the type of a value defines when two values are equal."""
    return getattr(type(value), "__eq__", None) is not object.__eq__


def attributes_of(value: object) -> dict[str, Any] | None:
    """The attributes of an object, in its dictionary and its slots; None if it has none."""
    state = value.__getstate__()
    if isinstance(state, tuple):
        state = {**(state[0] or {}), **(state[1] or {})}
    return state if isinstance(state, dict) else None
