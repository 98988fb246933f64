"""The options of a submit: each option is declared here, once.

`SubmitOptions` are the options that users write, `Options` is their checked form. A new option is a line in
each, and a field of `Job` if it is sent with the job (`ENVELOPE_OPTIONS`).
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, get_args

from jsq.errors import BadName, BadOption
from jsq.model.callback import NamedTask, callback_name
from jsq.model.durations import MAX_DURATION, Duration, check_moment, check_seconds, seconds
from jsq.model.job import (
    NAME_RULE,
    PRIORITIES,
    ExecutorKind,
    Priority,
    RareOptions,
    check_id,
    check_queue,
    is_utf8,
)
from jsq.model.key_group import check_key, check_per_key
from jsq.model.peer_terms import OPTION_TERMS, PeerTerms, peer_hint
from jsq.model.retry import Backoff, BackoffOption, build_backoff, check_retries
from jsq.model.unique import OnDuplicate, UniqueUntil, check_unique

MAX_TAGS = 20
MAX_HEADERS = 64
MAX_SLOTS = 10_000
MAX_HEADER_BYTES = 16_384

ENVELOPE_OPTIONS = (
    *("headers", "tags", "backoff", "retries", "timeout", "keep_result", "retry_for", "slots"),
    "keep_arguments",
)
"""The options that are sent with a job unchanged: `Job` has a field of the same name for each."""

RARE_OPTIONS = ("hard_timeout", "executor", "on_failure", "on_dead", "fallback")
"""The options that are sent with a job unchanged, and that few jobs have: the fields of `RareOptions`."""

CALLBACK_OPTIONS = RARE_OPTIONS[2:]

KEY_OPTIONS = ("key", "per_key")
"""Options that are sent apart from the others, because they differ from job to job; also fields of `Job`."""

_header = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


class JobOptions(TypedDict, total=False):
    """The options of jobs. None, or an option that is left out, means the declaration of the task.

    Durations are seconds, a `timedelta`, or text such as `"5m"`; times are aware `datetime`s.
    `queue`, `priority`: where the job waits, and before which others (high, normal, low).
    `headers`, `tags`: data for the task, and labels by which jobs are found.
    `retries`, `backoff`: how often the job is retried, and after which waits; see `App.task`.
    `retry_for`: the time for retries from the first start, or until a datetime. A later failure is final.
    `timeout`: the limit of each attempt.
    `hard_timeout`, `executor`: see `TaskOptions`; the function must be able to run there. A timeout does not
    exceed the hard timeout of the job.
    `on_failure`, `on_dead`, `fallback`: tasks, or their names, in place of those that the task declares.
    `keep_result`: how long the result is kept after the end; 0 keeps the outcome without the result.
    `keep_arguments`: whether the record of the ended job holds its arguments [yes]; False if the task or the
    queue has False.
    `deadline`: seconds from the submit, or a datetime; a job that has not ended by then ends as `expired`.
    `key`: the owner of the job, 1 to 256 characters; the keys of a queue take turns.
    `per_key`: how many jobs of the key run at once; with 1 one after the other, in the order of the submits.
    It has no effect without a key.
    `slots`: how many slots of its worker the job takes [1]; a job that needs more than there are runs alone.
    """

    queue: str | None
    priority: Priority | None
    headers: Mapping[str, str] | None
    tags: Iterable[str] | None
    retries: int | None
    backoff: BackoffOption | None
    retry_for: Duration | datetime | None
    timeout: Duration | None
    keep_result: Duration | None
    keep_arguments: bool | None
    deadline: Duration | datetime | None
    key: str | None
    per_key: int | None
    slots: int | None
    hard_timeout: Duration | None
    executor: ExecutorKind | None
    on_failure: NamedTask | str | None
    on_dead: NamedTask | str | None
    fallback: NamedTask | str | None


class SubmitOptions(JobOptions, total=False):
    """The options of one submit: these, and those of `JobOptions`.

    `delay` or `at`: the earliest start.
    `expires`: seconds from the submit, or a datetime; a job that has not started by then never starts, and is
    `expired`.
    `id`: the caller's own id, any printable text of 1 to 128 characters. A second submit with the same id
    returns the first job, marked as duplicate.
    `wait_for_room`: how long a submit to a full queue or server is retried, under the same id, before it
    raises `QueueFull` or `BrokerFull`. For a bulk submit the time starts again whenever a job was stored.
    `backoff_max`, `jitter`: the longest wait, and the random share of each wait (0 to 1), of the given or the
    declared backoff.
    `unique`: a key (text or bytes of any size), or True for all arguments: while one job of the task has it,
    no other is stored. False overrides the task's declaration.
    `unique_until`: the job holds the key until its `finish`, or until its `start`.
    `unique_for`: the job holds the key for this time from its submit, whatever happens to it (a second at
    least).
    `on_duplicate`: what happens if another job holds the key. `return` returns that job, marked as duplicate;
    `raise` raises `DuplicateJob`. `replace` replaces the job if it has not started. `keep_last` waits for its
    end, in the place of any other job that waits.
    `debounce`: start this long after the last submit of the key, with the arguments of that submit.
    `throttle`: store only the first submit of the key within this time.
    """

    delay: Duration | None
    at: datetime | None
    expires: Duration | datetime | None
    id: str | None
    wait_for_room: Duration | None
    backoff_max: Duration | None
    jitter: float | None
    unique: str | bytes | bool | None
    unique_until: UniqueUntil | None
    unique_for: Duration | None
    on_duplicate: OnDuplicate | None
    debounce: Duration | None
    throttle: Duration | None


@dataclass(frozen=True, slots=True)
class Options:
    """The checked options of one submit, durations in seconds; see `SubmitOptions`.

    `job_fields` holds the given options of `ENVELOPE_OPTIONS`, `KEY_OPTIONS` and `RARE_OPTIONS`, as fields of
    the `Job`.
    """

    queue: str | None = None
    priority: Priority | None = None
    delay: float | None = None
    at: datetime | None = None
    id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()
    retries: int | None = None
    backoff: Backoff | None = None
    timeout: float | None = None
    keep_result: float | None = None
    wait_for_room: float | None = None
    deadline: float | datetime | None = None
    key: str | None = None
    per_key: int | None = None
    expires: float | datetime | None = None
    retry_for: float | None = None
    retry_until: datetime | None = None
    unique: str | bytes | bool | None = None
    unique_until: UniqueUntil | None = None
    unique_for: float | None = None
    on_duplicate: OnDuplicate | None = None
    debounce: float | None = None
    throttle: float | None = None
    slots: int | None = None
    keep_arguments: bool | None = None
    hard_timeout: float | None = None
    executor: ExecutorKind | None = None
    on_failure: str | None = None
    on_dead: str | None = None
    fallback: str | None = None
    job_fields: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.queue is not None:
            check_queue(self.queue)
        if self.priority is not None and self.priority not in PRIORITIES:
            raise BadOption("priority", self.priority, f"must be one of {', '.join(PRIORITIES)}")
        if self.id is not None:
            check_id(self.id)
        if self.retries is not None:
            check_retries(self.retries)
        if self.delay is not None and self.at is not None:
            raise BadOption("at", self.at, "must not be combined with delay")
        check_seconds("delay", self.delay)
        check_seconds("timeout", self.timeout, least=0.001)
        check_hard_timeout(self.hard_timeout, self.timeout)
        check_executor(self.executor)
        check_seconds("keep_result", self.keep_result)
        check_seconds("wait_for_room", self.wait_for_room)
        check_moment("at", self.at)
        check_end("deadline", self.deadline)
        check_end("expires", self.expires)
        check_seconds("retry_for", self.retry_for, least=0.001)
        check_end("retry_for", self.retry_until)
        check_slots(self.slots)
        check_keep_arguments(self.keep_arguments)
        check_headers(self.headers)
        check_tags(self.tags)
        check_key(self.key)
        check_per_key(self.per_key)
        check_unique(
            self.unique,
            self.unique_until,
            self.unique_for,
            self.on_duplicate,
            self.debounce,
            self.throttle,
        )
        check_start(self)
        asked = ((name, getattr(self, name)) for name in (*ENVELOPE_OPTIONS, *KEY_OPTIONS))
        given = {name: value for name, value in asked if value is not None and value != () and value != {}}
        rare = {name: value for name in RARE_OPTIONS if (value := getattr(self, name)) is not None}
        if rare:
            given["rare"] = RareOptions(**rare)
        object.__setattr__(self, "job_fields", given)

    def due(self, now: datetime) -> datetime | None:
        """The time when the job may start, or None for at once."""
        if self.at is not None:
            return self.at.astimezone(UTC) if self.at > now else None
        wait = self.delay or (self.debounce if self.unique else None)
        return now + timedelta(seconds=wait) if wait else None

    def deadline_at_start(self, due: datetime | None, now: datetime) -> float | datetime | None:
        """The deadline as it is sent: a datetime, or seconds from when the job may start.

        Raises `BadOption` if it is before the start.
        """
        start = due or now
        if isinstance(self.deadline, datetime):
            if self.deadline <= start:
                rule = (
                    "must be in the future" if self.deadline <= now else "must be after the start of the job"
                )
                raise BadOption("deadline", self.deadline, rule)
            return self.deadline.astimezone(UTC)
        if self.deadline is None or due is None:
            return self.deadline
        left = self.deadline - (due - now).total_seconds()
        if left <= 0:
            raise BadOption("deadline", self.deadline, "must be after the start of the job")
        return left


_DURATIONS = {
    **dict.fromkeys(("timeout", "hard_timeout", "deadline", "expires", "retry_for", "debounce"), 0.001),
    **dict.fromkeys(("delay", "keep_result", "wait_for_room", "unique_for", "throttle"), 0.0),
}
"""The options that are durations, with the least number of seconds of each."""

_NAMES = (*SubmitOptions.__annotations__,)


def read_options(now: datetime, /, **written: Any) -> Options:
    """Read the options of one submit (`SubmitOptions`). Raises `BadOption`, `BadName`."""
    options = parse_options(**written)
    check_moments(options, now)
    return options


def parse_options(**written: Any) -> Options:
    """Read options without checks against the time. Raises `BadOption`, `BadName`."""
    given: dict[str, Any] = {name: value for name, value in written.items() if value is not None}
    check_known(given, _NAMES)
    for name, least in _DURATIONS.items():
        if isinstance(given.get(name), (timedelta, str)):
            given[name] = seconds(name, given[name], least=least)
    if isinstance(given.get("retry_for"), datetime):
        given["retry_until"] = given.pop("retry_for")
    shape, most, jitter = (given.pop(name, None) for name in ("backoff", "backoff_max", "jitter"))
    for name, value in (("backoff_max", most), ("jitter", jitter)):
        if shape is None and value is not None:
            raise BadOption(
                name,
                value,
                "must be used together with backoff: the declaration of the task is not known here",
            )
    given["tags"] = read_tags(given.get("tags", ()))
    for name in CALLBACK_OPTIONS:
        if name in given:
            given[name] = callback_name(name, given[name])
    read = Options(**given)
    return replace(read, backoff=build_backoff(shape, most, jitter)) if shape is not None else read


def check_key_given(options: Options) -> None:
    """Raises `BadOption` for `per_key` without a key, if no declaration can use it."""
    if options.per_key is not None and options.key is None:
        raise BadOption("per_key", options.per_key, "must be used together with key")


def check_hard_timeout(hard: float | None, timeout: float | None) -> None:
    """Raises `BadOption` for anything but a duration that is not below the timeout."""
    check_seconds("hard_timeout", hard, least=0.001)
    if hard is not None and timeout is not None and hard < timeout:
        raise BadOption("hard_timeout", hard, f"must not be below the timeout, {timeout:g} s")


def check_executor(executor: ExecutorKind | None) -> None:
    """Raises `BadOption` for an unknown executor."""
    if executor not in (None, *get_args(ExecutorKind)):
        raise BadOption("executor", executor, "must be async, thread or process")


def check_fallback(fallback: str | None, task: str) -> None:
    """Raises `BadOption` for a job whose fallback is its own task."""
    if fallback == task:
        raise BadOption("fallback", fallback, "must be another task")


def check_known(written: Mapping[str, object], known: Sequence[str], terms: PeerTerms = OPTION_TERMS) -> None:
    """Raises `BadOption` for an unknown option, and names the option that may be meant.

    `terms` are the options of other task queues that users may write instead of those of jsq.
    """
    for name in written:
        if name not in known:
            hint = peer_hint(terms, name) or near_hint(name, known)
            rule = f"there is no option {name}" + (f"; {hint}" if hint else "")
            raise BadOption(name, written[name], rule)


def misplaced_option_hint(names: Iterable[str]) -> str:
    """How to write an option that was given as an argument of a task; empty if no name is an option.

    Several task queues take options and arguments in one call; jsq keeps them apart.
    """
    for name in names:
        if name in _NAMES:
            return f"; to set the option {name}, write .options({name}=...).submit(...)"
        hint = peer_hint(OPTION_TERMS, name)
        if hint:
            return f"; to set an option, write .options(...).submit(...): {hint}"
    return ""


def near_hint(name: str, known: Sequence[str]) -> str:
    """A question for the known option that is spelled most like an unknown one; empty if none is."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"is {near[0]} meant?" if near else ""


