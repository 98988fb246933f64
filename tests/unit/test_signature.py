"""Arguments and results of tasks: each value survives the round trip unchanged, or is refused by name."""

import contextlib
import enum
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, PlainSerializer, PlainValidator
from typing_extensions import TypedDict

from jsq.codec import revisions
from jsq.codec.signature import Signature, pack_call
from jsq.errors import BadArguments, BadOption, BadResult
from tests.helpers.examples import examples


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int
    y: int


class Town(TypedDict):
    name: str


@dataclass
class Parcel:
    weight: Decimal
    label: bytes = b"\xff"
    stops: list[datetime] = field(default_factory=list)


class Order(BaseModel):
    id: UUID
    parcel: Parcel | None = None
    tags: set[str] = set()


class Opaque:
    pass


Loose = namedtuple("Loose", "a b")
Call = tuple[list[Any], dict[str, Any]]


def taking(kind: Any) -> Signature:
    """The signature of a task that has one parameter of this type and returns it."""

    def task(value: Any) -> Any: ...

    task.__annotations__ = {"value": kind, "return": kind}
    return Signature(task)


def sent(function: Callable[..., object], *args: object, **named: object) -> Call:
    """The arguments as they arrive at the worker."""
    signature = Signature(function)
    return signature.unpack(signature.pack(args, named))


def called(function: Callable[..., Any], *args: object, **named: object) -> Any:
    """The return value of the function for the arguments as they arrive at the worker."""
    arrived, by_name = sent(function, *args, **named)
    return function(*arrived, **by_name)


# -- values --------------------------------------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")

COME_BACK = [
    (int, 2**70),
    (int, -(2**70)),
    (int, 10**4000),
    (float, 1e308),
    (float, math.inf),
    (float, -math.inf),
    (bool, True),
    (str, "Żółw 🐢 \x00 \u202e"),
    (None, None),
    (bytes, b"\x00\xff"),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, ...], (1, 2)),
    (deque[int], deque([1, 2])),
    (datetime, datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)),
    (datetime, datetime(2026, 1, 1, 12)),
    (datetime, datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=-7)))),
    (datetime, datetime(2026, 7, 1, 12, tzinfo=BERLIN)),
    (date, date(2026, 1, 1)),
    (time, time(12, 30)),
    (timedelta, timedelta(days=3, microseconds=1)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=7)),
    (Path, Path("/tmp/x")),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (Word, Word.YES),
    (Literal["a", "b"], "b"),
    (int | None, None),
    (int | str, "5"),
    (dict[int, list[float]], {1: [1.5]}),
    (dict[date, int], {date(2026, 1, 1): 1}),
    (defaultdict[str, int], defaultdict(int, a=1)),
    (OrderedDict[str, int], OrderedDict(a=1)),
    (Town, {"name": "Ulm"}),
    (Point, Point(1, 2)),
    (Parcel, Parcel(Decimal("1.5"), b"\x00\xff", [datetime(2026, 1, 1, tzinfo=UTC)])),
    (Order, Order(id=UUID(int=7), tags={"a"})),
    (list[Order], [Order(id=UUID(int=7), parcel=Parcel(Decimal(1), b"box"))]),
    (Any, {"a": [1, 2.5, None, True, "x", {"b": []}]}),
    (Any, 2**70),
    (Any, math.inf),
]


@pytest.mark.parametrize(("kind", "value"), COME_BACK, ids=lambda value: ascii(value)[:40])
def test_an_argument_of_an_annotated_type_survives_the_round_trip(kind: Any, value: Any) -> None:
    signature = taking(kind)

    (back,), named = signature.unpack(signature.pack([value], {}))

    assert back == value
    assert type(back) is type(value)
    assert named == {}


@pytest.mark.parametrize(("kind", "value"), COME_BACK, ids=lambda value: ascii(value)[:40])
def test_a_result_of_an_annotated_type_survives_the_round_trip(kind: Any, value: Any) -> None:
    signature = taking(kind)
    packed = signature.pack_result(value)
    kept = as_kept(packed)

    back = signature.unpack_result(kept)

    assert back == value
    assert type(back) is type(value)


