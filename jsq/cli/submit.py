"""`jsq submit`: submit one job from the command line, or one for each line of stdin."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jsq.app import App
from jsq.cli.bulk import BulkSubmitOptions, submit_lines
from jsq.cli.errors import Duplicate
from jsq.cli.job import print_result
from jsq.cli.loading import load_app
from jsq.cli.options import Texts, command
from jsq.cli.printing import print_message
from jsq.cli.session import Session
from jsq.cli.submission import Submission, print_id, submission_of
from jsq.cli.submit_options import (
    AppPath,
    ArgumentOptions,
    JobSettings,
    Seconds,
    TaskName,
    TimeOptions,
    UniqueOptions,
    duration,
)
from jsq.cli.waiting import report_submit_by_name, waiting_shown
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.declaration import OF_SUBMIT as DECLARABLE
from jsq.errors import UsageError
from jsq.model.options import Options, check_key_given, read_options

Args = Annotated[Texts, typer.Argument(metavar="ARG", help="positional arguments, or - for JSON lines")]
Raw = Annotated[bool, typer.Option("--raw", help="take every argument as text, not as JSON")]


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """Whether to wait for the result."""

    wait: Annotated[bool, typer.Option("--wait", help="wait for the result, and print it")] = False
    wait_timeout: Annotated[
        Seconds, duration("with --wait: the longest wait; the job continues [no limit]")
    ] = None


@command
def submit(
    session: Session,
    task: TaskName,
    args: Args = None,
    *,
    arguments: ArgumentOptions,
    raw: Raw = False,
    app: AppPath = "",
    settings: JobSettings,
    times: TimeOptions,
    uniqueness: UniqueOptions,
    waiting: WaitOptions,
    lines: BulkSubmitOptions,
) -> None:
    """Submit a job, and print its id.

    Each ARG and VALUE is read as JSON if it is JSON, else taken as text: 5 is a number, "5" and five are
    texts. Put arguments that start with a dash after --.

    With - as the only ARG, each line of stdin is one job: an object of named arguments, or a list of
    positional ones. If a line is wrong, no job is submitted. The ids are printed in the order of the lines.
    Input of more than 64 MiB or 500,000 lines is checked and sent in parts; --check reads all of it first.

    A bulk submit that breaks off reports how many jobs are stored, and from which line to go on. With
    --id-prefix no line is submitted twice. With --rejects, lines that were not stored are written to a file.

    \b
    jsq submit send you@example.com --arg subject=hi --wait
    jsq submit add --delay 5m --id tea --json '{"a": 1, "b": 2}'
    jsq submit add --json @arguments.json
    jsq submit add -- -1 2
    jsq submit add - --id-prefix sums --rejects left.jsonl < sums.jsonl
    """
    declaring = load_app(app) if app else None
    options = submit_options_of(task, declaring, settings, times, uniqueness)
    submission = submission_of(task, options, declaring)
    if args == ["-"] and not raw:
        if arguments.given or uniqueness.id is not None or waiting.wait:
            raise UsageError("- submits many jobs: use it without --arg, --json, --id and --wait")
        return submit_lines(session, submission, lines)
    check_single(args or (), lines, waiting, raw=raw)
    packed = submission.pack(arguments.call(args or (), raw=raw))
    if waiting.wait:
        return submit_and_wait(session, submission, packed, waiting.wait_timeout)
    handle = session.run(lambda client: submit_one(client, submission, packed), submission.app)
    print_id(session, handle)
    return report_duplicate(handle, fail=uniqueness.raises)


def check_single(args: Sequence[str], lines: BulkSubmitOptions, waiting: WaitOptions, *, raw: bool) -> None:
    """Raises `UsageError` for options that a submit of one job does not have."""
    if lines != BulkSubmitOptions():
        raise UsageError("--all-or-nothing, --id-prefix, --rejects, --from-line and --check need -")
    if waiting.wait_timeout is not None and not waiting.wait:
        raise UsageError("--wait-timeout limits the wait for a result: give --wait too")
    if "-" in args and not raw:
        raise UsageError("- must be the only ARG: it reads the arguments of many jobs from stdin")


def submit_options_of(
    task: str, app: App | None, settings: JobSettings, times: TimeOptions, uniqueness: UniqueOptions
) -> Options:
    """The options of a job, checked. Raises `UsageError`."""
    values = settings.values() | times.values() | uniqueness.values()
    shaped = times.backoff_max is not None or times.jitter is not None
    if values["backoff"] is None and app is not None and shaped:
        values["backoff"] = app.find(task).declaration.retry.backoff
    options = read_options(datetime.now(UTC), **values)
    check_key_given(options)
    return options


async def submit_one(client: Client, submission: Submission, packed: bytes) -> JobHandle[Any]:
    """Submit a job, and warn about a task that is known by its name only."""
    handle = await submission.submitter(client).submit_packed(packed)
    if submission.app is None:
        given = {name for name in DECLARABLE if getattr(submission.options, name) not in (None, ())}
        await report_submit_by_name(client, submission.target.name, handle.queue, given)
    return handle


def submit_and_wait(session: Session, submission: Submission, packed: bytes, timeout: float | None) -> None:
    async def work(client: Client) -> Any:
        handle = await submit_one(client, submission, packed)
        if session.verbose:
            print_message(f"job {handle.id}")
        report_duplicate(handle)
        async with waiting_shown(client, handle.id, handle.queue):
            return await client.jobs.handle(handle.id, handle.queue).result(timeout)  # the JSON value

    print_result(session, lambda: session.run(work, submission.app))


def report_duplicate(handle: JobHandle[Any], *, fail: bool = False) -> None:
    if handle.duplicate and fail:
        raise Duplicate(handle.id)
    if handle.duplicate:
        print_message(f"duplicate: job {handle.id} was submitted before")
