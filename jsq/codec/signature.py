"""The parameters and the result of a task, compiled once from its annotations.

A value either comes back from JSON unchanged, or it is refused by name: no value is changed silently. There
are two documented exceptions: without an annotation a tuple comes back as a list, and values that pydantic
coerces (a numeric string for an `int`, a generator for an `Iterable`) are coerced before they are sent.
"""

import asyncio
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic_core import ValidationError, from_json, to_json

from jsq.codec.comparison import first_difference, same_value
from jsq.codec.json_fields import JsonFields, ValueChanged, explain_schema
from jsq.codec.parameter_types import field_type, result_type, unstorable_part
from jsq.errors import BadArguments, BadOption, BadResult, shorten
from jsq.model.options import misplaced_option_hint
from jsq.model.outcome import describe_error

_exact = (int, str, bool, float, type(None))
_surely = 4_000
"""Bytes of JSON up to which no number is too long to be parsed (Python and pydantic take 4,300 digits)."""

MAX_DEPTH = 198
"""Levels of lists and dictionaries in an argument or a result that can certainly be parsed."""

_deep = re.compile("recursion limit exceeded|depth exceeded")

_refusals = (ValueError, TypeError, RecursionError, OverflowError)


class Signature:
    """The parameters and the result of a task's function, without a leading `Context`.

    `omit` are the names of parameters that are no arguments either.
    """

    def __init__(self, function: Callable[..., object], *, skip: int = 0, omit: Collection[str] = ()) -> None:
        self.name = getattr(function, "__qualname__", repr(function))
        signature = inspect.signature(function)
        taken = [one for one in list(signature.parameters.values())[skip:] if one.name not in omit]
        self.shape = signature.replace(parameters=taken)
        hints = resolve_hints(function)
        fields = {field_name(p): hints.get(p.name, Any) for p in self.shape.parameters.values()}
        types = {k: field_type(self.shape, k, self._sendable(f"argument {k}", t)) for k, t in fields.items()}
        self._types = types
        self._partial: dict[frozenset[str], JsonFields] = {}
        self._arguments = self._compile("arguments", types)
        returned = result_type(hints.get("return", Any))
        self._result = self._compile("result", {"result": self._sendable("the result", returned)})
        self._plain = positional_names(self.shape)
        self._names = set(self._plain or ())
        self._exact = all(is_exact(kind) for kind in fields.values())
        self._exact_results = _exact if returned is Any or is_exact(returned) else ()

    def _sendable(self, what: str, kind: Any) -> Any:
        """An annotation. Raises `BadOption` for a type of which no value comes back from JSON."""
        found = unstorable_part(kind)
        if found is not None:
            raise BadOption(
                "annotation",
                self.name,
                f"{what} of {self.name} cannot be sent as JSON: no {found.__name__} comes back from JSON as "
                "it was; use a type that JSON holds",
            )
        return kind

    def pack(self, args: Sequence[object], named: Mapping[str, object]) -> bytes:
        """Check arguments and encode them as JSON. Raises `BadArguments`."""
        try:
            checked = self._arguments.check(self._values(args, named))
            packed = self._arguments.encode(checked)
            surely = self._exact and len(packed) < _surely
            return packed if surely else self._arguments.proven(checked, packed)
        except ValueChanged as changed:
            raise BadArguments(
                f"{self.name}: {changed} would not come back from JSON as it is; {self._advice(str(changed))}"
            ) from None
        except _refusals as error:
            hint = misplaced_option_hint(self._unknown_names(named))
            raise BadArguments(f"{self.name}: {explain_refusal(error)}{hint}") from error

    def pack_known(
        self, args: Sequence[object], named: Mapping[str, object], unknown: Callable[[object], bool]
    ) -> tuple[bytes, dict[int | str, object]]:
        """Check and encode the known arguments of a call, with null in place of each unknown one.

        Returns also the unknown ones, by their places. Raises `BadArguments`.
        """
        try:
            bound = self.shape.bind(*args, **named)
        except TypeError as error:
            hint = misplaced_option_hint(self._unknown_names(named))
            raise BadArguments(f"{self.name}: {explain_refusal(error)}{hint}") from error
        values = {field_name(self.shape.parameters[key]): value for key, value in bound.arguments.items()}
        if any("*" in key and any(map(unknown, held_values(value))) for key, value in values.items()):
            return pack_unknown(args, named, unknown)
        left: dict[int | str, object] = {key: value for key, value in values.items() if unknown(value)}
        packed = self._pack_some({key: value for key, value in values.items() if key not in left})
        return to_json(from_json(packed) | dict.fromkeys(left), inf_nan_mode="constants"), left

    def _pack_some(self, values: Mapping[str, object]) -> bytes:
        """Check and encode some of the arguments. Raises `BadArguments`."""
        names = frozenset(values)
        fields = self._partial.get(names)
        if fields is None:
            fields = self._compile("arguments", {name: self._types[name] for name in values})
            self._partial[names] = fields
        try:
            checked = fields.check(values)
            return fields.proven(checked, fields.encode(checked))
        except ValueChanged as changed:
            raise BadArguments(
                f"{self.name}: {changed} would not come back from JSON as it is; {self._advice(str(changed))}"
            ) from None
        except _refusals as error:
            raise BadArguments(f"{self.name}: {explain_refusal(error)}") from error

    def _advice(self, changed: str) -> str:
        """How to send an argument that would be changed."""
        name = re.split(r"[.\[ ]", changed.lstrip("*"), maxsplit=1)[0]
        parameter = self.shape.parameters.get(name)
        if parameter is None or parameter.annotation in (Any, inspect.Parameter.empty):
            return "annotate the parameter with its type"
        return "the JSON of its annotated type does not hold all of it"

    def _unknown_names(self, named: Mapping[str, object]) -> list[str]:
        """The names of a call that no parameter takes."""
        takes_any = any(one.kind is one.VAR_KEYWORD for one in self.shape.parameters.values())
        return [] if takes_any else [name for name in named if name not in self.shape.parameters]

    def _values(self, args: Sequence[object], named: Mapping[str, object]) -> Mapping[str, object]:
        """Arguments by their names; raises the errors of a call with them."""
        if self._plain is not None:
            if not named and len(args) == len(self._plain):
                return dict(zip(self._plain, args, strict=True))
            if not args and named.keys() == self._names:
                return named
        bound = self.shape.bind(*args, **named)
        return {field_name(self.shape.parameters[key]): value for key, value in bound.arguments.items()}

    def filled(self, packed: bytes) -> bytes:
        """Encoded arguments, with the defaults of missing ones if these can be encoded."""
        values = from_json(packed)
        for name, parameter in self.shape.parameters.items():
            if name not in values and parameter.default is not inspect.Parameter.empty:
                values[name] = parameter.default
        return to_json(values, inf_nan_mode="constants", fallback=repr)

    def unpack(self, packed: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Decode arguments and check them. Raises `BadArguments`."""
        try:
            if packed[:1] == b"[":
                packed = self._name(packed)
            values = self._arguments.decode(packed)
        except _refusals as error:
            raise BadArguments(f"{self.name}: {explain_refusal(error)}") from error
        return self._call(values)

    def pack_result(self, value: object) -> bytes:
        """Check a result and encode it as `{"result": ...}`. Raises `BadResult`."""
        try:
            checked = self._result.check({"result": value})
            packed: bytes = self._result.encode(checked)
            surely = type(value) in self._exact_results and len(packed) < _surely
            return packed if surely else self._result.proven(checked, packed)
        except ValueChanged as changed:
            why = f"{self.name} returned {shorten(type(value).__name__)}, which would not come back from JSON"
            more = "annotate the function with the type it returns"
            if self.shape.return_annotation not in (Any, inspect.Signature.empty):
                more = f"the JSON of its annotated type does not hold all of {changed}"
            raise BadResult(f"{why} as it is; {more}") from None
        except Exception as error:  # the validators and serializers of a user's type may raise anything
            why = explain_refusal(error) if isinstance(error, _refusals) else describe_error(error).error
            raise BadResult(f"the result of {self.name} cannot be stored: {why}") from error

    def unpack_result(self, value: object) -> Any:
        """A result of its annotated type, from the JSON value. Raises `BadResult`."""
        try:
            return self._result.decode(to_json({"result": value}, inf_nan_mode="constants"))["result"]
        except _refusals as error:
            raise BadResult(
                f"the result of {self.name} does not fit its annotation: {explain_refusal(error)}"
            ) from error

    def _compile(self, what: str, fields: Mapping[str, Any]) -> JsonFields:
        """Raises `BadOption` for types of which pydantic cannot check values."""
        from pydantic.errors import PydanticUserError  # late: a client without tasks does not need it

        try:
            return JsonFields(what, fields)
        except (PydanticUserError, NameError, TypeError) as error:
            raise BadOption(
                "annotation",
                self.name,
                f"the {what} of {self.name} cannot be sent as JSON: {explain_schema(error)}",
            ) from error

    def _name(self, packed: bytes) -> bytes:
        """Arguments of a client without the task's code, `[positional, named]`, by their names."""
        args, named = from_json(packed)
        bound = self.shape.bind(*args, **named)
        return to_json(
            {field_name(self.shape.parameters[key]): value for key, value in bound.arguments.items()},
            inf_nan_mode="constants",
        )

    def _call(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        if self._plain is not None and len(values) == len(self._plain):
            return [values[name] for name in self._plain], {}
        args: list[Any] = []
        named: dict[str, Any] = {}
        for parameter in self.shape.parameters.values():
            key = field_name(parameter)
            if key not in values:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(values[key])
            elif parameter.kind is parameter.VAR_KEYWORD:
                named.update(values[key])
            elif parameter.kind is parameter.KEYWORD_ONLY or len(args) < self._before(parameter.name):
                named[parameter.name] = values[key]
            else:
                args.append(values[key])
        return args, named

    def _before(self, name: str) -> int:
        return list(self.shape.parameters).index(name)


def pack_call(args: Sequence[object], named: Mapping[str, object]) -> bytes:
    """Encode arguments for a task without its code: `[positional, named]`. Raises `BadArguments`."""
    try:
        packed = to_json([args, named], inf_nan_mode="constants")
        sent, back = named_arguments(args, named), named_arguments(*from_json(packed))
        if same_value(sent, back):
            return packed
    except _refusals as error:
        raise BadArguments(f"the arguments cannot be sent as JSON: {explain_refusal(error)}") from error
    raise BadArguments(
        f"the arguments cannot be sent as JSON: {first_difference(sent, back)} would not come back as it is"
    )


def pack_unknown(
    args: Sequence[object], named: Mapping[str, object], unknown: Callable[[object], bool]
) -> tuple[bytes, dict[int | str, object]]:
    """Encode the known arguments of a call for a task without its code, with null for each unknown one.

    Returns also the unknown ones, by their places. Raises `BadArguments`.
    """
    left: dict[int | str, object] = {place: one for place, one in enumerate(args) if unknown(one)}
    left |= {name: one for name, one in named.items() if unknown(one)}
    positional = [None if place in left else one for place, one in enumerate(args)]
    return pack_call(positional, {name: None if name in left else one for name, one in named.items()}), left


def held_values(value: object) -> Sequence[object]:
    """The values of a parameter that takes any number of arguments."""
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, tuple) else ()


def pack_value(field: str, value: object, largest: int) -> bytes:
    """Encode a value as JSON of `largest` bytes at most. Raises `BadOption` with the name of the field."""
    kind = f"a value of type {shorten(type(value).__name__)}"
    try:
        packed = to_json(value, inf_nan_mode="constants")
        back = from_json(packed)
    except _refusals as error:
        raise BadOption(
            field, kind, f"must be a value that JSON can hold; {explain_refusal(error)}"
        ) from error
    if not same_value(value, back):
        raise BadOption(
            field,
            kind,
            f"must be unchanged by JSON; {first_difference(value, back)} would not come back from JSON",
        )
    if len(packed) > largest:
        rule = f"must be {largest:,} bytes of JSON at most; store the content elsewhere, and its address here"
        raise BadOption(field, f"{len(packed):,} bytes", rule)
    return packed


def named_arguments(args: Sequence[object], named: Mapping[str, object]) -> dict[str, object]:
    return {f"argument {n}": value for n, value in enumerate(args, 1)} | dict(named)


def underlying_function(function: Any) -> Any:
    """The function that has the annotations: below a `functools.partial`, or the `__call__` of an object."""
    if isinstance(function, functools.partial):
        return underlying_function(function.func)
    is_function = inspect.isroutine(function) or inspect.isclass(function) or hasattr(function, "__wrapped__")
    return function if is_function else function.__call__


def is_coroutine_function(function: Callable[..., object]) -> bool:
    """Whether a call returns a coroutine: `async def`, an object with such a `__call__`, or a marked one."""
    mark = getattr(asyncio.coroutines, "_is_coroutine", None)
    return (
        inspect.iscoroutinefunction(function)
        or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 -- the method itself
        or (mark is not None and getattr(function, "_is_coroutine", None) is mark)
    )


def hides_coroutine_function(function: Callable[..., object]) -> bool:
    """Whether a plain function wraps a coroutine function, and so may return an awaitable."""
    return not is_coroutine_function(function) and is_coroutine_function(inspect.unwrap(function))


def resolve_hints(function: Callable[..., object]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(underlying_function(function), include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        name = getattr(function, "__qualname__", repr(function))
        why = f"the annotations of {name} cannot be resolved: {error}"
        if isinstance(error, NameError):
            why += "; define or import it at the top of the module, where it also exists at run time"
        raise BadOption("annotation", name, why) from error


def field_name(parameter: inspect.Parameter) -> str:
    stars: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    return stars.get(parameter.kind, "") + parameter.name


def positional_names(shape: inspect.Signature) -> tuple[str, ...] | None:
    """The names of the parameters, if each may be given by position and by name; else None."""
    kinds = {parameter.kind for parameter in shape.parameters.values()}
    return tuple(shape.parameters) if kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD} else None


def is_exact(kind: Any) -> bool:
    """Whether values of this type always come back from JSON unchanged."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    return kind in _exact or (origin in (list, typing.Union, types.UnionType) and all(map(is_exact, inner)))


def explain_refusal(error: BaseException) -> str:
    """A refusal in one line, without the values, which may be secret or large."""
    why = error_text(error)
    if isinstance(error, RecursionError) or _deep.search(why):
        return f"nested too deep: more than {MAX_DEPTH} levels"
    return why


def error_text(error: BaseException) -> str:
    """The message of an error, shortened."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = shorten(".".join(str(part) for part in first["loc"]))
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        return f"{place}: {first['msg']}{more}" if place else f"{first['msg']}{more}"
    return shorten(str(error).splitlines()[0] if str(error) else type(error).__name__, 300)
