"""Unique keys: their hashes, the state of a claim, and the action of a submit."""

import itertools
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq import App, BadArguments, BadOption
from jsq.codec.signature import Signature
from jsq.declaration import read_declaration
from jsq.model.options import parse_options
from jsq.model.unique import (
    JobLife,
    Unique,
    UniqueAction,
    UniqueClaim,
    UniqueVerdict,
    arguments_key,
    decide_submit,
    judge_claim,
    unique_hash,
    unique_request,
)

CLAIM = UniqueClaim("holder", "default")


# -- the state of a claim ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "free"),
    [
        ("finish", {JobLife.ENDED}),
        ("start", {JobLife.ENDED, JobLife.STARTED}),
        ("due", {JobLife.ENDED, JobLife.STARTED, JobLife.WAITING}),
    ],
)
def test_a_claim_is_free_when_its_job_has_reached_the_state(until: str, free: set[JobLife]) -> None:
    claim = UniqueClaim("holder", "default", until)

    assert {life for life in JobLife if judge_claim(claim, life) is UniqueVerdict.FREE} == free
    assert judge_claim(claim, JobLife.MISSING) is UniqueVerdict.UNKNOWN


@pytest.mark.parametrize("life", [life for life in JobLife if life is not JobLife.MISSING])
def test_within_its_window_a_claim_is_held_in_every_state_of_its_job(life: JobLife) -> None:
    assert judge_claim(UniqueClaim("holder", "default", window=60), life) is UniqueVerdict.HELD


def test_within_its_window_the_claim_of_an_unstored_job_is_undecided() -> None:
    assert judge_claim(UniqueClaim("holder", "default", window=60), JobLife.MISSING) is UniqueVerdict.UNKNOWN


def test_within_its_window_a_claim_outlives_the_record_of_its_job() -> None:
    assert (
        judge_claim(UniqueClaim("holder", "default", window=60, stored=True), JobLife.MISSING)
        is UniqueVerdict.HELD
    )


def test_the_claim_of_an_ended_job_passes_to_its_successor() -> None:
    assert UniqueClaim("first", "q", successor="second", revision=7).passed_to_successor() == UniqueClaim(
        "second", "q", revision=7
    )


# -- the action of a submit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_duplicate", "actions"),
    [
        ("return", {}),
        ("raise", dict.fromkeys((JobLife.DELAYED, JobLife.WAITING, JobLife.STARTED), UniqueAction.RAISE)),
        ("replace", {JobLife.DELAYED: UniqueAction.REPLACE, JobLife.WAITING: UniqueAction.REPLACE}),
        (
            "keep_last",
            {
                JobLife.DELAYED: UniqueAction.REPLACE,
                JobLife.WAITING: UniqueAction.REPLACE,
                JobLife.STARTED: UniqueAction.QUEUE_SUCCESSOR,
            },
        ),
        ("debounce", {JobLife.DELAYED: UniqueAction.RESCHEDULE}),
    ],
)
def test_on_duplicate_decides_what_a_submit_does_with_a_held_key(
    on_duplicate: Any, actions: dict[JobLife, UniqueAction]
) -> None:
    unique = Unique("key", on_duplicate=on_duplicate)

    for life in (JobLife.DELAYED, JobLife.WAITING, JobLife.STARTED):
        assert decide_submit(unique, CLAIM, life, id="mine") is actions.get(
            life, UniqueAction.RETURN_EXISTING
        ), life


@pytest.mark.parametrize("on_duplicate", ["return", "raise", "replace", "keep_last", "debounce"])
def test_every_submit_takes_a_free_key_and_stores_a_missing_job(on_duplicate: Any) -> None:
    unique = Unique("key", on_duplicate=on_duplicate)

    assert decide_submit(unique, CLAIM, JobLife.ENDED, id="mine") is UniqueAction.CLAIM
    assert decide_submit(unique, CLAIM, JobLife.MISSING, id="mine") is UniqueAction.STORE


