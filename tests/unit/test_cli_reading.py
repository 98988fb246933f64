"""Reading the input of users: durations, times, pairs and JSON."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer

from jsq.cli.errors import describe
from jsq.cli.loading import load_app
from jsq.cli.options import parsed
from jsq.cli.parsing import (
    Call,
    read_backoff,
    read_call,
    read_deadline,
    read_duration,
    read_line,
    read_moment,
    read_pairs,
    read_since,
    read_value,
)
from jsq.cli.worker import worker
from jsq.errors import BadOption, TaskExists, UsageError
from jsq.settings import WorkerSettings

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("0", 0),
        ("200ms", 0.2),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
    ],
)
def test_a_duration_is_seconds_or_units(text: str, seconds: float) -> None:
    assert read_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5x", "-5", "1e9", "inf", "nan", "5m ", "5m!", "٣", "1h-5m"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration: write"):
        read_duration(text)


def test_a_time_is_iso_8601_with_a_time_zone() -> None:
    assert read_moment("2030-01-01T13:00+01:00") == datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert read_moment("2030-01-01T12:00Z") == datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "2030-01-01", "2030-01-01T12:00", "tomorrow", "2030-13-01T00:00Z", "9999-12-31T23:00-10:00"]
)
def test_a_time_without_a_time_zone_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="time zone"):
        read_moment(text)


def test_a_deadline_is_a_time_or_a_duration() -> None:
    assert read_deadline(None) is None
    assert read_deadline("1h30m") == 5400
    assert read_deadline("2030-01-01T13:00+01:00") == datetime(2030, 1, 1, 12, tzinfo=UTC)
    with pytest.raises(UsageError, match="time zone"):
        read_deadline("2030-01-01T13:00")


def test_since_is_a_time_or_a_duration_ago() -> None:
    assert read_since("10m", NOW) == NOW - timedelta(minutes=10)
    assert read_since("2026-01-01T00:00Z", NOW) == datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(UsageError, match="before the first year"):
        read_since("999999999d", NOW)


def test_pairs_are_split_at_the_first_equals_sign() -> None:
    assert read_pairs("--arg", ["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize(
    ("texts", "message"), [(["a"], "name=value"), (["=1"], "name=value"), (["a=1", "a=2"], "twice")]
)
def test_a_bad_pair_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_pairs("--arg", texts)


def test_backoff_is_a_name_or_a_list_of_waits() -> None:
    assert read_backoff("linear") == "linear"
    assert read_backoff("1, 5,1m") == [1, 5, 60]
    assert read_backoff(None) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ('"5"', "5"),
        ("five", "five"),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("", ""),
        ("-1", -1),
    ],
)
def test_a_value_is_json_if_it_is_json(text: str, value: object) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000])
def test_a_value_that_json_cannot_represent_stays_text(text: str) -> None:
    assert read_value(text) == text


def test_arguments_are_an_object_or_a_list() -> None:
    assert read_call('{"to": "a"}', "--json") == Call(named={"to": "a"})
    assert read_call('["a", 1]', "--json") == Call(args=["a", 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b" 2}', "--json: line 2 column 6: not JSON"),
        ("", "--json: line 1 column 1: not JSON"),
        ("5", "an object of named arguments, or a list"),
        ("[NaN]", "NaN is not a JSON value"),
        ("[1e999]", "too large a number"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_json_error_names_its_position(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_call(text, "--json")


def test_an_input_line_holds_the_arguments_of_one_job() -> None:
    assert read_line(b"\xef\xbb\xbf[1]\r\n", "stdin", 3) == (Call(args=[1]), 3, "")
    assert read_line(b'{"a": 2}', "stdin", 4) == (Call(named={"a": 2}), 4, "")


@pytest.mark.parametrize(
    ("line", "message"), [(b"[1,]", "line 3 column [34]"), (b"[\xff]", "line 3 column 2: not UTF-8")]
)
def test_a_bad_input_line_is_reported_with_its_number(line: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=f"stdin: {message}"):
        read_line(line, "stdin", 3)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"@line": 7, "@error": "no", "@arguments": [1]}', (Call(args=[1]), 7, "")),
        (b'{"@line": 7, "@id": "x-7", "@arguments": {"a": 2}}', (Call(named={"a": 2}), 7, "x-7")),
        (b'{"@line": 7, "@error": "no", "@text": "[1]"}', (Call(args=[1]), 7, "")),
        # An object with a name that rejected lines do not have holds arguments.
        (b'{"@line": 7, "a": 2}', (Call(named={"@line": 7, "a": 2}), 3, "")),
    ],
)
def test_a_rejected_line_keeps_its_number_and_id(line: bytes, found: tuple[Call, int, str]) -> None:
    assert read_line(line, "stdin", 3) == found


@pytest.mark.parametrize(
    "line",
    [
        b'{"@line": "7", "@arguments": []}',
        b'{"@line": true, "@arguments": []}',
        b'{"@line": 7, "@id": 5, "@arguments": []}',
        b'{"@line": 7, "@id": "a\\tb", "@arguments": []}',
        b'{"@line": 7, "@arguments": 5}',
        b'{"@line": 7, "@text": "[1"}',
        b'{"@line": 7}',
    ],
)
def test_an_invalid_rejected_line_is_refused(line: bytes) -> None:
    with pytest.raises(UsageError):
        read_line(line, "stdin", 3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *(one for one in sys.path if "site-packages" in one)])
    return tmp_path


def test_an_app_is_found_in_the_working_directory(here: Path) -> None:
    (here / "shop_a.py").write_text("from jsq import App\napp = App()\nother = App(namespace='x')\n")
    assert load_app("shop_a").namespace == "jsq"
    assert load_app("shop_a:other").namespace == "x"


@pytest.mark.parametrize(
    ("code", "path", "message"),
    [
        ("", "shop_none", "no module is named shop_none"),
        ("", "shop b:app", "is not the name of a module"),
        ("", ":app", "is not the name of a module"),
        ("", "shop_c", "module shop_c has no app"),
        ("app = 5", "shop_d", "shop_d is int, not an App"),
        ("import not_there_at_all", "shop_e", "cannot be imported: No module named 'not_there_at_all'"),
        ("1 / 0", "shop_f", "cannot be imported: ZeroDivisionError"),
        ("raise SystemExit(0)", "shop_g", "cannot be imported: SystemExit"),
        ("def x(:", "shop_h", "cannot be imported: SyntaxError"),
    ],
)
def test_an_invalid_app_path_is_reported_in_one_line(here: Path, code: str, path: str, message: str) -> None:
    name = path.partition(":")[0]
    if name != "shop_none" and name.isidentifier():
        (here / f"{name}.py").write_text(code)
    with pytest.raises(UsageError, match=message):
        load_app(path)


def test_an_error_that_jsq_raises_in_an_app_module_is_not_replaced(here: Path) -> None:
    twice = "@app.task\ndef double(): ...\n"
    (here / "shop_i.py").write_text(f"from jsq import App\napp = App()\n{twice}{twice}")
    with pytest.raises(TaskExists):
        load_app("shop_i")


def test_an_invalid_declaration_is_reported_with_file_and_line(here: Path) -> None:
    (here / "shop_j.py").write_text(
        "from jsq import App\napp = App()\n\n@app.task(retries=-1)\ndef f(): ...\n"
    )
    with pytest.raises(BadOption) as caught:
        load_app("shop_j")
    place = f"({here / 'shop_j.py'}, line 4)"
    assert describe(caught.value) == f"error: retries {caught.value.rule}, got -1 {place}"


def test_a_file_name_in_place_of_a_module_is_answered_with_the_module(here: Path) -> None:
    (here / "shop_k.py").touch()
    with pytest.raises(UsageError, match=r"shop_k\.py is a file: write its module, shop_k:app"):
        load_app("shop_k.py:app")


def test_a_path_that_begins_with_a_dot_names_the_same_module(here: Path) -> None:
    (here / "shop_l").mkdir()
    (here / "shop_l" / "queue.py").touch()
    for path in ("./shop_l/queue.py", str(here / "shop_l" / "queue.py")):
        with pytest.raises(UsageError, match=r"write its module, shop_l\.queue:app"):
            load_app(path)


def test_a_factory_makes_the_app(here: Path) -> None:
    (here / "shop_m.py").write_text(
        "from jsq import App\ndef create_app(): return App(namespace='made')\n"
        "def takes(x): ...\ndef none(): ...\n"
    )
    assert load_app("shop_m:create_app").namespace == "made"
    with pytest.raises(UsageError, match="neither an App nor a factory without arguments"):
        load_app("shop_m:takes")
    with pytest.raises(UsageError, match="is NoneType, not an App"):
        load_app("shop_m:none")


def test_a_factory_that_raises_or_is_async_is_a_mistake_of_its_caller(here: Path) -> None:
    (here / "shop_o.py").write_text(
        "async def create_app(): ...\ndef raises():\n    return {}['URL']\n"
        "def refused():\n    from jsq import App\n    return App(events=-1)\n"
    )
    with pytest.raises(UsageError, match="shop_o:create_app is a coroutine function; a factory is a plain"):
        load_app("shop_o:create_app")
    with pytest.raises(UsageError, match=r"shop_o:raises raised KeyError: 'URL' .*shop_o\.py, line 3"):
        load_app("shop_o:raises")
    with pytest.raises(BadOption, match="events"):
        load_app("shop_o:refused")


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("JSQ_SWEEP", "0", 0),
        ("JSQ_GRACE", "1m", 60),
        ("JSQ_CONCURRENCY", "50", 50),
        ("JSQ_PREFETCH", "7", 7),
        ("JSQ_BURST", "true", True),
        ("JSQ_GROUP_WRITES", "always", "always"),
        ("JSQ_CHILD_TASKS", "3", 3),
        ("JSQ_CHILD_MEMORY", "256", 256),
        ("JSQ_UNKNOWN_TASK_FOR", "5m", 300),
    ],
)
def test_the_environment_gives_the_options_of_a_worker(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, value: object
) -> None:
    option = variable.removeprefix("JSQ_").lower()
    monkeypatch.setenv(variable, text)

    assert parsed(worker, "worker").make_context("worker", ["shop:app"]).params[option] == value


def test_a_worker_option_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSQ_SWEEP", "0")
    words = ["shop:app", "--sweep", "30"]

    assert parsed(worker, "worker").make_context("worker", words).params["sweep"] == 30


def test_the_environment_can_give_every_setting_of_a_worker() -> None:
    known = {param.envvar for param in parsed(worker, "worker").params}

    assert {f"JSQ_{name.upper()}" for name in WorkerSettings.fields} <= known


def test_a_wrong_value_in_the_environment_is_reported_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSQ_CONCURRENCY", "many")

    with pytest.raises(typer.BadParameter, match="whole number, got 'many'"):
        parsed(worker, "worker").make_context("worker", ["shop:app"])
