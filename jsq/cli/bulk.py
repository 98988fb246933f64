"""Submits one job for each line of stdin.

Input of up to `MAX_HELD_BYTES` is read and checked before the first job is sent, so a wrong line stops all
of them. Longer input is checked and sent in parts. A run that breaks off reports how many jobs are stored,
and from which line to go on.
"""

import asyncio
import contextlib
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from jsq.cli.errors import LinesRefused
from jsq.cli.printing import print_message
from jsq.cli.session import Session
from jsq.cli.stdin import STDIN, InputLine, Rejects, Source, checked
from jsq.cli.submission import Submission, print_id
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.codec.envelope import new_ids
from jsq.errors import (
    BadArguments,
    BadOption,
    BrokerError,
    BulkUnknown,
    DuplicateJob,
    JsqError,
    PartlySubmitted,
    SubmitUnknown,
    UsageError,
    count_noun,
)
from jsq.model.job import DEFAULT_QUEUE, check_id
from jsq.transport.batch_publish import MAX_COMMIT_MESSAGES
from jsq.transport.publish_many import AT_A_TIME

MAX_HELD_BYTES = 64 * 2**20
MAX_HELD_LINES = 500_000
"""The most bytes and lines of stdin that are read and checked before the first job is sent."""

INTERRUPT_GRACE_SECONDS = 2.0
"""Seconds after an interrupt in which the part that is being sent may be stored."""

MAX_LINE_NUMBER = 10**12


@dataclass(frozen=True, slots=True)
class BulkSubmitOptions:
    """How the lines of stdin are submitted."""

    all_or_nothing: Annotated[
        bool, typer.Option("--all-or-nothing", help="with -: store all lines or none; at most 1,000")
    ] = False
    id_prefix: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="with -: the ids are NAME-1, NAME-2 ...; no line is submitted twice"
        ),
    ] = ""
    rejects: Annotated[
        str, typer.Option(metavar="FILE", help="with -: write lines that were not stored to this file")
    ] = ""
    from_line: Annotated[int, typer.Option(metavar="N", help="with -: skip the lines before this one")] = 1
    check: Annotated[bool, typer.Option("--check", help="with -: check the lines and submit none")] = False

    def __post_init__(self) -> None:
        if self.from_line < 1:
            raise BadOption("--from-line", self.from_line, "must be 1 or more")
        if self.id_prefix:
            check_id(f"{self.id_prefix}-{MAX_LINE_NUMBER}")
        if self.all_or_nothing and (self.rejects or self.from_line > 1):
            raise UsageError("--all-or-nothing cannot be used with --rejects or --from-line")


@dataclass(slots=True)
class Tally:
    """The lines so far: the stored jobs, the last line that was read, and whether it was the last of all."""

    stored: list[JobHandle[Any]] = field(default_factory=list)
    count: int = 0
    read: int = 0
    jobs: int = 0
    ended: bool = False


def submit_lines(session: Session, submission: Submission, options: BulkSubmitOptions) -> None:
    """Submit stdin, and print the ids in the order of its lines."""
    if sys.stdin is None:
        raise UsageError(f"{STDIN} is closed")
    with Rejects(options.rejects) if options.rejects else contextlib.nullcontext() as rejects:
        intake = Intake(session, submission, options, rejects)
        try:
            if options.check:
                asyncio.run(intake.check())
            else:
                session.run(intake.run, submission.app)
        finally:
            intake.print_rest()
        if rejects is not None and rejects.count:
            raise LinesRefused(rejects.count, rejects.path)


