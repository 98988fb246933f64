"""A job for people: its arguments, times, result and attempts, without the internal fields of its record.

`-o json` prints the whole record.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jsq.cli.escaping import json_text, safe
from jsq.cli.printing import Printer, document
from jsq.errors import count_noun
from jsq.model.attempts import JobAttempt
from jsq.model.job import JobRecord

MAX_SHOWN = 240
"""Characters of a result or of arguments; a longer value is replaced by its size."""


def job_fields(job: JobRecord, attempts: Sequence[JobAttempt] = ()) -> dict[str, str]:
    """The fields of a job in the order in which they are shown; empty ones are not shown."""
    fields = {
        "id": job.id,
        "state": job.state,
        "task": job.task,
        "queue": job.queue,
        "key": job.key,
        "tags": ", ".join(job.tags),
        "headers": json_text(dict(job.headers)) if job.headers else "",
        "arguments": arguments_text(job),
        "options": brief(document(job.options), "-o json shows them") if job.options else "",
        "attempt": attempt_text(job),
        **counts_of(job),
        "worker": job.worker,
        "quarantine": job.quarantine,
        **times_of(job),
        "progress": progress_text(job),
        "reason": job.reason,
        "error": job.error,
        "traceback": job.traceback.rstrip(),
        "fallback": job.fallback,
        "result": brief(job.result, f"jsq job result {job.id}") if job.has_result else "",
        "result dropped": job.result_dropped,
        "attempts": "\n".join(attempt_line(attempt) for attempt in attempts),
    }
    return {name: safe(text, lines=True) for name, text in fields.items()}


def counts_of(job: JobRecord) -> dict[str, str]:
    """How many workers of the job crashed, and how often its attempts were interrupted, if ever."""
    counts = {"crashes": job.crashes, "interruptions": job.interruptions}
    return {name: str(count) for name, count in counts.items() if count}


def times_of(job: JobRecord) -> dict[str, str]:
    """The moments of a job, and for how long it waited and ran."""
    last = job.at if job.at not in (job.submitted, job.started) and job.ended is None else None
    return {
        "submitted": moment_text(job.submitted),
        "due": moment_text(job.due),
        "expires": moment_text(job.expires),
        "started": moment_text(job.started),
        "ended": moment_text(job.ended),
        "changed": moment_text(last),
        "waited": seconds_text(job.waited),
        "ran": seconds_text(job.ran),
    }


def moment_text(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z"


def seconds_text(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.3f} s"


def attempt_text(job: JobRecord) -> str:
    """`2 of 4`; without the total if only the worker knows how many retries the task declares."""
    retries = job.options.get("retries")
    if not job.attempt or not isinstance(retries, int):
        return str(job.attempt or "")
    return f"{job.attempt} of {max(job.attempt, retries + 1)}"


def progress_text(job: JobRecord) -> str:
    """How far a running job is, in percent and in the words of its task."""
    if job.progress is None:
        return ""
    return f"{job.progress:.0%} {job.text}".rstrip()


def arguments_text(job: JobRecord) -> str:
    """The arguments as a call writes them: `1, b=2`."""
    if job.arguments_hash:
        return f"{size_text(job.arguments_size)}, not in the record"
    return call_text(job.arguments) if job.has_arguments else ""


def call_text(arguments: Any) -> str:
    """Arguments as a call writes them, or their number and size if they are long."""
    positional, named = split_arguments(arguments)
    parts = [json_text(value) for value in positional]
    parts += [f"{name}={json_text(value)}" for name, value in named.items()]
    text = ", ".join(parts) or "none"
    if len(text) <= MAX_SHOWN:
        return text
    return f"{count_noun(len(parts), 'argument')}, {size_text(len(text.encode()))}; -o json shows them"


def split_arguments(arguments: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The positional and the named ones of the arguments of a record."""
    if isinstance(arguments, Mapping):
        return [], arguments
    if isinstance(arguments, list) and len(arguments) == 2 and isinstance(arguments[1], Mapping):
        return arguments[0], arguments[1]
    return arguments if isinstance(arguments, list) else [arguments], {}


def brief(value: Any, command: str) -> str:
    """A value as JSON, or its size and the command that prints it: `200 items, 14 KB; jsq job result ID`."""
    text = json_text(value)
    if len(text) <= MAX_SHOWN:
        return text
    kinds: dict[type[Any], str] = {list: "item", dict: "field", str: "character"}
    parts = [count_noun(len(value), kinds[type(value)])] if type(value) in kinds else []
    return f"{', '.join([*parts, size_text(len(text.encode()))])}; {command}"


def size_text(size: int) -> str:
    """A size in bytes, in its largest unit."""
    for unit, least in (("MB", 1_000_000), ("KB", 1_000)):
        if size >= least:
            return f"{size / least:,.0f} {unit}"
    return f"{size:,} bytes"


def attempt_line(attempt: JobAttempt) -> str:
    """One attempt: its number, its end, its worker, its start and its run time, and why it failed."""
    return "  ".join(word for word in attempt_fields(attempt) if word)


def attempt_fields(attempt: JobAttempt) -> Iterator[str]:
    yield from (str(attempt.number), attempt.state, attempt.worker)
    if attempt.started is not None:
        yield f"{attempt.started:%Y-%m-%d %H:%M:%S}Z"
    yield seconds_text(attempt.ran)
    yield attempt.reason
    yield attempt.error.partition("\n")[0]


def print_job(printer: Printer, job: JobRecord, attempts: Sequence[JobAttempt] | None = None) -> None:
    """Print a job, with its attempts if they are given."""
    times = {"ended": job.ended, "waited": job.waited, "ran": job.ran, "attempts": attempts}
    more = {} if attempts is None else times
    printer.one(job, more=more, fields=job_fields(job, attempts or ()) if printer.shows_tables else None)