def as_kept(packed: bytes) -> Any:
    """A packed result in the form of the record of a job."""
    return revisions.decode(
        revisions.encode_succeeded(b'{"state":"running","task":"t"}', 1, b"", packed)
    ).result


@pytest.mark.parametrize("kind", [float, Any])
def test_nan_survives_the_round_trip(kind: Any) -> None:
    signature = taking(kind)

    (argument,), _ = signature.unpack(signature.pack([math.nan], {}))
    result = signature.unpack_result(as_kept(signature.pack_result(math.nan)))

    assert math.isnan(argument)
    assert math.isnan(result)


def test_a_tuple_without_annotation_arrives_as_a_list() -> None:
    signature = taking(Any)

    assert signature.unpack(signature.pack([(1, (2, 3))], {})) == ([[1, [2, 3]]], {})
    assert as_kept(signature.pack_result((1, (2, 3)))) == [1, [2, 3]]


UNSAID = [
    {1, 2},
    frozenset({1}),
    b"abc",
    bytearray(b"abc"),
    datetime(2026, 1, 1, tzinfo=UTC),
    date(2026, 1, 1),
    timedelta(1),
    Decimal("1.1"),
    UUID(int=7),
    Path("/tmp"),
    1j,
    Colour.RED,
    Level.LOW,
    Word.YES,
    Point(1, 2),
    Loose(1, 2),
    Parcel(Decimal(1)),
    Order(id=UUID(int=7)),
    Opaque(),
    Opaque,
    len,
    (n for n in range(3)),
    range(3),
    deque([1]),
    defaultdict(int, a=1),
    OrderedDict(a=1),
    Counter("aab"),
    {1: "a"},
    {None: "a"},
    {Word.YES: 1},
    {("a", "b"): 1},
    [{"deep": [{1, 2}]}],
]


@pytest.mark.parametrize("value", UNSAID, ids=lambda value: type(value).__name__)
def test_a_value_that_would_change_is_refused_without_an_annotation(value: Any) -> None:
    signature = taking(Any)

    with pytest.raises(BadArguments):
        signature.pack([value], {})
    with pytest.raises(BadResult):
        signature.pack_result(value)
    with pytest.raises(BadArguments):
        pack_call([value], {})
    with pytest.raises(BadArguments):
        pack_call([], {"value": value})


def test_the_refusal_names_task_position_type_and_fix() -> None:
    def report(when: Any, rows: Any = None) -> None: ...

    with pytest.raises(BadArguments, match=r"report: when \(datetime\) would not .*annotate the parameter"):
        Signature(report).pack([datetime(2026, 1, 1)], {})
    with pytest.raises(BadArguments, match=r"report: rows\[1\]\.town \(set\) would not"):
        Signature(report).pack([1], {"rows": [{}, {"town": {1}}]})
    with pytest.raises(BadResult, match=r"guess returned set, which .*annotate the function"):
        Signature(guess).pack_result({1})


def guess():  # type: ignore[no-untyped-def]  # that is what is tested
    ...


def test_a_call_without_the_tasks_code_names_the_argument() -> None:
    with pytest.raises(BadArguments, match=r"argument 2 \(set\) would not come back"):
        pack_call([1, {1}], {})
    with pytest.raises(BadArguments, match=r"when \(datetime\) would not come back"):
        pack_call([], {"when": datetime(2026, 1, 1)})


@pytest.mark.parametrize("value", ["\ud800", ["\ud800"], {"\ud800": 1}], ids=ascii)
@pytest.mark.parametrize("kind", [str, Any])
def test_a_lone_surrogate_is_refused(kind: Any, value: Any) -> None:
    signature = taking(kind)

    calls: list[Callable[[], bytes]] = [
        lambda: signature.pack([value], {}),
        lambda: pack_call([value], {}),
        lambda: pack_call([], {"x": value}),
    ]
    for refused in calls:
        with pytest.raises(BadArguments) as caught:
            refused()
        assert str(caught.value).encode()
    with pytest.raises(BadResult):
        signature.pack_result(value)


def nested(depth: int, *, by: str = "list") -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if by == "list" else {"a": value}
    return value


