"""Settings, and the sources of the address and login of the server."""

import json
import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from jsq.errors import BadOption, UsageError
from jsq.settings import (
    DEFAULT_URL,
    Login,
    QueueSettings,
    SettingsSection,
    WorkerArguments,
    WorkerSettings,
    read_login,
)

Environment = dict[str, str]


@pytest.fixture
def home(tmp_path: Path) -> Environment:
    """An environment whose home has two contexts of the nats CLI, `prod` selected."""
    folder = tmp_path / ".config" / "nats"
    (folder / "context").mkdir(parents=True)
    write(
        folder, "prod", {"url": "nats://prod:4222", "user": "app", "password": "s3cret", "description": "x"}
    )
    write(folder, "test", {"url": "nats://test:4222", "token": "t0ken", "creds": ""})
    (folder / "context.txt").write_text("prod\n")
    return {"HOME": str(tmp_path)}


def write(folder: Path, name: str, context: Any) -> None:
    text = context if isinstance(context, str) else json.dumps(context)
    (folder / "context" / f"{name}.json").write_text(text)


def folder_of(home: Environment) -> Path:
    return Path(home["HOME"], ".config", "nats")


# -- address and login ---------------------------------------------------------------------------------------


def test_an_argument_comes_first(home: Environment) -> None:
    assert read_login("nats://here", home | {"JSQ_URL": "nats://there"}) == Login(url="nats://here")


def test_the_environment_comes_before_the_nats_context(home: Environment) -> None:
    assert read_login(None, home | {"JSQ_URL": "nats://there", "NATS_CONTEXT": "test"}) == Login(
        url="nats://there"
    )


def test_the_selected_nats_context_comes_next(home: Environment) -> None:
    assert read_login(None, home) == Login(url="nats://prod:4222", user="app", password="s3cret")


def test_a_named_nats_context_comes_before_the_selected_one(home: Environment) -> None:
    assert read_login(None, home | {"NATS_CONTEXT": "test"}) == Login(url="nats://test:4222", token="t0ken")


def test_contexts_may_live_in_the_xdg_home(home: Environment, tmp_path: Path) -> None:
    elsewhere = {"HOME": "/nonexistent", "XDG_CONFIG_HOME": str(tmp_path / ".config")}

    assert read_login(None, elsewhere).url == "nats://prod:4222"


def test_localhost_comes_last(tmp_path: Path) -> None:
    assert read_login(None, {"HOME": str(tmp_path)}) == Login(url=DEFAULT_URL)
    assert read_login("", {"HOME": str(tmp_path), "JSQ_URL": ""}).url == DEFAULT_URL


def test_an_empty_context_selection_is_ignored(home: Environment) -> None:
    (folder_of(home) / "context.txt").write_text("\n")

    assert read_login(None, home).url == DEFAULT_URL


@pytest.mark.parametrize(
    "context",
    ["", "{", "[1, 2]", '"prod"', "null", "\x00"],
    ids=["empty", "cut", "list", "text", "null", "NUL"],
)
def test_an_invalid_context_is_reported_with_its_path_and_a_fix(home: Environment, context: str) -> None:
    write(folder_of(home), "prod", context)

    with pytest.raises(UsageError, match=r"context/prod\.json.*nats context select"):
        read_login(None, home)


@pytest.mark.parametrize(
    "name", ["gone", "../../../etc/passwd", "a" * 5_000, "\x00"], ids=lambda name: ascii(name)[:20]
)
def test_a_missing_context_is_reported(home: Environment, name: str) -> None:
    with pytest.raises(UsageError, match="the nats context cannot be read from"):
        read_login(None, home | {"NATS_CONTEXT": name})


def test_an_unreadable_context_selection_is_reported(home: Environment) -> None:
    (folder_of(home) / "context.txt").write_bytes(b"\xff\xfe")

    with pytest.raises(UsageError, match=r"context\.txt"):
        read_login(None, home)


def test_a_context_that_is_not_text_is_reported(home: Environment) -> None:
    (folder_of(home) / "context" / "prod.json").write_bytes(b'{"url": "\xff"}')

    with pytest.raises(UsageError, match=r"prod\.json"):
        read_login(None, home)


# -- secrets -------------------------------------------------------------------------------------------------


def test_a_login_shows_no_secret() -> None:
    secret = Login(
        url="nats://app:s3cret@one:4222,tls://t0ken@two", user="root", password="s3cret", token="t0ken"
    )

    shown = f"{secret!r} {secret} {[secret]}"

    assert "one:4222" in shown
    assert [word for word in ("app", "root", "s3cret", "t0ken") if word in shown] == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://localhost:4222", "nats://localhost:4222"),
        ("localhost", "nats://localhost"),
        ("app:s3cret@localhost", "nats://localhost"),
        ("nats://app:s3@cret@localhost", "nats://localhost"),
        ("nats://a, tls://u:p@b:1,,wss://c", "nats://a,tls://b:1,wss://c"),
    ],
)
def test_addresses_are_shown_without_user_and_password(url: str, shown: str) -> None:
    assert Login(url=url).shown == shown


def test_several_servers_may_be_named() -> None:
    assert Login(url="nats://a, b:4223 ,").servers == ["nats://a", "nats://b:4223"]


def test_the_error_for_an_invalid_login_does_not_show_the_password() -> None:
    with pytest.raises(BadOption, match="password") as refused:
        Login(password=["s3cret"])  # type: ignore[arg-type]  # that is what is tested

    assert "s3cret" not in str(refused.value)


# -- sections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [QueueSettings, WorkerSettings])
def test_every_setting_has_a_default_and_a_reason(section: type[SettingsSection]) -> None:
    assert section.read() == section()
    assert [name for name, field in section.fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (QueueSettings, "storage", "tape"),
        (QueueSettings, "replicas", 2),
        (QueueSettings, "max_jobs", 0),
        (QueueSettings, "max_bytes", 1),
        (QueueSettings, "lease", 0.5),
        (QueueSettings, "lease", math.nan),
        (QueueSettings, "lease", math.inf),
        (QueueSettings, "concurrency", 0),
        (QueueSettings, "max_crashes", 0),
        (QueueSettings, "leese", 30),
        (WorkerSettings, "concurrency", 0),
        (WorkerSettings, "concurrency", 1.5),
        (WorkerSettings, "prefetch", -1),
        (WorkerSettings, "grace", math.nan),
        (WorkerSettings, "grace", -1),
        (WorkerSettings, "burst", "perhaps"),
    ],
    ids=str,
)
def test_an_invalid_setting_is_refused_by_name(
    section: type[SettingsSection], field: str, value: Any
) -> None:
    with pytest.raises(BadOption) as refused:
        section.read(**{field: value})

    assert refused.value.field == field
    assert str(refused.value).startswith((f"{field} must ", f"there is no setting {field};"))


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        WorkerSettings().grace = 1.0  # type: ignore[misc]  # that is what is tested


def test_the_options_of_an_embedded_worker_are_the_settings_of_a_worker_with_the_same_types() -> None:
    declared = {
        name: kind for name, kind in get_type_hints(WorkerSettings).items() if name in WorkerSettings.fields
    }

    assert get_type_hints(WorkerArguments) == declared
