"""The options of a submitted job, as `jsq submit` and `jsq schedule add` take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeAlias

import typer

from jsq.cli.options import Texts
from jsq.cli.parsing import (
    Call,
    read_backoff,
    read_deadline,
    read_duration,
    read_json_option,
    read_moment,
    read_pairs,
    read_value,
)
from jsq.errors import UsageError
from jsq.model.options import RARE_OPTIONS

Text: TypeAlias = str | None
Number: TypeAlias = int | None
Seconds: TypeAlias = float | None

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="the task's name")]
AppPath = Annotated[
    str,
    typer.Option(
        "--app",
        "-A",
        metavar="MODULE:APP",
        help="the App that declares the task: its options and checks apply",
    ),
]


def option(metavar: str, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text)


def repeated(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=f"{text}; may be repeated")


def duration(text: str, variable: str | None = None) -> Any:
    """An option that takes a duration, from the command line or from an environment variable."""
    return typer.Option(
        parser=read_duration, metavar="DURATION", help=text, envvar=variable, show_envvar=False
    )


def moment(text: str) -> Any:
    return typer.Option(parser=read_moment, metavar="MOMENT", help=text)


@dataclass(frozen=True, slots=True)
class ArgumentOptions:
    """The arguments of a job, besides the positional ones."""

    arg: Annotated[Texts, repeated("NAME=VALUE", "a named argument")] = None
    json: Annotated[Text, option("JSON|@FILE", "all arguments: an object or a list")] = None

    @property
    def given(self) -> bool:
        return bool(self.arg) or self.json is not None

    def call(self, args: Sequence[str], *, raw: bool = False) -> Call:
        """The arguments of a job with the positional ones `args`. Raises `UsageError`."""
        named = read_pairs("--arg", self.arg or ())
        if self.json is not None:
            if args or named:
                raise UsageError("--json gives all arguments: use it without ARG and --arg")
            return read_json_option(self.json)
        read = str if raw else read_value
        return Call([read(text) for text in args], {name: read(text) for name, text in named.items()})


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The options that a submitted and a scheduled job have in common."""

    queue: Annotated[Text, option("QUEUE", "the queue [default]", "--queue", "-q")] = None
    priority: Annotated[Text, option("PRIORITY", "high, normal or low [normal]")] = None
    key: Annotated[Text, option("KEY", "its key group; the keys of a queue take turns")] = None
    per_key: Annotated[Number, option("N", "jobs of its key that run at once; 1 keeps their order")] = None
    slots: Annotated[Number, option("N", "slots of its worker that it takes [1]")] = None
    timeout: Annotated[Seconds, duration("the longest run of an attempt")] = None
    hard_timeout: Annotated[Seconds, duration("after which a child process is killed")] = None
    executor: Annotated[Text, option("WHERE", "async, thread or process [as the task declares]")] = None
    on_failure: Annotated[Text, option("TASK", "task to submit after each failed attempt")] = None
    on_dead: Annotated[Text, option("TASK", "task to submit when it has failed for good")] = None
    fallback: Annotated[
        Text, option("TASK", "task to submit with its arguments when it has failed for good")
    ] = None
    retries: Annotated[Number, option("N", "retries after the first attempt [as the task declares]")] = None
    backoff: Annotated[Text, option("HOW", "none, linear, exponential, or waits: 1,5,30")] = None
    keep_result: Annotated[Seconds, duration("how long the result is kept")] = None
    keep_arguments: Annotated[
        bool | None,
        typer.Option(
            "--keep-arguments/--no-keep-arguments",
            show_default=False,
            help="whether its record holds its arguments when it has ended [yes]",
        ),
    ] = None
    header: Annotated[Texts, repeated("NAME=VALUE", "a header")] = None
    tag: Annotated[Texts, repeated("TAG", "a tag")] = None

    def values(self) -> dict[str, Any]:
        """The options by their names in Python."""
        names = ("queue", "priority", "key", "per_key", "slots", "timeout", "retries")
        kept = ("keep_result", "keep_arguments")
        return {
            **{name: getattr(self, name) for name in (*names, *kept, *RARE_OPTIONS)},
            "backoff": read_backoff(self.backoff),
            "headers": read_pairs("--header", self.header or ()),
            "tags": self.tag or (),
        }


@dataclass(frozen=True, slots=True)
class TimeOptions:
    """When a submitted job runs."""

    delay: Annotated[Seconds, duration("start it after 90 (seconds), 5m, 1h30m, 2d")] = None
    at: Annotated[datetime | None, moment("start it at 2030-12-31T18:00Z")] = None
    expires: Annotated[Text, option("WHEN", "do not start it later: 90, 5m or 2030-12-31T18:00Z")] = None
    deadline: Annotated[Text, option("WHEN", "end it as expired then: 90, 5m or 2030-12-31T18:00Z")] = None
    retry_for: Annotated[
        Text, option("WHEN", "no retry later than 1h after its first start, or than 2030-12-31T18:00Z")
    ] = None
    backoff_max: Annotated[Seconds, duration("the longest wait of the backoff")] = None
    jitter: Annotated[Seconds, option("SHARE", "random share of each wait, 0 to 1")] = None
    wait_for_room: Annotated[Seconds, duration("how long to retry if the queue is full [fail at once]")] = (
        None
    )

    def values(self) -> dict[str, Any]:
        """The options by their names in Python."""
        return {
            "delay": self.delay,
            "at": self.at,
            "expires": read_deadline(self.expires),
            "deadline": read_deadline(self.deadline),
            "retry_for": read_deadline(self.retry_for),
            "backoff_max": self.backoff_max,
            "jitter": self.jitter,
            "wait_for_room": self.wait_for_room,
        }


@dataclass(frozen=True, slots=True)
class UniqueOptions:
    """The id of a submitted job, its unique key, and what happens to a duplicate."""

    id: Annotated[
        Text, option("ID", "an id of your own, 1 to 128 characters; there is only one job with it")
    ] = None
    unique: Annotated[Text, option("KEY", "at most one job of the task with this key at a time")] = None
    unique_until: Annotated[Text, option("WHEN", "hold the key until finish or start [finish]")] = None
    unique_for: Annotated[Seconds, duration("hold the key for this long, whatever happens to the job")] = None
    on_duplicate: Annotated[
        Text,
        option(
            "ACTION",
            "if the id or key is taken: return, raise (exit 6); for a key also replace, keep_last",
        ),
    ] = None
    debounce: Annotated[Seconds, duration("start when no job of the key was submitted for this long")] = None
    throttle: Annotated[Seconds, duration("keep only the first job of the key within this time")] = None

    @property
    def raises(self) -> bool:
        """Whether a duplicate is an error."""
        return self.on_duplicate == "raise"

    def values(self) -> dict[str, Any]:
        """The options by their names in Python; without a unique key, `raise` applies to the id."""
        names = ("id", "unique", "unique_until", "unique_for", "debounce", "throttle")
        about_id = self.unique is None and self.id is not None and self.on_duplicate in ("raise", "return")
        return {
            **{name: getattr(self, name) for name in names},
            "on_duplicate": None if about_id else self.on_duplicate,
        }