@pytest.mark.parametrize("by", ["list", "dict"])
@pytest.mark.parametrize("kind", [Any, list[Any], dict[str, Any]])
def test_values_nested_too_deep_are_refused(kind: Any, by: str) -> None:
    deep = nested(100_000, by=by)

    with pytest.raises(BadArguments):
        taking(kind).pack([deep], {})
    with pytest.raises(BadResult):
        taking(kind).pack_result(deep)
    with pytest.raises(BadArguments):
        pack_call([deep], {})


@pytest.mark.parametrize("depth", [150, 190, 195, *range(196, 204), 220, 250, 260])
def test_nested_values_survive_the_round_trip_or_are_refused_at_the_submit(depth: int) -> None:
    signature = taking(Any)
    deep = nested(depth)

    for packed in (attempted(lambda: signature.pack([deep], {})), attempted(lambda: pack_call([deep], {}))):
        assert packed is None or signature.unpack(packed) == ([deep], {})
    result = attempted(lambda: signature.pack_result(deep))
    assert result is None or signature.unpack_result(as_kept(result)) == deep


def attempted(pack: Callable[[], bytes]) -> bytes | None:
    try:
        return pack()
    except (BadArguments, BadResult):
        return None


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(BadArguments):
        taking(Any).pack([loop], {})
    with pytest.raises(BadArguments):
        pack_call([loop], {})


@pytest.mark.parametrize("kind", [int, Any])
def test_a_number_too_long_to_be_decoded_is_refused(kind: Any) -> None:
    with pytest.raises(BadArguments):
        taking(kind).pack([10**5000], {})
    with pytest.raises(BadResult):
        taking(kind).pack_result(10**5000)
    with pytest.raises(BadArguments):
        pack_call([10**5000], {})


def test_a_value_whose_comparison_raises_is_refused() -> None:
    class Contrary:
        def __eq__(self, other: object) -> bool:
            raise TypeError("cannot compare")

    kind = Annotated[Contrary, PlainValidator(lambda _: Contrary()), PlainSerializer(lambda _: 1)]
    with pytest.raises(BadArguments, match="cannot compare"):
        taking(kind).pack([Contrary()], {})


def test_error_messages_stay_short_for_keys_of_any_length() -> None:
    key = "k" * 1_000_000

    for refused in (
        lambda: taking(Any).pack([{key: {1}}], {}),
        lambda: taking(dict[str, int]).pack([{key: "x"}], {}),
        lambda: taking(int).unpack(b'{"value": 1, "%s": 2}' % key.encode()),
        lambda: taking(int).pack([], {key: 1}),
        lambda: pack_call([], {key: {1}}),
    ):
        with pytest.raises(BadArguments) as caught:
            refused()
        assert len(str(caught.value)) < 1_000


def test_a_refusal_does_not_show_the_value() -> None:
    with pytest.raises(BadArguments) as caught:
        taking(int).pack(["s3cret"], {})

    assert "s3cret" not in str(caught.value)
    assert "value" in str(caught.value)


# -- coercion by pydantic ------------------------------------------------------------------------------------


def test_values_are_coerced_before_they_are_sent() -> None:
    assert taking(int).pack(["5"], {}) == b'{"value":5}'
    assert taking(float).pack([5], {}) == b'{"value":5.0}'


@pytest.mark.parametrize(
    ("kind", "value"),
    [(int, "five"), (int, 1.5), (int, None), (str, 5), (Colour, "blue"), (Order, {"id": 1})],
)
def test_a_value_of_the_wrong_type_is_refused_at_the_submit(kind: Any, value: Any) -> None:
    with pytest.raises(BadArguments, match="value"):
        taking(kind).pack([value], {})


def test_a_result_that_does_not_fit_its_annotation_is_refused() -> None:
    with pytest.raises(
        BadResult, match=r"the result of .* cannot be stored: result: Input should be a valid integer"
    ):
        taking(int).pack_result("five")


@pytest.mark.parametrize(
    "kind",
    [Callable[[], int], Iterator[int], type[int], list[Callable[..., int]], AsyncIterator[int]],
)
def test_a_result_annotation_of_which_no_value_can_be_stored_is_refused(kind: Any) -> None:
    def give() -> Any: ...

    give.__annotations__ = {"return": kind}
    with pytest.raises(BadOption, match=r"the result of .*give cannot be sent as JSON: no .* comes back"):
        Signature(give)


