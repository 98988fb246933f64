"""The settings, each with a unit, a default and a description. An unknown name is refused.

An entry point reads the settings once and passes them on: no other module reads the environment.
The sections are not pydantic models: importing pydantic takes a third of the start time of a command.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, TypedDict, TypeVar, cast, dataclass_transform

from jsq.errors import BadOption, UsageError, shorten
from jsq.model.durations import Duration
from jsq.model.key_group import check_per_key, check_weights
from jsq.model.rate_limit import Rate, read_rate

DEFAULT_URL = "nats://localhost:4222"

Storage = Literal["memory", "file"]
Replicas = Literal[1, 3, 5]
WriteGrouping = Literal["auto", "always", "never"]

T = TypeVar("T")

SettingReader = Callable[[Any], Any]
"""Returns the value of a setting; raises `ValueError` with the rule that the value breaks."""


class Setting:
    """One field of a section: its default, the reader of its values, and its description."""

    __slots__ = ("default", "description", "read")

    def __init__(self, default: object, read: SettingReader, description: str) -> None:
        self.default = default
        self.read = read
        self.description = description


def setting(*, default: T, read: SettingReader, description: str) -> T:
    """Declare a field of a section."""
    return cast(T, Setting(default, read, description))


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
class SettingsSection:
    """A frozen group of settings. Raises `BadOption` for the first wrong value, with its field and rule."""

    fields: ClassVar[Mapping[str, Setting]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    secret: ClassVar[bool] = False
    """Whether messages hide the values."""

    def __init_subclass__(cls) -> None:
        cls.fields = {name: field for name, field in vars(cls).items() if isinstance(field, Setting)}
        cls.defaults = {name: field.default for name, field in cls.fields.items()}

    def __init__(self, **values: Any) -> None:
        read = {name: self._read(name, value) for name, value in values.items()}
        vars(self).update(self.defaults, **read)
        vars(self)["given"] = frozenset(values)

    @classmethod
    def read(cls, **values: Any) -> Self:
        """A section from values whose names or types are known only at run time. Raises `BadOption`."""
        return cls(**values)

    def _read(self, name: str, value: object) -> object:
        field = self.fields.get(name)
        try:
            if field is None:
                raise ValueError(f"there is no setting {name}; the settings are {', '.join(self.fields)}")
            return field.read(value)
        except ValueError as error:
            raise BadOption(name, "***" if self.secret else value, str(error)) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed. Raises `BadOption`."""
        return type(self)(**{name: getattr(self, name) for name in vars(self)["given"]} | changes)

    def is_given(self, name: str) -> bool:
        """Whether a value was given, rather than left to the default."""
        return name in vars(self)["given"]

    def as_dict(self) -> dict[str, Any]:
        """The settings as values for JSON."""
        values = ((name, getattr(self, name)) for name in self.fields)
        return {name: str(value) if isinstance(value, Rate) else value for name, value in values}

    def as_json(self) -> str:
        """The settings as one line of JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=False, separators=(",", ":"))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == cast(Self, other)._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.fields)
        return f"{type(self).__name__}({shown})"

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.fields)


# -- readers of values ---------------------------------------------------------------------------------------


def integer(least: int, most: int | None = None) -> SettingReader:
    """Reads a whole number between two limits."""
    return lambda value: within(as_integer(value), least, most)


def number(least: float, most: float) -> SettingReader:
    """Reads a number between two limits."""
    return lambda value: within(as_number(value), least, most)


def one_of(*values: object) -> SettingReader:
    """Reads one of a few values."""
    *others, last = (repr(value) for value in values)

    def read(value: object) -> object:
        if isinstance(value, bool) or value not in values:
            raise ValueError(f"must be {', '.join(others)} or {last}")
        return value

    return read


def text(pattern: str = "(?s:.*)", rule: str = "must be text") -> SettingReader:
    """Reads text that matches a pattern; `rule` is the pattern in words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(rule)
        return value

    return read


def optional(read: SettingReader) -> SettingReader:
    """Reads None, or a value of another reader."""
    return lambda value: None if value is None else read(value)


def passing(check: Callable[[object], None], empty: object) -> SettingReader:
    """Reads a value unchanged if it passes a check; None becomes `empty`."""

    def read(value: object) -> object:
        check(value)
        return empty if value is None else value

    return read


def as_integer(value: Any) -> int:
    found = as_number(value, "must be a whole number")
    if not found.is_integer():
        raise ValueError("must be a whole number")
    return value if isinstance(value, int) else int(found)


def as_number(value: Any, rule: str = "must be a number") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(rule)
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(rule) from None


def within(value: float, least: float, most: float | None) -> float:
    if not value >= least:
        raise ValueError(f"must be {least} or more")
    if most is not None and not value <= most:
        raise ValueError(f"must be {most} at most")
    return value


