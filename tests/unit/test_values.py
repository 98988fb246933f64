"""Values that are easily changed by JSON: each comes back as it was, or is refused by name.

`test_signature.py` has the plain types. Here are models whose JSON is not what they are made from, values
that `==` misjudges, and annotations that need a translation.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from enum import IntEnum
from typing import Annotated, Any, Generic, Literal, NoReturn, Required, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    Field,
    Json,
    PrivateAttr,
    SecretStr,
    computed_field,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import from_json
from typing_extensions import Unpack

from jsq.codec.comparison import first_difference, same_value
from jsq.codec.signature import Signature
from jsq.errors import BadArguments, BadOption, BadResult

BERLIN = ZoneInfo("Europe/Berlin")
T = TypeVar("T")


def taking(kind: Any) -> Signature:
    """The signature of a task that has one parameter of this type and returns it."""

    def task(value: Any) -> Any: ...

    task.__annotations__ = {"value": kind, "return": kind}
    return Signature(task)


def argument(kind: Any, value: Any) -> Any:
    """The argument as it arrives at the worker."""
    signature = taking(kind)
    return signature.unpack(signature.pack([value], {}))[0][0]


# -- models --------------------------------------------------------------------------------------------------


class Aliased(BaseModel):
    value_: str = Field(alias="value")


class Camel(BaseModel, alias_generator=to_camel, extra="forbid"):
    user_id: int


class WithDefault(BaseModel):
    note: str = Field(default="", alias="Note")


class Area(BaseModel, extra="forbid"):
    side: int

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own form
    @property
    def area(self) -> int:
        return self.side**2


class Raw(BaseModel):
    body: Json[list[int]]


class Either(BaseModel):
    a: int = Field(validation_alias=AliasChoices("x", "y"), serialization_alias="x")


class WrittenOnly(BaseModel):
    a: int = Field(serialization_alias="A")


class ReadOnly(BaseModel):
    a: int = Field(validation_alias=AliasPath("all", 0))


class Swapped(BaseModel):
    a: int = Field(alias="b")
    b: int = Field(alias="a")


class Cat(BaseModel):
    kind: Literal["cat"] = Field(alias="type")


class Dog(BaseModel):
    kind: Literal["dog"] = Field(alias="type")


class Locked(BaseModel):
    a: int
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


class Page(BaseModel, Generic[T]):
    items: list[T]
    parent: "Page[T] | None" = None


@checked_dataclass
class Sized:
    width: int = Field(alias="w")


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]

MODELS = [
    (Aliased, Aliased(value="v")),
    (Camel, Camel.model_validate({"userId": 1})),
    (WithDefault, WithDefault(Note="n")),
    (Area, Area(side=2)),
    (Raw, Raw.model_validate({"body": "[1, 2]"})),
    (Either, Either.model_validate({"y": 3})),
    (WrittenOnly, WrittenOnly(a=1)),
    (ReadOnly, ReadOnly.model_validate({"all": [1]})),
    (Swapped, Swapped(a=1, b=2)),
    (Pet, Dog(type="dog")),
    (list[Camel], [Camel.model_validate({"userId": 1})]),
    (Page[int], Page[int](items=[1], parent=Page[int](items=[]))),
    (Sized, Sized(w=3)),
]


@pytest.mark.parametrize(("kind", "value"), MODELS, ids=lambda value: ascii(value)[:30])
def test_a_model_comes_back_whatever_its_json_is_called(kind: Any, value: Any) -> None:
    signature = taking(kind)

    assert argument(kind, value) == value
    assert signature.unpack_result(from_json(signature.pack_result(value))["result"]) == value


def test_the_json_of_a_model_has_its_aliases() -> None:
    assert taking(Camel).pack([Camel.model_validate({"userId": 1})], {}) == b'{"value":{"userId":1}}'


def test_a_caller_without_the_code_may_write_the_names_or_the_aliases_of_the_fields() -> None:
    for written in (b'{"value":{"userId":1}}', b'{"value":{"user_id":1}}'):
        assert taking(Camel).unpack(written) == ([Camel.model_validate({"userId": 1})], {})


def test_a_model_with_a_lock_comes_back_with_a_lock_of_its_own() -> None:
    back = argument(Locked, Locked(a=1))

    assert back.a == 1
    assert back._lock.acquire(blocking=False)


# -- moments -------------------------------------------------------------------------------------------------

REPEATED = [datetime(2026, 10, 25, hour, 30, tzinfo=UTC).astimezone(BERLIN) for hour in (0, 1, 2)]
SKIPPED = datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)


@pytest.mark.parametrize("at", [*REPEATED, SKIPPED], ids=str)
def test_a_moment_in_the_hour_of_a_clock_change_comes_back(at: datetime) -> None:
    signature = taking(datetime)
    kept = from_json(signature.pack_result(at))["result"]

    for back in (argument(datetime, at), argument(list[datetime], [at])[0], signature.unpack_result(kept)):
        assert back.astimezone(UTC) == at.astimezone(UTC)
        assert back.isoformat() == at.isoformat()
    assert argument(set[datetime], {at}).pop().astimezone(UTC) == at.astimezone(UTC)


# -- what `==` misjudges -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Crate:
    weight: int
    tags: list[str] = field(default_factory=list)


class Plain:
    def __init__(self, a: int) -> None:
        self.a = a


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: int) -> None:
        self.a = a


class Level(IntEnum):
    LOW = 1


class Holder(BaseModel):
    content: Any = None


class Careless(BaseModel):
    a: int
    secret: str = Field(default="", exclude=True)
    _state: int = 0

    def __eq__(self, other: object) -> bool:
        return True


def test_a_dataclass_without_equality_is_compared_by_its_fields() -> None:
    back = argument(Crate, Crate(3, ["a"]))

    assert (back.weight, back.tags) == (3, ["a"])


CHANGED: list[tuple[Any, Any, str]] = [
    (time, time(1, tzinfo=BERLIN), r"value \(time\)"),
    (datetime, datetime(2026, 10, 25, 2, 30, fold=1), r"value \(datetime\)"),
    (datetime, datetime(1800, 1, 1, tzinfo=BERLIN), r"value \(datetime\)"),
    (deque[int], deque([1], maxlen=3), r"value\.maxlen \(int\)"),
    (defaultdict[str, int], defaultdict(lambda: 5, a=1), r"value \(defaultdict\)"),
    (Holder, Holder(content=Level.LOW), r"value\.content \(Level\)"),
    (Holder, Holder(content=[1, {2}]), r"value\.content\[1\] \(set\)"),
    (Careless, Careless(a=1, secret="s"), r"value\.secret \(str\)"),
    (SecretStr | None, SecretStr("s"), r"value \(SecretStr\)"),
    (set[Any], {Level.LOW}, r"value \(set\)"),
]


@pytest.mark.parametrize(("kind", "value", "place"), CHANGED, ids=lambda value: ascii(value)[:30])
def test_a_value_that_would_be_changed_is_refused_with_its_place(kind: Any, value: Any, place: str) -> None:
    with pytest.raises(BadArguments, match=rf"{place} would not come back .*its annotated type does not"):
        taking(kind).pack([value], {})
    with pytest.raises(BadResult, match=r"would not come back from JSON as it is; the JSON of its annotated"):
        taking(kind).pack_result(value)


def test_a_private_attribute_that_would_be_lost_is_refused() -> None:
    model = Careless(a=1)
    model._state = 7

    with pytest.raises(BadArguments, match=r"value\._state \(int\) would not come back"):
        taking(Careless).pack([model], {})


def test_a_text_for_a_secret_is_refused_as_a_result() -> None:
    with pytest.raises(BadResult, match="result"):
        taking(SecretStr | None).pack_result("s3cret")


@pytest.mark.parametrize("kind", [Plain, Slotted])
def test_objects_without_equality_are_compared_by_their_attributes(kind: Callable[[int], object]) -> None:
    assert same_value(kind(1), kind(1))
    assert not same_value(kind(1), kind(2))
    assert first_difference(kind(1), kind(2)) == "a (int)"


def test_objects_without_attributes_are_the_same_only_if_they_are_one_object() -> None:
    lock = threading.Lock()

    assert same_value(lock, lock)
    assert not same_value(lock, threading.Lock())


def test_sets_of_moments_are_compared_by_their_elements() -> None:
    moments = {REPEATED[1], REPEATED[2]}
    first, second = (datetime.fromisoformat(at.isoformat()) for at in moments)

    assert same_value(moments, {second, first})
    assert not same_value(moments, {first})
    assert not same_value(moments, {first, second + timedelta(1)})


# -- annotations that need a translation ---------------------------------------------------------------------


class Options(TypedDict, total=False):
    cc: list[str]
    to: Required[str]


class Loose(TypedDict, total=False):
    cc: list[str]


def test_keyword_arguments_may_be_described_by_a_typed_dict() -> None:
    def send(subject: str, **options: Unpack[Loose]) -> None: ...

    signature = Signature(send)

    assert signature.unpack(signature.pack(["hi"], {"cc": ["a"]})) == (["hi"], {"cc": ["a"]})
    assert signature.unpack(signature.pack(["hi"], {})) == (["hi"], {})
    with pytest.raises(BadArguments, match=r"\*\*options\.bcc: Extra inputs are not permitted"):
        signature.pack(["hi"], {"bcc": ["a"]})


def test_a_required_keyword_argument_of_a_typed_dict_is_required() -> None:
    def send(**options: Unpack[Options]) -> None: ...

    signature = Signature(send)

    assert signature.unpack(signature.pack([], {"to": "a"})) == ([], {"to": "a"})
    for named in ({}, {"cc": ["a"]}):
        with pytest.raises(BadArguments, match=r"\*\*options.*Field required"):
            signature.pack([], named)


def test_a_function_that_never_returns_has_the_result_none() -> None:
    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    assert Signature(leave).pack([1], {}) == b'{"code":1}'


@pytest.mark.parametrize(
    "kind", [Iterable[int], Collection[int], Iterable, Annotated[Iterable[int], "ids"], Iterable[int] | None]
)
def test_an_iterable_arrives_as_a_list(kind: Any) -> None:
    for value in ([1, 2], (1, 2), {1, 2}, (n for n in (1, 2))):
        assert argument(kind, value) == [1, 2]
    assert taking(kind).pack_result([1, 2]) == b'{"result":[1,2]}'


@pytest.mark.parametrize(
    "kind", [Iterator[int], Callable[[int], int], type[int], SecretStr, dict[str, Iterator[int]]]
)
def test_an_annotation_that_no_argument_can_fit_is_refused_at_the_declaration(kind: Any) -> None:
    def take(value: Any) -> None: ...

    take.__annotations__ = {"value": kind}
    with pytest.raises(BadOption, match=r"argument value of .*take cannot be sent as JSON: no "):
        Signature(take)


def test_a_type_without_json_is_refused_in_words_that_help() -> None:
    with pytest.raises(BadOption, match=r"pydantic has no JSON form of <class 'range'>; use a type that"):
        taking(range)


@pytest.mark.parametrize("value", [1, 1.0, 2.5, "1", "1.0", True, None, [1, 1.0, "1", False]], ids=repr)
def test_a_union_of_the_types_of_json_keeps_the_type_of_each_value(value: Any) -> None:
    one = int | float | str | bool | None
    back = argument(one | list[one], value)

    assert same_value(value, back)