def test_a_union_with_a_type_that_can_be_stored_is_accepted() -> None:
    assert taking(int | Callable[[], int]).pack_result(1) == b'{"result":1}'


# -- shapes of functions -------------------------------------------------------------------------------------


def plain(a: int, b: int = 2) -> Any:
    return a, b


def only_positional(a: int, b: int = 2, /, c: int = 3) -> Any:
    return a, b, c


def only_named(*, a: int, b: int = 2) -> Any:
    return a, b


def many(first: int, *rest: int, last: int = 0, **more: str) -> Any:
    return first, rest, last, more


def unannotated(a, *b, c=3, **d):  # type: ignore[no-untyped-def]  # that is what is tested
    return a, b, c, d


def nothing() -> Any:
    return ()


CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (plain, (1,), {}),
    (plain, (1, 5), {}),
    (plain, (1,), {"b": 5}),
    (plain, (), {"b": 5, "a": 1}),
    (only_positional, (1,), {}),
    (only_positional, (1, 5), {}),
    (only_positional, (1, 5), {"c": 6}),
    (only_positional, (1,), {"c": 6}),
    (only_named, (), {"a": 1}),
    (only_named, (), {"b": 5, "a": 1}),
    (many, (1,), {}),
    (many, (1, 2, 3), {"last": 4, "x": "y"}),
    (many, (1,), {"rest": "z", "first_": "w"}),
    (unannotated, (1, 2, "3"), {"c": None, "e": [1]}),
    (unannotated, (), {"a": 1}),
    (nothing, (), {}),
]