FLAGS = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def flag(value: object) -> bool:
    """Reads a flag, as a bool or as the text of an environment variable."""
    found = FLAGS.get(str(value).lower()) if isinstance(value, (bool, int, str)) else None
    if found is None:
        raise ValueError("must be true or false")
    return found


# -- the sections --------------------------------------------------------------------------------------------


class QueueSettings(SettingsSection):
    """The settings of a queue, the same for all its workers."""

    storage: Storage = setting(
        default="file",
        read=one_of("memory", "file"),
        description="where waiting jobs are stored; cannot be changed later",
    )
    replicas: Replicas = setting(
        default=1,
        read=one_of(1, 3, 5),
        description="servers that hold each waiting job [as many as hold the shared streams]",
    )
    max_jobs: int | None = setting(
        default=None,
        read=optional(integer(1)),
        description="jobs that may wait; a submit beyond that raises QueueFull",
    )
    max_bytes: int | None = setting(
        default=None,
        read=optional(integer(1024)),
        description="bytes that may wait; a submit beyond that raises QueueFull",
    )
    lease: float = setting(
        default=30.0,
        read=number(1, 3600),
        description="seconds without a renewal after which another worker gets the job",
    )
    concurrency: int | None = setting(
        default=None,
        read=optional(integer(1)),
        description="jobs that all workers together run at once, over all priorities",
    )
    max_crashes: int = setting(
        default=3, read=integer(1, 100), description="workers that a job may crash before it fails for good"
    )
    quarantine: str | None = setting(
        default=None,
        read=optional(text()),
        description="queue to which such a job moves, once; without it the job fails",
    )
    per_key: int | None = setting(
        default=None,
        read=passing(check_per_key, None),
        description="jobs of one key that run at once, unless a submit sets it",
    )
    weights: Mapping[str, int] = setting(
        default={},
        read=passing(check_weights, {}),
        description="keys with the number of jobs they start in a turn, where others start one",
    )
    rate: Rate | None = setting(
        default=None,
        read=lambda rate: read_rate("rate", rate),
        description="how often jobs may start, by all workers together, over all priorities",
    )
    keep_arguments: bool = setting(
        default=True,
        read=flag,
        description="whether the record of an ended job holds its arguments",
    )


class QueueChanges(TypedDict, total=False):
    """Settings of a queue that can be changed while it lives; see `QueueSettings`."""

    max_jobs: int | None
    max_bytes: int | None
    lease: Duration
    concurrency: int | None
    max_crashes: int
    quarantine: str | None
    rate: Rate | str | None
    per_key: int | None
    weights: Mapping[str, int] | None
    keep_arguments: bool


class WorkerSettings(SettingsSection):
    """The settings of one worker process."""

    concurrency: int = setting(
        default=10, read=integer(1, 10_000), description="jobs that one process runs at once"
    )
    prefetch: int = setting(
        default=0,
        read=integer(0, 10_000),
        description="jobs held ready beyond the running ones; 0 for long jobs",
    )
    grace: float = setting(
        default=25.0,
        read=number(0, 3600),
        description="seconds that running jobs have to end when the worker stops",
    )
    burst: bool = setting(default=False, read=flag, description="stop when nothing can run now")
    group_writes: WriteGrouping = setting(
        default="auto",
        read=one_of("auto", "always", "never"),
        description="whether changes of jobs are written in groups; auto decides by speed",
    )
    child_tasks: int | None = setting(
        default=None,
        read=optional(integer(1)),
        description="process tasks that one child runs before it is replaced",
    )
    child_memory: int | None = setting(
        default=None,
        read=optional(integer(1)),
        description="megabytes of memory from which a child is replaced after a task",
    )
    max_jobs: int | None = setting(
        default=None,
        read=optional(integer(1)),
        description="jobs after which the worker stops gently",
    )
    max_idle: float | None = setting(
        default=None,
        read=optional(number(0.001, 31_622_400)),
        description="seconds without a job after which the worker stops",
    )
    strict: bool = setting(
        default=False,
        read=flag,
        description="whether jobs of a later queue start only while the earlier queues have none",
    )
    sweep: float = setting(
        default=60.0,
        read=number(0, 86_400),
        description="seconds between sweeps, by all workers together; 0 disables",
    )
    unknown_task_for: float = setting(
        default=600.0,
        read=number(0, 86_400),
        description="seconds for which a job of an unknown task is delayed, for workers of a newer release",
    )


class WorkerArguments(TypedDict, total=False):
    """The settings of a worker as arguments, such as those of `App.working`; see `WorkerSettings`."""

    concurrency: int
    prefetch: int
    grace: float
    burst: bool
    group_writes: WriteGrouping
    child_tasks: int | None
    child_memory: int | None
    max_jobs: int | None
    max_idle: float | None
    strict: bool
    sweep: float
    unknown_task_for: float