def read_tags(tags: Iterable[str]) -> Sequence[str]:
    """Tags as a tuple. A text is not split into letters, but returned to be refused later."""
    return tags if isinstance(tags, str) else tuple(tags)


def check_moments(options: Options, now: datetime) -> None:
    """Raises `BadOption` for a time too far ahead, or for an end that has passed."""
    ends = {"deadline": options.deadline, "expires": options.expires, "retry_for": options.retry_until}
    for name, end in ends.items():
        if isinstance(end, datetime):
            if end <= now:
                raise BadOption(name, end, "must be in the future")
            check_not_too_far(name, end, now)
    if options.at is not None:
        check_not_too_far("at", options.at, now)


def check_not_too_far(name: str, moment: datetime, now: datetime) -> None:
    if (moment - now).total_seconds() > MAX_DURATION:
        raise BadOption(name, moment, f"must be at most {MAX_DURATION / 86_400:g} days ahead")


def check_start(options: Options) -> None:
    """Raises `BadOption` for a start time or an id that contradicts the unique options."""
    starts = {"delay": options.delay, "at": options.at}
    for name, value in starts.items():
        if value and options.unique and options.debounce is not None:
            raise BadOption(
                name, value, "must not be combined with debounce, which sets the start of the job"
            )
        if value and options.unique and options.on_duplicate == "keep_last":
            raise BadOption(
                name,
                value,
                "must not be combined with keep_last, whose jobs start at once or after another job",
            )
    if options.id is not None and options.unique and options.debounce is not None:
        raise BadOption(
            "id",
            options.id,
            "must not be combined with debounce, which merges many submits into the first job",
        )