@pytest.mark.parametrize(
    ("function", "args", "named"), CALLS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_call_arrives_as_it_was_made(function: Callable[..., Any], args: Any, named: Any) -> None:
    assert called(function, *args, **named) == function(*args, **named)


@pytest.mark.parametrize(
    ("function", "args", "named"), CALLS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_call_made_without_the_task_code_arrives_the_same(
    function: Callable[..., Any], args: Any, named: Any
) -> None:
    arrived, by_name = Signature(function).unpack(pack_call(args, named))

    assert function(*arrived, **by_name) == function(*args, **named)


@pytest.mark.parametrize(
    ("function", "args", "named", "message"),
    [
        (plain, (), {}, "missing a required argument: 'a'"),
        (plain, (1, 2, 3), {}, "too many positional arguments"),
        (plain, (1,), {"a": 1}, "multiple values for argument 'a'"),
        (plain, (1,), {"z": 1}, "unexpected keyword argument 'z'"),
        (only_positional, (), {"a": 1}, "positional.only"),
        (only_named, (1,), {}, "too many positional arguments"),
        (many, (1, "x"), {}, r"\*rest\.0: Input should be a valid integer"),
        (many, (1,), {"x": 5}, r"\*\*more\.x: Input should be a valid string"),
        (nothing, (1,), {}, "too many positional arguments"),
    ],
)
def test_an_invalid_call_is_refused_at_the_submit_and_by_the_worker(
    function: Callable[..., Any], args: Any, named: Any, message: str
) -> None:
    signature = Signature(function)

    with pytest.raises(BadArguments, match=rf"{function.__name__}: .*{message}"):
        signature.pack(args, named)
    with pytest.raises(BadArguments):
        signature.unpack(pack_call(args, named))


def test_defaults_are_left_to_the_worker() -> None:
    assert Signature(plain).pack([1], {}) == b'{"a":1}'


def test_a_default_need_not_fit_its_annotation() -> None:
    def task(a: int = None) -> Any:  # type: ignore[assignment]  # noqa: RUF013 -- that is what is tested
        return a

    assert called(task) is None


def test_the_first_parameter_can_be_left_to_the_worker() -> None:
    def task(context: Opaque, a: int) -> None: ...

    signature = Signature(task, skip=1)

    assert signature.unpack(signature.pack([5], {})) == ([5], {})


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"5",
        b'"a"',
        b"{",
        b"[]",
        b"[1]",
        b"[1, 2]",
        b"[[1], 2]",
        b"[[1], {}, 3]",
        b"[[1], [1]]",
        b'[{"a": 1}, {}]',
        b"\x80\x04K\x01.",
        b"\xff",
        b'{"a": 1, "z": 2}',
        b'{"a": "\\ud800"}',
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda payload: ascii(payload)[:30],
)
def test_a_payload_that_is_not_arguments_is_refused_by_the_worker(payload: bytes) -> None:
    with pytest.raises(BadArguments, match=r"^plain: "):
        Signature(plain).unpack(payload)


# -- annotations ---------------------------------------------------------------------------------------------


def test_an_annotation_may_be_written_as_text() -> None:
    def task(when: "datetime") -> "datetime":
        return when

    assert sent(task, datetime(2026, 1, 1)) == ([datetime(2026, 1, 1)], {})


def test_an_unresolvable_annotation_is_refused_at_the_declaration() -> None:
    def task(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 -- that is what is tested

    with pytest.raises(BadOption, match=r"annotations of .*task.* cannot be resolved: name 'Nowhere'"):
        Signature(task)


@pytest.mark.parametrize("kind", [Opaque, Iterator[Opaque], type("Other", (), {})])
def test_an_annotation_without_a_json_form_is_refused_at_the_declaration(kind: Any) -> None:
    with pytest.raises(BadOption, match="cannot be sent as JSON"):
        taking(kind)


def test_a_task_may_annotate_some_parameters_and_not_others() -> None:
    def task(a, b: Decimal, *c: date):  # type: ignore[no-untyped-def]  # that is what is tested
        ...

    assert sent(task, 1, Decimal("1.1"), date(2026, 1, 1)) == ([1, Decimal("1.1"), date(2026, 1, 1)], {})


# -- results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, 0, "", False, 1.5, [], {}, "x" * 100_000], ids=lambda value: repr(value)[:10]
)
def test_a_result_without_annotation_survives_the_round_trip(value: Any) -> None:
    signature = Signature(unannotated)

    assert signature.unpack_result(as_kept(signature.pack_result(value))) == value


def test_a_result_that_no_longer_fits_is_a_bad_result() -> None:
    with pytest.raises(BadResult, match=r"the result of .* does not fit its annotation"):
        taking(int).unpack_result("five")


# -- properties ----------------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
quick = examples(100)
AS_IS = taking(Any)


def equal(one: Any, other: Any) -> bool:
    """Equal in type and value, NaN with NaN."""
    return repr(one) == repr(other)


@quick
@given(value=values)
def test_any_json_value_survives_the_round_trip_as_an_argument(value: Any) -> None:
    (back,), _ = AS_IS.unpack(AS_IS.pack([value], {}))

    assert equal(back, value)


@quick
@given(value=values)
def test_any_json_value_survives_the_round_trip_as_a_result(value: Any) -> None:
    assert equal(AS_IS.unpack_result(as_kept(AS_IS.pack_result(value))), value)


@quick
@given(args=st.lists(values, max_size=3), named=st.dictionaries(st.sampled_from("abc"), values, max_size=3))
def test_any_call_made_without_the_task_code_survives_the_round_trip(
    args: list[Any], named: dict[str, Any]
) -> None:
    def task(*args: Any, **named: Any) -> None: ...

    back, by_name = Signature(task).unpack(pack_call(args, named))

    assert equal(back, args)
    assert equal(dict(sorted(by_name.items())), dict(sorted(named.items())))


@quick
@given(value=st.integers() | st.floats(), kind=st.sampled_from([int, float, Any]))
def test_a_number_arrives_as_the_coerced_value(value: float, kind: Any) -> None:
    signature = taking(kind)
    packed = attempted(lambda: signature.pack([value], {}))
    if packed is None:
        return

    (back,), _ = signature.unpack(packed)

    assert equal(back, kind(value) if kind is not Any else value)


@quick
@given(payload=st.binary(max_size=40))
def test_the_decoder_raises_only_its_own_error_for_any_bytes(payload: bytes) -> None:
    signature = Signature(plain)
    for reader in (signature.unpack, taking(Any).unpack):
        with contextlib.suppress(BadArguments):
            reader(payload)
