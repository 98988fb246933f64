"""`jsq submit`: one job from the command line, or one for each line of stdin."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, TypeAlias

import typer

from jsq.cli.bulk import Manner, submit_lines
from jsq.cli.errors import Duplicate
from jsq.cli.job import print_result
from jsq.cli.loading import load_app
from jsq.cli.parsing import (
    Call,
    read_backoff,
    read_call,
    read_deadline,
    read_duration,
    read_moment,
    read_pairs,
    read_value,
)
from jsq.cli.printing import say
from jsq.cli.session import Session, command
from jsq.cli.submission import Submission, print_id, submission_of
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.errors import UsageError
from jsq.model.options import check_key_given, read_options

Texts: TypeAlias = list[str] | None


def duration(told: str) -> Any:
    return typer.Option(parser=read_duration, metavar="DURATION", help=told)


def several(metavar: str, told: str) -> Any:
    return typer.Option(metavar=metavar, help=f"{told}; may be repeated")


@command
def submit(
    session: Session,
    task: Annotated[str, typer.Argument(metavar="TASK", help="the task's name")],
    args: Annotated[Texts, typer.Argument(metavar="ARG", help="positional, or - for JSON lines")] = None,
    arg: Annotated[Texts, several("NAME=VALUE", "a named argument")] = None,
    json: Annotated[
        str | None, typer.Option(metavar="JSON", help="all arguments: an object or a list")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="take every argument as text, not as JSON")] = False,
    app: Annotated[
        str, typer.Option(metavar="MODULE:APP", help="what declares the task: check and submit as it says")
    ] = "",
    queue: Annotated[str | None, typer.Option(metavar="QUEUE", help="the queue [default]")] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="WHICH", help="high, normal or low [normal]")
    ] = None,
    delay: Annotated[float | None, duration("start it after 90 (seconds), 5m, 1h30m, 2d")] = None,
    at: Annotated[
        datetime | None,
        typer.Option(parser=read_moment, metavar="MOMENT", help="start it at 2030-12-31T18:00Z"),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="never start it later: 90, 5m or 2030-12-31T18:00Z"),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="end it as expired then: 90, 5m or 2030-12-31T18:00Z"),
    ] = None,
    id: Annotated[
        str | None, typer.Option(metavar="ID", help="an id of your own: under it there is one job")
    ] = None,
    unique: Annotated[
        str | None, typer.Option(metavar="KEY", help="one job of the task with this key at a time")
    ] = None,
    unique_until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="it holds the key until finish or start [finish]")
    ] = None,
    unique_for: Annotated[float | None, duration("it holds the key for so long, come what may")] = None,
    on_duplicate: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="where the key is held: return that job, raise (exit 6), replace, keep_last [return]",
        ),
    ] = None,
    debounce: Annotated[float | None, duration("start when no job of the key came for so long")] = None,
    throttle: Annotated[float | None, duration("of the key's jobs within it, only the first")] = None,
    fail_on_duplicate: Annotated[
        bool, typer.Option("--fail-on-duplicate", help="exit with 6 if the id or the key was taken")
    ] = False,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="whose job it is: the keys of a queue take turns")
    ] = None,
    per_key: Annotated[
        int | None, typer.Option(metavar="N", help="jobs of its key that run at once; 1: in their order")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="how many of its worker's slots it takes [1]")
    ] = None,
    timeout: Annotated[float | None, duration("how long an attempt may take")] = None,
    retries: Annotated[
        int | None, typer.Option(metavar="N", help="how often it is tried again [as the task says]")
    ] = None,
    backoff: Annotated[
        str | None, typer.Option(metavar="HOW", help="none, linear, exponential, or waits: 1,5,30")
    ] = None,
    backoff_max: Annotated[float | None, duration("the longest wait of the backoff")] = None,
    jitter: Annotated[
        float | None, typer.Option(metavar="SHARE", help="share of each wait left to chance, 0 to 1")
    ] = None,
    retry_for: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="no retry after 1h from its first start, or 2030-12-31T18:00Z"),
    ] = None,
    header: Annotated[Texts, several("NAME=VALUE", "a header")] = None,
    tag: Annotated[Texts, several("TAG", "a tag")] = None,
    keep_result: Annotated[float | None, duration("how long to keep the result")] = None,
    wait_for_room: Annotated[
        float | None, duration("where the queue is full, try again for so long [fail at once]")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait for the result, and print it")] = False,
    wait_timeout: Annotated[float | None, duration("with --wait: no longer than this [for ever]")] = None,
    all_or_nothing: Annotated[
        bool, typer.Option("--all-or-nothing", help="with -: all lines or none, 1,000 at most")
    ] = False,
    batch: Annotated[
        str, typer.Option(metavar="NAME", help="with -: ids NAME-1, NAME-2 ...: a line is submitted once")
    ] = "",
    rejects: Annotated[
        str, typer.Option(metavar="FILE", help="with -: where to write what was not stored, to be read again")
    ] = "",
    from_line: Annotated[int, typer.Option(metavar="N", help="with -: pass over the lines before it")] = 1,
    check: Annotated[bool, typer.Option("--check", help="with -: check the lines, submit none")] = False,
) -> None:
    """Submit a job, and print its id.

    Each ARG and VALUE is read as JSON if it is JSON, else taken as text: 5 is a number, "5" and five are
    texts. What begins with a dash goes behind --.

    With - as the only ARG, each line of stdin is one job: an object of named arguments, or a list of
    positional ones. If any line is wrong, nothing is submitted. The ids come in the order of the lines.
    Of more than 64 MiB (or 500,000 lines) each part is checked before it is sent: --check reads all first.

    A run that broke off tells how many jobs stand, and from which line to go on. With --batch no line is
    submitted twice. With --rejects what was not stored is written down, wrong lines too; the others go on.

    \b
    jsq submit send you@example.com --arg subject=hi --wait
    jsq submit add --delay 5m --id tea --json '{"a": 1, "b": 2}'
    jsq submit add -- -1 2
    jsq submit add - --batch sums --rejects left.jsonl < sums.jsonl
    """
    manner = Manner(batch, rejects, from_line, check, all_or_nothing)
    declaring = load_app(app) if app else None
    waits: Any = read_backoff(backoff)
    if waits is None and declaring is not None and (backoff_max, jitter) != (None, None):
        waits = declaring.find(task).declaration.retry.backoff
    options = read_options(
        queue=queue,
        priority=priority,
        delay=delay,
        at=at,
        id=id,
        headers=read_pairs("--header", header or ()),
        tags=tag or (),
        retries=retries,
        backoff=waits,
        backoff_max=backoff_max,
        jitter=jitter,
        retry_for=read_deadline(retry_for),
        timeout=timeout,
        keep_result=keep_result,
        wait_for_room=wait_for_room,
        deadline=read_deadline(deadline),
        key=key,
        per_key=per_key,
        expires=read_deadline(expires),
        unique=unique,
        unique_until=unique_until,
        unique_for=unique_for,
        on_duplicate=on_duplicate,
        debounce=debounce,
        throttle=throttle,
        slots=slots,
    )
    check_key_given(options)
    order = submission_of(task, options, declaring)
    if args == ["-"] and not raw:
        if arg or json is not None or id is not None or wait:
            raise UsageError("- submits many jobs: it goes without --arg, --json, --id and --wait")
        return submit_lines(session, order, manner)
    if manner != Manner():
        raise UsageError("--all-or-nothing, --batch, --rejects, --from-line and --check go with - only")
    if wait_timeout is not None and not wait:
        raise UsageError("--wait-timeout goes with --wait; what ends an attempt is --timeout")
    packed = order.pack(read_arguments(args or (), read_pairs("--arg", arg or ()), json, raw=raw))
    if wait:
        return submit_and_wait(session, order, packed, wait_timeout)
    handle = session.run(lambda client: order.submitter(client).send(packed), order.app)
    print_id(session, handle)
    return tell_duplicate(handle, fail=fail_on_duplicate)


def read_arguments(args: Sequence[str], named: dict[str, str], json: str | None, *, raw: bool) -> Call:
    if "-" in args and not raw:
        raise UsageError("- stands alone: it reads the arguments of many jobs from stdin")
    if json is not None:
        if args or named:
            raise UsageError("--json gives all arguments: it goes without ARG and --arg")
        return read_call(json, "--json")
    read = str if raw else read_value
    return Call([read(text) for text in args], {name: read(text) for name, text in named.items()})


def submit_and_wait(session: Session, order: Submission, packed: bytes, timeout: float | None) -> None:
    async def work(client: Client) -> Any:
        handle = await order.submitter(client).send(packed)
        if session.verbose:
            say(f"job {handle.id}")
        tell_duplicate(handle)
        return await client.jobs.handle(handle.id, handle.queue).result(timeout)  # the JSON value

    print_result(session, lambda: session.run(work, order.app))


def tell_duplicate(handle: JobHandle[Any], *, fail: bool = False) -> None:
    if handle.duplicate and fail:
        raise Duplicate(handle.id)
    if handle.duplicate:
        say(f"duplicate: job {handle.id} was submitted before")