def check_end(name: str, end: float | datetime | None) -> None:
    """Raises `BadOption` for an end that is neither a duration nor an aware datetime."""
    if isinstance(end, datetime):
        check_moment(name, end)
    else:
        check_seconds(name, end, least=0.001)


def check_slots(slots: int | None) -> None:
    if slots is None:
        return
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= MAX_SLOTS:
        raise BadOption("slots", slots, f"must be a whole number from 1 to {MAX_SLOTS:,}")


def check_keep_arguments(keep: bool | None) -> None:
    """Raises `BadOption` for anything but a bool or None."""
    if keep is not None and not isinstance(keep, bool):
        raise BadOption("keep_arguments", keep, "must be true or false")


def is_header_name(name: str) -> bool:
    """Whether a header of a job may have this name."""
    return _header.fullmatch(name) is not None and not name.lower().startswith(("nats-", "jsq-"))


def check_headers(headers: Mapping[str, str]) -> None:
    if not isinstance(headers, Mapping):
        raise BadOption("headers", headers, "must map names to values")
    if len(headers) > MAX_HEADERS:
        raise BadOption("headers", f"{len(headers)} headers", f"must be {MAX_HEADERS} at most")
    for name, value in headers.items():
        if not isinstance(name, str) or not _header.fullmatch(name):
            raise BadName("header", name, NAME_RULE)
        if name.lower().startswith(("nats-", "jsq-")):
            raise BadName("header", name, "a name that does not start with Nats- or Jsq-, which are reserved")
        if not isinstance(value, str) or not value.isprintable() or not is_utf8(value):
            raise BadOption(f"header {name}", value, "must be printable text of one line")
    size = len(json.dumps(dict(headers))) if headers else 0  # as they are sent: in ASCII, escaped
    if size > MAX_HEADER_BYTES:
        raise BadOption("headers", f"{size} bytes", f"must take {MAX_HEADER_BYTES} bytes at most")


def check_tags(tags: Sequence[str]) -> None:
    if isinstance(tags, str) or len(tags) > MAX_TAGS:
        raise BadOption("tags", tags, f"must be a list of {MAX_TAGS} tags at most")
    for tag in tags:
        if not isinstance(tag, str) or not tag.isprintable() or not 1 <= len(tag) <= 64 or not is_utf8(tag):
            raise BadOption("tags", tag, "must be printable texts of 1 to 64 characters")
