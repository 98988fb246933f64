"""Submitting one job for each line of stdin.

Every line is read and checked before the first job is sent: a wrong one stops all of them.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jsq.broker.bulk import AT_A_TIME
from jsq.cli.order import Order, print_id
from jsq.cli.printing import say
from jsq.cli.reading import Call, read_calls
from jsq.cli.session import Session
from jsq.cli.writing import counted
from jsq.client import Client
from jsq.errors import BadArguments, BrokerError, JsqError, PartlySubmitted, UsageError
from jsq.handle import JobHandle
from jsq.job import DEFAULT_QUEUE

STDIN = "standard input"

Note = Callable[[JobHandle[Any]], None]


def submit_lines(session: Session, order: Order) -> None:
    """Submit stdin, and print the ids in the order of its lines."""
    if sys.stdin is None:
        raise UsageError(f"{STDIN} is closed")
    lines = [(line, pack_line(order, line, call)) for line, call in read_calls(sys.stdin.buffer, STDIN)]
    stored: list[JobHandle[Any]] = []
    # On a terminal the ids wait for the end of the progress bar, which would be torn by them.
    later = sys.stdout.isatty()

    def note(handle: JobHandle[Any]) -> None:
        stored.append(handle)
        if not later:
            print_id(session, handle)

    try:
        session.run(lambda client: send_all(client, order, lines, note), order.app)
    except (JsqError, KeyboardInterrupt):
        say(f"{len(stored):,} of {counted(len(lines), 'job')} stored for certain")
        raise
    finally:
        for handle in stored if later else ():
            print_id(session, handle)


def pack_line(order: Order, line: int, call: Call) -> bytes:
    try:
        return order.pack(call)
    except BadArguments as error:
        raise BadArguments(f"{STDIN}: line {line}: {error}") from error


async def send_all(client: Client, order: Order, lines: Sequence[tuple[int, bytes]], note: Note) -> None:
    """Send the jobs batch by batch. What of a batch was stored is noted before its first error is raised."""
    with progress(len(lines)) as advance:
        for start in range(0, len(lines), AT_A_TIME):
            batch = lines[start : start + AT_A_TIME]
            try:
                handles = await order.send_many(client, [arguments for _, arguments in batch])
            except PartlySubmitted as partly:
                for id in partly.stored:
                    note(await client.job(id, order.options.queue or DEFAULT_QUEUE))
                place = min(partly.refused)
                say(f"{STDIN}: line {batch[place][0]} was the first to fail")
                raise partly.refused[place] from partly
            except (BrokerError, BadArguments) as error:
                place = error.place if isinstance(error, BadArguments) else 0
                say(f"{STDIN}: line {batch[place][0]} was the first to fail")
                raise
            for handle in handles:
                note(handle)
            advance(len(batch))


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if a person looks at that; gives what moves it on."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as shown:
        task = shown.add_task("jobs", total=total)
        yield lambda count: shown.advance(task, count)