def test_a_submit_continues_with_its_own_claim() -> None:
    for on_duplicate, life in itertools.product(("return", "raise", "replace", "keep_last"), JobLife):
        unique = Unique("key", on_duplicate=on_duplicate)  # type: ignore[arg-type]  # a product of literals
        assert decide_submit(unique, CLAIM, life, id="holder") is UniqueAction.STORE


def test_keep_last_does_not_wait_for_a_job_whose_window_holds_the_key() -> None:
    windowed = UniqueClaim("holder", "default", window=60)

    assert (
        decide_submit(Unique("key", on_duplicate="keep_last"), windowed, JobLife.ENDED, id="mine")
        is UniqueAction.RETURN_EXISTING
    )


def test_the_unique_options_are_read_as_one_request() -> None:
    assert unique_request("k", None, None, None, None, None) == Unique("k")
    assert unique_request("k", "start", None, "raise", None, None) == Unique(
        "k", "start", on_duplicate="raise"
    )
    assert unique_request("k", None, 60, None, None, None) == Unique("k", window=60)
    assert unique_request("k", None, None, None, None, 60) == Unique("k", window=60)
    assert unique_request("k", None, None, None, 5, None) == Unique("k", "due", on_duplicate="debounce")


# -- keys ----------------------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_only_equal_keys_have_the_same_hash(one: str, other: str) -> None:
    assert (unique_hash("task", one) == unique_hash("task", other)) is (one == other)
    assert unique_hash("task", one) != unique_hash("other", one)


def test_a_key_of_any_size_and_bytes_is_a_short_hash() -> None:
    keys: list[str | bytes] = ["x" * 1_000_000, b"\0\xff" * 500_000, "\ud800", "a.b >*", b""]
    hashed = {unique_hash("task", key) for key in keys}

    assert len(hashed) == len(keys)
    assert all(len(one) == 40 and one.isalnum() for one in hashed)
    assert unique_hash("task", "é") == unique_hash("task", "é".encode())


def test_the_hash_separates_task_and_key() -> None:
    assert unique_hash("mail", "s.send") != unique_hash("mails", ".send")


def test_equal_calls_have_the_same_key_in_every_notation() -> None:
    def pay(to: str, cent: int = 100, *, note: dict[str, int] | None = None) -> None: ...

    signature = Signature(pay)
    written = [
        signature.pack(("ann", 100), {"note": {"a": 1, "b": 2}}),
        signature.pack((), {"note": {"b": 2, "a": 1}, "to": "ann"}),
    ]
    keys = {arguments_key(signature.filled(packed)) for packed in written}
    by_name = b'[[], {"cent": 100, "note": {"b": 2, "a": 1}, "to": "ann"}]'

    assert len(keys | {arguments_key(by_name)}) == 1
    assert arguments_key(signature.filled(signature.pack(("ann", 101), {}))) not in keys


def test_a_unique_key_can_be_made_of_named_arguments() -> None:
    task = App().task(name="pay", unique=["to", "cent"])(lambda to, cent=5, note="": None)
    options = parse_options(**task.declaration.submit_options)

    def key(*args: Any, **named: Any) -> Any:
        return task.target.with_key(options, task.signature.pack(args, named)).unique

    assert key("ann", note="x") == key("ann", 5, note="y") == key(to="ann", cent=5)
    assert key("ann") != key("ann", 6)


def test_a_text_as_the_key_must_not_be_the_name_of_an_argument() -> None:
    app = App()

    app.task(name="sweep", unique="nightly")(lambda to: None)
    with pytest.raises(BadOption, match=r"unique must be \['to'\] for a key of that argument: .* got 'to'"):
        app.task(name="pay", unique="to")(lambda to: None)


@pytest.mark.parametrize("made", ["k", b"k", 5, ("a", 1), {"a": 1}])
def test_a_unique_key_can_be_made_by_a_function_of_the_arguments(made: Any) -> None:
    task = App().task(name="pay", unique=lambda to, cent: made if to == "ann" else to)(lambda to, cent: None)
    options = parse_options(**task.declaration.submit_options)

    def key(*args: Any) -> Any:
        return task.target.with_key(options, task.signature.pack(args, {})).unique

    assert key("ann", 1) == key("ann", 2) != key("bob", 1)


