"""What one submit may ask for: each option is declared here, once.

`SubmitOptions` is how users write them, `Options` what was read and checked of it. A new option is a line in
each, and a field of `Job` where it travels with the job (`ENVELOPE_OPTIONS`).
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from jsq.errors import MAX_DURATION, BadName, BadOption, Duration, check_moment, check_seconds, seconds
from jsq.model.job import NAME_RULE, PRIORITIES, Priority, check_id, check_queue, is_utf8
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
"""The options that travel with a job as they were asked: `Job` has a field of the same name for each."""

KEY_OPTIONS = ("key", "per_key")
"""Those that travel apart from the others, for they differ from job to job: fields of `Job` as well."""

_header = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


class JobOptions(TypedDict, total=False):
    """What may be written for jobs; None, like what is left out, leaves it to the task's declaration.

    Durations are seconds, a `timedelta`, or text such as `"5m"`; moments are aware `datetime`s.

    `queue`, `priority`: where the job waits, and whether before others (high, normal, low).
    `headers`, `tags`: what travels with it for the task and for who looks for it.
    `retries`, `backoff`: how often it is tried again, and after which waits; see `App.task`.
    `retry_for`: from its first start, or until a moment: no failure is tried again after that.
    `timeout`: for each attempt.
    `keep_result`: from its end; 0 keeps the outcome without the result.
    `keep_arguments`: whether the job's record holds its arguments once it has ended [yes]. False where the
    task or the queue says False.
    `deadline`: from the submit, or a moment: by then the job is to have ended, else it ends as `expired`.
    `key`: whose job it is, 1 to 256 characters: the keys of a queue take turns, however many jobs each has.
    `per_key`: how many jobs of its key run at once; with 1 one after the other, in the order of the submits.
    Without a key it says nothing.
    `slots`: how many of its worker's slots it takes [1]; one that needs more than there are runs alone.
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


class SubmitOptions(JobOptions, total=False):
    """What may be written for one submit: this, and what `JobOptions` tells.

    `delay` or `at`: it starts no earlier.
    `expires`: from the submit, or a moment: a job that has not begun by then never does, and is `expired`.
    `id`: the caller's own, any printable text of 1 to 128 characters: the same id gives the same job back,
    marked as duplicate.
    `wait_for_room`: a submit that finds the queue or the server full is tried again for so long, under the
    same id, before it raises `QueueFull` or `BrokerFull`. A bulk counts it anew whenever some was stored.
    `backoff_max`, `jitter`: the longest wait, and the share of each that is left to chance (0 to 1): of the
    backoff that is given here, or else declared.
    `unique`: a key (text or bytes of any size), or True for all arguments: while one job of the task has it,
    no other is stored. False where the task's declaration is not to hold.
    `unique_until`: the key is held to the job's `finish`, or to its `start`; or `unique_for` so long from its
    submit, whatever becomes of it (a second at least).
    `on_duplicate`: a submit that meets the key's holder is to `return` that (marked as duplicate), to `raise`
    `DuplicateJob`, to `replace` it if it has not begun, or to `keep_last`: to wait for its end, in the place
    of any other that does.
    `debounce`: starts so long after the last submit of its key, with the arguments of that one.
    `throttle`: of the submits of its key within so long only the first is stored.
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
    """How one job is to be submitted and run, durations in seconds; see `SubmitOptions`.

    `job_fields` holds those of `ENVELOPE_OPTIONS` and `KEY_OPTIONS` that were given: the fields of its `Job`.
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
        object.__setattr__(self, "job_fields", given)

    def due(self, now: datetime) -> datetime | None:
        """The moment the job may start, or None for at once."""
        if self.at is not None:
            return self.at.astimezone(UTC) if self.at > now else None
        wait = self.delay or (self.debounce if self.unique else None)
        return now + timedelta(seconds=wait) if wait else None

    def deadline_at_start(self, due: datetime | None, now: datetime) -> float | datetime | None:
        """The deadline as it travels: a moment, or seconds from when the job may start.

        Raises `BadOption` for one before that.
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
    **dict.fromkeys(("timeout", "deadline", "expires", "retry_for", "debounce"), 0.001),
    **dict.fromkeys(("delay", "keep_result", "wait_for_room", "unique_for", "throttle"), 0.0),
}
"""The options that are durations, and the least seconds of each."""

_NAMES = (*SubmitOptions.__annotations__,)


def read_options(now: datetime, /, **written: Any) -> Options:
    """Options of one submit as a user wrote them (`SubmitOptions`). Raises `BadOption`, `BadName`."""
    options = parse_options(**written)
    check_moments(options, now)
    return options


def parse_options(**written: Any) -> Options:
    """Options as a user wrote them, whatever the time. Raises `BadOption`, `BadName`."""
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
    read = Options(**given)
    return replace(read, backoff=build_backoff(shape, most, jitter)) if shape is not None else read


def check_key_given(options: Options) -> None:
    """Raises `BadOption` for a number of jobs of no key, where no task says it for those that have one."""
    if options.per_key is not None and options.key is None:
        raise BadOption("per_key", options.per_key, "must be used together with key")


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
    """How to write an option that was given among the arguments of a task; empty if none of the names is one.

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
    """Tags as a tuple. A text is left whole, to be refused: it is one tag, not many of one letter."""
    return tags if isinstance(tags, str) else tuple(tags)


def check_moments(options: Options, now: datetime) -> None:
    """Raises `BadOption` for a moment too far ahead, or for an end that has passed."""
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
    """Raises `BadOption` where a moment to start at, or an id, is given to a job that has others' in view."""
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
    """Raises `BadOption` for an end that is neither a duration nor a moment with a time zone."""
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
    """Raises `BadOption` for what is neither a flag nor left out."""
    if keep is not None and not isinstance(keep, bool):
        raise BadOption("keep_arguments", keep, "must be true or false")


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
    size = len(json.dumps(dict(headers))) if headers else 0  # as they travel: in ASCII, escaped
    if size > MAX_HEADER_BYTES:
        raise BadOption("headers", f"{size} bytes", f"must take {MAX_HEADER_BYTES} bytes at most")


def check_tags(tags: Sequence[str]) -> None:
    if isinstance(tags, str) or len(tags) > MAX_TAGS:
        raise BadOption("tags", tags, f"must be a list of {MAX_TAGS} tags at most")
    for tag in tags:
        if not isinstance(tag, str) or not tag.isprintable() or not 1 <= len(tag) <= 64 or not is_utf8(tag):
            raise BadOption("tags", tag, "must be printable texts of 1 to 64 characters")