class Login(SettingsSection):
    """The server's address and the user to log in as. Its text form is `shown`, without secrets."""

    secret = True

    url: str = setting(default=DEFAULT_URL, read=text(), description="addresses, joined by commas")
    user: str = setting(default="", read=text(), description="the user, if the address does not name it")
    password: str = setting(default="", read=text(), description="password of the user")
    token: str = setting(default="", read=text(), description="token, instead of a user")
    creds: str = setting(default="", read=text(), description="path of a file with a JWT and its seed")
    nkey: str = setting(
        default="", read=text(), description="path of a file with the seed of an nkey, or the seed"
    )
    cert: str = setting(
        default="", read=text(), description="path of the client certificate, if the server requires one"
    )
    key: str = setting(default="", read=text(), description="path of the key of the client certificate")
    ca: str = setting(
        default="", read=text(), description="path of the CA certificate that verifies the server"
    )
    tls_first: bool = setting(
        default=False, read=flag, description="start TLS before the server's INFO message"
    )
    inbox_prefix: str = setting(
        default="",
        read=text(
            r"([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)?",
            "must be words of letters, digits, _ and -, joined by dots",
        ),
        description="prefix of reply subjects [_INBOX, or _INBOX_<user>]",
    )

    @property
    def servers(self) -> list[str]:
        return [part if "://" in part else f"nats://{part}" for part in split_list(self.url)]

    @property
    def shown(self) -> str:
        """The addresses without user and password, for messages.

        A port that is not a number is hidden: it may be a password whose host was left out.
        """
        return ",".join(without_credentials(server) for server in self.servers)

    def __repr__(self) -> str:
        return f"Login({self.shown!r})"

    def __str__(self) -> str:
        return self.shown


def without_credentials(server: str) -> str:
    scheme, _, rest = server.partition("://")
    host, colon, port = rest.rpartition("@")[2].rpartition(":")
    hidden = colon and "]" not in port and not port.partition("/")[0].isdecimal()
    return f"{scheme}://{host}{colon}{'***' if hidden else port}"


TEST_URL, TEST_NAMESPACE = "JSQ_TEST_URL", "JSQ_TEST_NAMESPACE"
"""The variables of the server and the namespace of the running test. The fixture `jsq_app` sets both.

They have priority over what the code names, so that the child processes and the commands that a test starts
use the namespace of the test, whatever App they import.
"""


def is_bound_to_test(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the variables of a running test decide about the server and the namespace."""
    return bool(environment.get(TEST_NAMESPACE))


def read_namespace(given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """The namespace of the running test, then the argument, then `JSQ_NAMESPACE`, then `jsq`."""
    return environment.get(TEST_NAMESPACE) or given or environment.get("JSQ_NAMESPACE") or "jsq"


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def read_login(url: str | None = None, environment: Mapping[str, str] = os.environ) -> Login:
    """The server of the running test, then the argument, `JSQ_URL`, the nats CLI's context, and localhost.

    The other fields of a login are read from `JSQ_USER`, `JSQ_PASSWORD` and so on, one variable for each
    field. Raises `UsageError` if a context file cannot be read, `BadOption` for a wrong value of a field.
    """
    written = {name: environment.get(f"JSQ_{name.upper()}") for name in Login.fields} | {
        "url": url or environment.get("JSQ_URL")
    }
    if is_bound_to_test(environment):
        written["url"] = environment.get(TEST_URL) or written["url"]
    known = {name: value for name, value in written.items() if value}
    context = {} if "url" in known else read_nats_context(environment)
    return Login.read(**context | known)


def read_nats_context(environment: Mapping[str, str]) -> dict[str, str]:
    """The context that the nats CLI would use: `NATS_CONTEXT`, or the one selected on disk, or none."""
    home = Path(environment.get("HOME", "~"), ".config").expanduser()
    folder = Path(environment.get("XDG_CONFIG_HOME") or home, "nats")
    name = environment.get("NATS_CONTEXT") or selected_context(folder / "context.txt")
    if not name:
        return {}
    found = read_context_file(folder / "context" / f"{name}.json")
    return {field: str(found[field]) for field in Login.fields if found.get(field)}


def selected_context(path: Path) -> str:
    """The name that `nats context select` stored, or an empty string."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise unreadable_context(path, error) from error


def read_context_file(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise unreadable_context(path, error) from error
    if not isinstance(found, dict):
        raise unreadable_context(path, "it holds no JSON object")
    return found


def unreadable_context(path: Path, why: object) -> UsageError:
    return UsageError(
        f"the nats context cannot be read from {shorten(str(path), 300)}: {shorten(str(why))}; pass the "
        "server's address, or choose another context with `nats context select`"
    )