@pytest.mark.parametrize("made", [lambda to: None, lambda to: "", lambda to: 1 / 0, lambda to: object()])
def test_a_key_function_without_a_valid_result_is_refused_at_the_submit(made: Any) -> None:
    task = App().task(name="pay", unique=made)(lambda to: None)

    with pytest.raises(BadArguments, match="pay: unique= made no key"):
        task.target.with_key(parse_options(**task.declaration.submit_options), b'{"to": "ann"}')


# -- invalid options -----------------------------------------------------------------------------------------

OTHERS: dict[str, Any] = {
    "unique_until": "start",
    "unique_for": 60,
    "on_duplicate": "replace",
    "debounce": 5,
    "throttle": 60,
}


@pytest.mark.parametrize("key", ["", b"", 5, 1.5, ["a"], {"a": 1}, object()])
def test_an_invalid_key_is_refused(key: Any) -> None:
    with pytest.raises(BadOption, match="unique must "):
        parse_options(unique=key)


@pytest.mark.parametrize("name", OTHERS)
def test_an_option_of_unique_needs_unique(name: str) -> None:
    with pytest.raises(BadOption, match=f"^{name} must be used together with unique="):
        parse_options(**{name: OTHERS[name]})


@pytest.mark.parametrize(
    "pair",
    [
        *itertools.combinations(("debounce", "throttle", "unique_until"), 2),
        ("debounce", "unique_for"),
        ("debounce", "on_duplicate"),
        ("throttle", "unique_for"),
        ("throttle", "on_duplicate"),
        ("unique_for", "unique_until"),
    ],
)
def test_options_that_mean_the_same_cannot_be_combined(pair: tuple[str, str]) -> None:
    with pytest.raises(BadOption):
        parse_options(unique="k", **{name: OTHERS[name] for name in pair})


@pytest.mark.parametrize(
    "options",
    [
        {"unique_until": "end"},
        {"on_duplicate": "skip"},
        {"unique_for": 0.5},
        {"unique_for": float("nan")},
        {"throttle": -1},
        {"debounce": 0},
        {"debounce": True},
        {"debounce": 5, "delay": 5},
        {"debounce": 5, "id": "mine"},
        {"on_duplicate": "keep_last", "delay": 5},
        {"on_duplicate": "keep_last", "unique_until": "start"},
        {"on_duplicate": "keep_last", "unique_for": 60},
    ],
)
def test_invalid_unique_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadOption):
        parse_options(unique="k", **options)


@pytest.mark.parametrize(
    "unique",
    ["", [], [1], ["nobody"], 5, {"to": 1}],
    ids=["empty", "none", "number", "unknown", "int", "dict"],
)
def test_a_task_refuses_an_invalid_unique_declaration(unique: Any) -> None:
    with pytest.raises(BadOption, match="unique"):
        App().task(name="pay", unique=unique)(lambda to: None)


def test_unique_false_overrides_the_declaration_of_the_task() -> None:
    declared = read_declaration("pay", unique="k", on_duplicate="replace", unique_until="start")

    assert parse_options(**declared.submit_options | {"unique": False}).unique is False


def test_every_field_of_a_claim_is_stored_or_known_from_its_message() -> None:
    names = [one.name for one in fields(UniqueClaim)]
    assert names == ["job", "queue", "held_until", "window", "successor", "revision", "stored", "expired"]


@pytest.mark.parametrize("window", [None, 60.0])
@pytest.mark.parametrize("life", JobLife)
def test_an_expired_claim_holds_no_key(life: JobLife, window: float | None) -> None:
    claim = UniqueClaim("j1", "mail", window=window, stored=True, expired=True)

    assert judge_claim(claim, life) is UniqueVerdict.FREE
