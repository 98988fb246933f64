"""Submitting jobs: of declared tasks, of tasks known by name only, and of both with options.

`SubmitTarget` holds the properties of a task that a submit needs. `Submitter` binds it to a connection and
options.
"""

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Generic, Literal, ParamSpec, TypeVar, Unpack, overload

from jsq.broker import Broker
from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.broker.jobs.messages import JobTemplate
from jsq.broker.submit.unique import SubmitResult, UniqueSubmit
from jsq.client.blocking import BlockingWrapper
from jsq.client.bulk import (
    Bulk,
    CallArguments,
    check_ids,
    check_many,
    check_unique_many,
    pack_calls,
    store_prepared,
)
from jsq.client.connection import Connection
from jsq.client.flows import Step
from jsq.client.handle import BlockingJobHandle, JobHandle
from jsq.client.map import MapOptions, Mapped, Results
from jsq.client.submit_hooks import SubmitMiddleware, report_submitted, submit_inside
from jsq.codec.envelope import new_id, new_ids
from jsq.codec.signature import Signature, pack_call
from jsq.errors import JobError, PartlySubmitted
from jsq.model.expiry import expiry_time
from jsq.model.job import DEFAULT_QUEUE, Job, check_id, check_queue, check_task
from jsq.model.options import Options, SubmitOptions, check_fallback, check_key_given, read_options
from jsq.model.peer_terms import SUBMIT_TERMS, explain_missing
from jsq.model.unique import arguments_key, unique_hash, unique_request

P = ParamSpec("P")
R = TypeVar("R")


OPTIONS_OF_ONE_JOB = (
    *("id", "delay", "at", "deadline", "expires", "wait_for_room"),
    *("unique", "debounce", "throttle"),
)
"""Options that make a job differ from the submitter's other jobs, or that need more than one message."""


class SubmitTarget:
    """The task of a submit, known by its name only; `jsq.task` has the subclass for a declared task.

    `queue` is the queue of jobs whose submit names none, `middleware` is that of the task.
    """

    signature: Signature | None = None
    middleware: tuple[SubmitMiddleware, ...] = ()

    def __init__(self, name: str, queue: str = DEFAULT_QUEUE) -> None:
        self.name = check_task(name)
        self.queue = queue

    def pack(self, args: Sequence[object], named: Mapping[str, object]) -> bytes:
        """Encode the arguments of a call. Raises `BadArguments`."""
        return pack_call(args, named)

    def read_options(self, given: Mapping[str, Any]) -> Options:
        """Read the options that a user wrote. Raises `BadOption`, `BadName`."""
        options = read_options(datetime.now(UTC), **given)
        check_key_given(options)
        check_fallback(options.fallback, self.name)
        return options

    def with_key(self, options: Options, packed: bytes) -> Options:
        """The options with the unique key of one job, if the key is made of the job's arguments."""
        return options