class Intake:
    """One run over the lines."""

    def __init__(
        self, session: Session, submission: Submission, options: BulkSubmitOptions, rejects: Rejects | None
    ) -> None:
        self._session = session
        self._submission = submission
        self._options = options
        self._rejects = rejects
        self._tally = Tally()
        self._held: deque[InputLine] = deque()
        self._started = False
        # On a terminal the ids are printed after the progress bar, because they would break it.
        self._later = sys.stdout.isatty()

    async def run(self, client: Client) -> None:
        """Submit all lines. Raises the first error that does not belong to one line only."""
        with interruptible() as stop:
            try:
                await self._send_all(client, stop)
            except (BrokerError, UsageError):
                if self._started:
                    self._report()
                raise
            if stop.is_set():
                self._report()
                raise KeyboardInterrupt

    async def check(self) -> None:
        """Read all lines, and submit none."""
        with interruptible() as stop:
            async for lines in self._read(stop):
                for line in lines:
                    self._pass_over(line)
            if stop.is_set():
                raise KeyboardInterrupt
        wrong = self._rejects.count if self._rejects is not None else 0
        print_message(f"{count_noun(self._tally.jobs - wrong, 'line')} can be submitted")

    def print_rest(self) -> None:
        for handle in self._tally.stored if self._later else ():
            print_id(self._session, handle)

    # -- read --------------------------------------------------------------------------------------------

    async def _parts(self, stop: asyncio.Event) -> AsyncIterator[list[InputLine]]:
        """Lines to be sent together. The first ones come when all lines that fit into memory are checked."""
        size, holding = 0, True
        async for lines in self._read(stop):
            size += sum(len(line.raw) for line in lines)
            if self._rejects is None and holding:
                for line in lines:
                    self._pass_over(line)
            self._held += lines
            if self._options.all_or_nothing:
                check_atomic_size(len(self._held))
            fits = size < MAX_HELD_BYTES and len(self._held) < MAX_HELD_LINES
            if holding and (fits or self._options.all_or_nothing):
                continue
            holding = False
            while self._held:
                yield self._taken()
        while self._held and not stop.is_set():
            yield self._taken()

    async def _read(self, stop: asyncio.Event) -> AsyncIterator[list[InputLine]]:
        """The lines as they are read, checked. Empty lines, and those before `--from-line`, are skipped."""
        options, tally = self._options, self._tally
        async for raw in Source(sys.stdin.fileno()).pieces(stop):
            numbered = enumerate(raw, tally.read + 1)
            tally.read += len(raw)
            wanted = ((n, one) for n, one in numbered if n >= options.from_line and one.strip())
            lines = [checked(self._submission, n, one, options.id_prefix) for n, one in wanted]
            tally.jobs += len(lines)
            yield lines
        tally.ended = not stop.is_set()

    def _taken(self) -> list[InputLine]:
        return [self._held.popleft() for _ in range(min(len(self._held), AT_A_TIME))]

    def _pass_over(self, line: InputLine) -> bool:
        """Whether a line is wrong and written to the rejects file. Raises its error without such a file."""
        if line.wrong is None:
            return False
        if self._rejects is None:
            line.wrong.add_note(
                f"({'' if self._options.check else '--check '}--rejects FILE lists all such lines)"
            )
            raise line.wrong
        self._rejects.add(line, line.wrong)
        return True

    # -- send --------------------------------------------------------------------------------------------

    async def _send_all(self, client: Client, stop: asyncio.Event) -> None:
        with bulk_progress() as advance:
            async for lines in self._parts(stop):
                left = self._right_ones(lines)
                if left:
                    await self._send_or_stop(client, left, stop)
                advance(len(lines), self._tally.jobs if self._tally.ended else None)
                if stop.is_set():
                    break

    def _right_ones(self, lines: list[InputLine]) -> list[InputLine]:
        """The lines that are jobs. Raises the error of a wrong line, unless there is a rejects file."""
        try:
            return [line for line in lines if not self._pass_over(line)]
        except UsageError:
            self._held.extendleft(reversed(lines))
            raise

    async def _send_or_stop(self, client: Client, lines: list[InputLine], stop: asyncio.Event) -> None:
        """Send lines; after a stop, give them `INTERRUPT_GRACE_SECONDS`."""
        self._started = True
        sending = asyncio.ensure_future(self._send(client, lines))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((sending,), timeout=INTERRUPT_GRACE_SECONDS)
        finally:
            stopping.cancel()
            sending.cancel()
            await asyncio.wait((sending,))
        if not sending.cancelled():
            sending.result()

    async def _send(self, client: Client, lines: list[InputLine]) -> None:
        """Send some lines. A wrong one goes to the rejects file, if there is one; other errors are raised."""
        made = iter(new_ids(len(lines)))
        ids = [line.id or next(made) for line in lines]
        new = not any(line.id for line in lines)
        try:
            handles = await self._submission.submitter(client).submit_packed_many(
                [line.packed for line in lines],
                ids=ids,
                ids_are_new=new,
                all_or_nothing=self._options.all_or_nothing,
            )
        except PartlySubmitted as partly:
            await self._note_some(client, partly)
            self._note_refused(lines, ids, partly.refused)
            raise partly.refused[min(partly.refused)] from partly
        except BadArguments as error:
            self._report_first(lines[error.index])
            if self._rejects is None:
                self._held.extendleft(reversed(lines))
                raise
            self._rejects.add(lines[error.index], error)
            await self._send(client, [line for index, line in enumerate(lines) if index != error.index])
        except (BrokerError, DuplicateJob) as error:
            self._note_refused(lines, ids, dict.fromkeys(range(len(lines)), error))
            raise
        except asyncio.CancelledError:
            unknown: JsqError = SubmitUnknown(ids[0], INTERRUPT_GRACE_SECONDS, "interrupted")
            self._note_refused(lines, ids, dict.fromkeys(range(len(lines)), unknown))
            raise
        else:
            for handle in handles:
                self._note(handle)

    async def _note_some(self, client: Client, partly: PartlySubmitted) -> None:
        for id in partly.stored:
            self._note(client.jobs.handle(id, self._submission.options.queue or DEFAULT_QUEUE))

    def _note(self, handle: JobHandle[Any]) -> None:
        self._tally.count += 1
        if self._later:
            self._tally.stored.append(handle)
        else:
            print_id(self._session, handle)

    # -- what was not stored -----------------------------------------------------------------------------

    def _note_refused(self, lines: list[InputLine], ids: list[str], refused: Mapping[int, JsqError]) -> None:
        """Report lines that were not stored or may not have been, and keep them for the rejects file."""
        self._report_first(lines[min(refused)])
        gaps = len(lines) - min(refused) > len(refused)
        unknown = {
            index for index, error in refused.items() if isinstance(error, (SubmitUnknown, BulkUnknown))
        }
        if self._rejects is not None:
            for index in sorted(refused):
                self._rejects.add(lines[index], refused[index], ids[index] if index in unknown else "")
            return
        self._held.extendleft(lines[index] for index in sorted(refused, reverse=True))
        if (gaps or unknown) and not self._options.id_prefix:
            print_message(
                "some later lines are or may be stored: use --rejects or --id-prefix to submit none twice"
            )

    def _report_first(self, line: InputLine) -> None:
        print_message(f"{STDIN}: line {line.line} was the first to fail")

    def _report(self) -> None:
        """Report how many jobs are stored, and from which line to go on."""
        tally = self._tally
        of = f" of {count_noun(tally.jobs, 'job')}" if tally.ended else ""
        text = f"{tally.count:,}{of}" if of else count_noun(tally.count, "job")
        following = tally.read + 1
        if self._rejects is None and self._held:
            following = self._held[0].line
        more = not tally.ended or (self._rejects is None and bool(self._held))
        text += " stored for certain"
        if self._rejects is not None:
            for line in self._held:
                self._rejects.add(line, line.wrong or UsageError("the run ended before it"))
            text += (
                f"; {count_noun(self._rejects.count, 'line')} in {self._rejects.path} to be submitted again"
            )
        print_message(text + (f"; go on with --from-line {following}" if more else ""))


def check_atomic_size(count: int) -> None:
    """Raises `BadOption` for more lines than the server stores all or none."""
    if count > MAX_COMMIT_MESSAGES:
        rule = f"must be {MAX_COMMIT_MESSAGES:,} jobs at most; submit smaller parts"
        raise BadOption("--all-or-nothing", f"more than {MAX_COMMIT_MESSAGES:,} jobs", rule)


@contextlib.contextmanager
def interruptible() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C sets; the second one cancels the task."""
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()

    def interrupt() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield stop
    except asyncio.CancelledError:
        raise (KeyboardInterrupt if stop.is_set() else asyncio.CancelledError) from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextlib.contextmanager
def bulk_progress() -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr, if that is a terminal; gives a function that advances it."""
    if not sys.stderr.isatty():
        yield lambda count, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as shown:
        task = shown.add_task("jobs", total=None)
        yield lambda count, total: shown.update(task, advance=count, total=total)
