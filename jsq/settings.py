"""What can be set, each with a unit, a default and a reason. An unknown name is refused.

Read once, by a door, then passed by hand: nothing else in the package looks at the environment.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from jsq.errors import BadOption, Duration, UsageError, shorten, translate_rule
from jsq.model.key_group import check_per_key, check_weights
from jsq.model.rate_limit import Rate, read_rate

DEFAULT_URL = "nats://localhost:4222"

Storage = Literal["memory", "file"]
Replicas = Literal[1, 3, 5]
WriteGrouping = Literal["auto", "always", "never"]


class SettingsSection(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, **values: Any) -> Self:
        """Check `values`; raises `BadOption` naming the first wrong field, its value and the limit."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or cls.__name__
            value = "***" if cls.model_config.get("hide_input_in_errors") else first["input"]
            raise BadOption(field, value, translate_rule(first["msg"])) from error


class QueueSettings(SettingsSection):
    """How a queue is kept and run, the same for all its workers."""

    storage: Storage = Field(default="file", description="where waiting jobs are kept; never changes")
    replicas: Replicas = Field(default=1, description="servers that hold each waiting job")
    max_jobs: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="jobs that may wait; one more gets QueueFull"
    )
    max_bytes: Annotated[int, Field(ge=1024)] | None = Field(
        default=None, description="bytes that may wait; more gets QueueFull"
    )
    lease: float = Field(
        default=30.0, ge=1, le=3600, description="seconds of silence before a job is given away"
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="jobs of one priority that all workers together run at once"
    )
    max_crashes: int = Field(
        default=3, ge=1, le=100, description="workers a job may take down before it is put away"
    )
    quarantine: str | None = Field(
        default=None, description="queue to which such a job goes, once; without one it fails"
    )
    per_key: int | None = Field(
        default=None, description="jobs of one key that run at once, where a submit does not say"
    )
    weights: Mapping[str, int] = Field(
        default_factory=dict, description="how many turns some keys get for one of the others"
    )

    @field_validator("per_key", mode="before")
    @classmethod
    def _per_key(cls, number: object) -> object:
        check_per_key(number)
        return number

    @field_validator("weights", mode="before")
    @classmethod
    def _weights(cls, weights: object) -> object:
        check_weights(weights)
        return weights or {}

    rate: Rate | None = Field(
        default=None, description="how often jobs of all priorities may start, by all workers together"
    )

    @field_validator("rate", mode="before")
    @classmethod
    def _rate(cls, rate: object) -> Rate | None:
        return read_rate("rate", rate)

    @field_serializer("rate")
    def _told_rate(self, rate: Rate | None) -> str | None:
        return str(rate) if rate is not None else None


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


class WorkerSettings(SettingsSection):
    """How one worker process runs."""

    concurrency: int = Field(default=10, ge=1, le=10_000, description="jobs run at once by one process")
    prefetch: int = Field(
        default=0, ge=0, le=10_000, description="jobs held beyond those that run; 0 for long jobs"
    )
    grace: float = Field(default=25.0, ge=0, le=3600, description="seconds the running jobs get at a stop")
    burst: bool = Field(default=False, description="stop when nothing can run now")
    group_writes: WriteGrouping = Field(
        default="auto", description="whether events of jobs go to the log in groups: where that is faster"
    )
    child_tasks: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="process tasks that one child runs before a new one takes its place"
    )
    child_memory: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="megabytes held by a child after a task, from which it is replaced",
    )
    sweep: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="seconds between two sweeps (by all workers together) for what was left behind; 0: none",
    )
    unknown_task_for: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        description="seconds a job of an unknown task is put off, for workers of a newer release",
    )


class Login(SettingsSection):
    """Where the server is and who we are. Its text form is `shown`, without secrets."""

    model_config = ConfigDict(hide_input_in_errors=True)

    url: str = Field(default=DEFAULT_URL, description="addresses, joined by commas")
    user: str = Field(default="", description="who logs in, where the address does not say it")
    password: str = Field(default="", description="of the user")
    token: str = Field(default="", description="in the place of a user")
    creds: str = Field(default="", description="path of a file with a JWT and its seed")
    nkey: str = Field(default="", description="path of a file with the seed of an nkey, or the seed")
    cert: str = Field(default="", description="path of our certificate, where the server asks for one")
    key: str = Field(default="", description="path of the key of that certificate")
    ca: str = Field(default="", description="path of the certificate that vouches for the server's")
    tls_first: bool = Field(default=False, description="begin with TLS, before the server's greeting")
    inbox_prefix: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)?$",
        description="what the subjects of answers begin with [_INBOX, else _INBOX_<user>]",
    )

    @property
    def servers(self) -> list[str]:
        return [part if "://" in part else f"nats://{part}" for part in split_list(self.url)]

    @property
    def shown(self) -> str:
        """The addresses without user and password, to show to people.

        What stands for a port and is no number may be a password whose host was forgotten.
        """
        return ",".join(without_credentials(server) for server in self.servers)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield None, self.shown


def without_credentials(server: str) -> str:
    scheme, _, rest = server.partition("://")
    host, colon, port = rest.rpartition("@")[2].rpartition(":")
    hidden = colon and "]" not in port and not port.partition("/")[0].isdecimal()
    return f"{scheme}://{host}{colon}{'***' if hidden else port}"


def read_namespace(given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """The argument, then `JSQ_NAMESPACE`, then `jsq`."""
    return given or environment.get("JSQ_NAMESPACE") or "jsq"


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def read_login(url: str | None = None, environment: Mapping[str, str] = os.environ) -> Login:
    """The argument, then `JSQ_URL`, then the nats CLI's selected context, then localhost.

    What else a login holds is in `JSQ_USER`, `JSQ_PASSWORD` and so on, a variable for each field. Raises
    `UsageError` where a context file cannot be read, `BadOption` for a value that a field cannot have.
    """
    told = {name: environment.get(f"JSQ_{name.upper()}") for name in Login.model_fields} | {
        "url": url or environment.get("JSQ_URL")
    }
    known = {name: value for name, value in told.items() if value}
    context = {} if "url" in known else read_nats_context(environment)
    return Login.read(**context | known)


def read_nats_context(environment: Mapping[str, str]) -> dict[str, str]:
    """The context that the nats CLI would use: `NATS_CONTEXT`, else the one selected on disk; or nothing."""
    home = Path(environment.get("HOME", "~"), ".config").expanduser()
    folder = Path(environment.get("XDG_CONFIG_HOME") or home, "nats")
    name = environment.get("NATS_CONTEXT") or selected_context(folder / "context.txt")
    if not name:
        return {}
    found = read_context_file(folder / "context" / f"{name}.json")
    return {field: str(found[field]) for field in Login.model_fields if found.get(field)}


def selected_context(path: Path) -> str:
    """The name that `nats context select` left behind, if it did."""
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