class Submitter(Generic[P, R]):
    """Submits jobs of one task: `client.task("emails.send")`, `add.options(delay=60)`, or a task itself.

    `P` is the parameters of a submit, `R` the type of a job's result.
    """

    def __init__(
        self,
        connection: Connection,
        target: SubmitTarget,
        options: Options,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.target = target
        self._connection = connection
        self._options = options
        self._given = given or {}
        self._is_plain = not any(getattr(options, name) for name in OPTIONS_OF_ONE_JOB)
        self._template: JobTemplate | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.target.name

    @property
    def blocking(self) -> "BlockingSubmitter[P, R]":
        """This submitter for callers without an event loop: its methods block."""
        return BlockingSubmitter(self, self._connection.portal, self.name)

    def options(self, **options: Unpack[SubmitOptions]) -> "Submitter[P, R]":
        """A submitter with options: `send.options(delay="5m", priority="high").submit("a@b.c")`.

        `SubmitOptions` lists the options. An option that is left out keeps the value of this submitter, or
        else the value that the task declares. Raises `BadOption`, `BadName`.
        """
        given = {**self._given, **options}
        return Submitter(self._connection, self.target, self.target.read_options(given), given)

    def s(self, *args: Any, **kwargs: Any) -> Step[R]:
        """A step of a workflow. It takes the result of the step before it as its first argument.

        `chain(fetch.s(url), publish.s(to="cdn"))` calls `publish(result, to="cdn")`. The first step of a
        workflow takes only its own arguments. See the guide's page on workflows.
        """
        return Step(self.target, self._options, args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Step[R]:
        """A step of a workflow that takes only its own arguments, and no result."""
        return Step(self.target, self._options, args, kwargs, takes_result=False)

    def job(self, id: str, queue: str = "*") -> JobHandle[R]:
        """The handle of a job of this task, by its id. The result has the type that the task returns.

        Sends nothing: the methods of the handle raise `JobNotFound` if there is no such job. Raises
        `BadName`.
        """
        check_id(id)
        place = queue if queue == "*" else check_queue(queue)
        return JobHandle(self._connection, id, place, signature=self.target.signature)

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Submit a job. Returns once the server has stored it.

        Raises `BadArguments` before anything is sent; `QueueFull`, `BrokerFull`, `BrokerUnavailable`,
        `NotAllowed` if the job was not stored; `SubmitUnknown` if jsq cannot know whether it was stored.
        """
        return await self.submit_packed(self.target.pack(args, kwargs))

    async def submit_many(
        self,
        calls: Iterable[CallArguments],
        *,
        ids: Sequence[str] | None = None,
        all_or_nothing: bool = False,
    ) -> list[JobHandle[R]]:
        """Submit a job for each call, such as `[(1, 2), {"a": 3, "b": 4}]`: positional or named arguments.

        All calls are checked before the first is sent. The handles are in the order of the calls. Ten
        thousand jobs take about a tenth of a second. Raises `BadArguments`, and `PartlySubmitted` if some
        jobs were not stored, or may not have been stored, for example because the queue became full. Each
        `SubmitUnknown` in it has the id of its job.

        With `all_or_nothing` either all jobs are stored or none, whatever fails. The limit is 1,000 jobs and
        32 MiB in all; more raise `BadOption`. If jsq cannot know the result, it raises `BulkUnknown` with the
        `ids` of the jobs.

        `ids` are ids of your own, one for each call. If this queue has a job with the same id already, the
        call is not submitted again, and its handle is a `duplicate`. So a bulk submit that broke off can be
        repeated. The check covers the 7 days that records are kept, and, unlike the `id` of one submit, this
        queue only.
        """
        packed = pack_calls(self.name, calls, self.target.pack)
        return await self.submit_packed_many(packed, ids=ids, all_or_nothing=all_or_nothing)

    @overload
    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: Literal[False] = False,
        **how: Unpack[MapOptions],
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool,
        **how: Unpack[MapOptions],
    ) -> Results[R | JobError]: ...

    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Results[Any]:
        """Submit a job for each call and return the results: `async for result in add.map([(1, 2), (3, 4)])`,
        or all results in a list with `await`.

        A call is a list of positional arguments, a dictionary of named ones, or else the one argument itself.
        Jobs are submitted a window at a time, so the number of calls has no limit, and they may come from a
        generator. The results are in the order of the calls, and need no subscription each; see `MapOptions`.

        The first job without a result raises the error that `JobHandle.result` raises. With
        `return_exceptions` that error takes the place of the result. Raises the errors of `submit_many` when
        it submits the window with the wrong call.
        """
        options = self._options
        check_many(options)
        check_unique_many(options, own_ids=True, all_or_nothing=False)
        queue = options.queue or self.target.queue
        mapped = Mapped(
            self._connection.broker,
            queue,
            self._send_window,
            calls,
            return_exceptions=return_exceptions,
            **how,
        )
        return Results(mapped)

    async def submit_packed(self, packed: bytes) -> JobHandle[R]:
        """Submit a job whose arguments are packed; see `submit`."""
        if not self._is_plain:
            return await self._send_with_options(packed)
        broker = self._connection.open_broker() or await self._connection.broker()
        template = self._template
        if template is None:
            if self._middleware():
                self._is_plain = False
                return await self._send_with_options(packed)
            pattern = build_job("", self.target, b"", self._options)
            self._template = template = broker.job_writer.template(pattern)
        id = new_id()
        await broker.job_writer.submit_like(template, id, packed)
        return JobHandle(self._connection, id, template.job.queue, signature=self.target.signature)

    async def _send_with_options(self, packed: bytes) -> JobHandle[R]:
        """Submit a job with an option that makes it differ from the other jobs of this submitter."""
        options = self.target.with_key(self._options, packed)
        broker = self._connection.open_broker() or await self._connection.broker()
        job, due = await build_timed_job(broker, options.id or new_id(), self.target, packed, options)
        middleware = self._middleware()
        if not middleware:
            return await self._store(broker, job, due, options)

        async def store(prepared: Sequence[Job]) -> JobHandle[R]:
            return await self._store(broker, prepared[0], due, options, middleware)

        return await submit_inside(middleware, [job], store)

    async def _store(
        self,
        broker: Broker,
        job: Job,
        due: datetime | None,
        options: Options,
        middleware: tuple[SubmitMiddleware, ...] = (),
    ) -> JobHandle[R]:
        """Store a job, which is due at once or later."""
        if options.unique:
            placed = await broker.unique.submit(unique_submit(job, due, options))
            report_submitted(middleware, [] if placed.duplicate else [job])
            return self._handle_of(placed)
        queue, duplicate = job.queue, False
        if options.id is None:
            await broker.job_writer.submit(job, due, room_of(options))
        else:
            queue, duplicate = await broker.job_writer.submit_once(job, due, room_of(options))
        report_submitted(middleware, [] if duplicate else [job])
        return JobHandle(
            self._connection, job.id, queue, signature=self.target.signature, duplicate=duplicate
        )

    async def submit_packed_many(
        self,
        packed: Sequence[bytes],
        *,
        ids: Sequence[str] | None = None,
        ids_are_new: bool = False,
        all_or_nothing: bool = False,
    ) -> list[JobHandle[R]]:
        """Submit jobs whose arguments are packed; see `submit_many`.

        `ids_are_new` means that the ids were made for these jobs, and were never sent before.
        """
        options = self._options
        check_many(options)
        own_ids = ids is not None and not ids_are_new
        check_unique_many(options, own_ids=own_ids, all_or_nothing=all_or_nothing)
        if options.unique:
            return await self._send_each(packed)
        broker = await self._connection.broker()
        pattern, due = await build_timed_job(broker, "", self.target, b"", options)
        names = new_ids(len(packed)) if ids is None else check_ids(ids, len(packed))
        bulk = Bulk(pattern, due, room_of(options), names, not own_ids)
        if middleware := self._middleware():
            known = await store_prepared(broker, middleware, bulk, packed, all_or_nothing=all_or_nothing)
        else:
            known = await bulk.store(broker, packed, all_or_nothing=all_or_nothing)
        signature = self.target.signature
        return [
            JobHandle(self._connection, id, pattern.queue, signature=signature, duplicate=id in known)
            for id in names
        ]

    async def _send_each(self, packed: Sequence[bytes]) -> list[JobHandle[R]]:
        """Submit unique jobs, each by itself and with its own key; jobs with the same key in their order."""
        broker = await self._connection.broker()
        middleware = self._middleware()
        jobs: list[Job] = []
        timed: list[tuple[datetime | None, Options]] = []
        for arguments in packed:
            options = self.target.with_key(self._options, arguments)
            job, due = await build_timed_job(broker, new_id(), self.target, arguments, options)
            jobs.append(job)
            timed.append((due, options))

        async def store(prepared: Sequence[Job]) -> list[JobHandle[R]]:
            pairs = zip(prepared, timed, strict=True)
            return await self._store_unique(broker, [unique_submit(job, *one) for job, one in pairs])

        return await submit_inside(middleware, jobs, store) if middleware else await store(jobs)

    async def _store_unique(self, broker: Broker, requests: Sequence[UniqueSubmit]) -> list[JobHandle[R]]:
        """Store unique jobs. Raises `PartlySubmitted`, or the first error itself if no job was stored."""
        placed, refused = await broker.unique.submit_each(requests)
        if refused and (not placed or len(requests) == 1):
            raise refused[min(refused)]
        stored = [placed[place] for place in sorted(placed)]
        new = [requests[place].job for place in sorted(placed) if not placed[place].duplicate]
        report_submitted(self._middleware(), new)
        if refused:
            raise PartlySubmitted([one.id for one in stored], refused)
        return [self._handle_of(one) for one in stored]

    async def _send_window(
        self, calls: Sequence[CallArguments], ids: Sequence[str], before: int, /
    ) -> list[JobHandle[R]]:
        packed = pack_calls(self.name, calls, self.target.pack, before)
        return await self.submit_packed_many(packed, ids=ids, ids_are_new=True)

    def forget_template(self) -> None:
        """Make the template of plain jobs again at the next submit: the connection uses another namespace."""
        self._template = None

    def _middleware(self) -> tuple[SubmitMiddleware, ...]:
        """The middleware of the submitted jobs, the outermost first."""
        app = self._connection.app
        of_app = () if app is None else app.middleware.find(self._options.queue or self.target.queue)
        return of_app + self.target.middleware

    def _handle_of(self, placed: SubmitResult) -> JobHandle[R]:
        """The handle of the job that a unique submit stored or found."""
        return JobHandle(
            self._connection,
            placed.id,
            placed.queue,
            signature=self.target.signature,
            duplicate=placed.duplicate,
        )


class BlockingSubmitter(BlockingWrapper[Submitter[P, R]], Generic[P, R]):
    """A `Submitter` whose methods block."""

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> BlockingJobHandle[R]:
        """As `Submitter.submit`."""
        return self._call(self._wrapped.submit(*args, **kwargs), "submit").blocking

    def submit_packed(self, packed: bytes) -> BlockingJobHandle[R]:
        """As `Submitter.submit_packed`."""
        return self._call(self._wrapped.submit_packed(packed), "submit").blocking

    def submit_many(
        self,
        calls: Iterable[CallArguments],
        *,
        ids: Sequence[str] | None = None,
        all_or_nothing: bool = False,
    ) -> list[BlockingJobHandle[R]]:
        """As `Submitter.submit_many`."""
        submitting = self._wrapped.submit_many(calls, ids=ids, all_or_nothing=all_or_nothing)
        return [handle.blocking for handle in self._call(submitting, "submit_many")]

    @overload
    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: Literal[False] = False,
        **how: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool,
        **how: Unpack[MapOptions],
    ) -> Iterator[R | JobError]: ...

    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Iterator[Any]:
        """As `Submitter.map`: an iterator over the results."""
        results = self._wrapped.map(calls, return_exceptions=return_exceptions, **how)
        return self._iterate(results, "map")


explain_missing(Submitter, SUBMIT_TERMS)
explain_missing(BlockingSubmitter, SUBMIT_TERMS)


def build_job(id: str, target: SubmitTarget, arguments: bytes, options: Options) -> Job:
    """The job that a submit asks for, without its deadline and its expiry."""
    queue, priority = options.queue or target.queue, options.priority or "normal"
    return Job(
        id, target.name, queue, priority, arguments, retry_until=options.retry_until, **options.job_fields
    )


async def build_timed_job(
    broker: Broker, id: str, target: SubmitTarget, arguments: bytes, options: Options
) -> tuple[Job, datetime | None]:
    """The job that a submit asks for, and when it may start by the server's clock; None means at once.

    Raises `BadOption`.
    """
    job = build_job(id, target, arguments, options)
    if not (options.delay or options.at or options.deadline or options.expires or options.debounce):
        return job, None
    await broker.expiry.now(job.queue)  # reads the server's clock if it is not known yet
    now = broker.wire.clock.moment()
    due = options.due(now)
    job = replace(job, deadline=options.deadline_at_start(due, now))
    if options.expires is None:
        return job, due
    expiry_time(options.expires, due, now)
    return replace(job, expires=await broker.expiry.moment(options.expires, job.queue)), due


def unique_submit(job: Job, due: datetime | None, options: Options) -> UniqueSubmit:
    """The request of a submit whose job has a unique key."""
    key = options.unique or True
    hashed = unique_hash(job.task, arguments_key(job.arguments) if isinstance(key, bool) else key)
    unique = unique_request(
        hashed,
        options.unique_until,
        options.unique_for,
        options.on_duplicate,
        options.debounce,
        options.throttle,
    )
    job = replace(job, unique=hashed if unique.on_duplicate == "keep_last" else "")
    return UniqueSubmit(job, due, unique, room_of(options), once=options.id is not None)


def room_of(options: Options) -> WaitForRoom | None:
    """How long a submit waits for room on its queue, counted from now."""
    return WaitForRoom(options.wait_for_room) if options.wait_for_room else None
