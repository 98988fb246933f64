"""Bulk submits: each job is stored by itself, or all jobs or none."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from jsq.broker import Broker
from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.client.submit_hooks import SubmitMiddleware, report_submitted, submit_inside
from jsq.errors import BadArguments, BadOption, BrokerError, JsqError, PartlySubmitted, SubmitUnknown
from jsq.model.job import Job, check_id
from jsq.model.options import Options

CallArguments: TypeAlias = Sequence[object] | Mapping[str, object]
"""The arguments of one call: a list of positional arguments, or a dictionary of named ones."""

Pack: TypeAlias = Callable[[Sequence[object], Mapping[str, object]], bytes]

_NO_NAMES: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class Bulk:
    """Jobs that equal `pattern` except for their ids and arguments.

    `ids_are_new` means that the ids were made for these jobs, and were never sent before.
    """

    pattern: Job
    due: datetime | None
    room: WaitForRoom | None
    ids: Sequence[str]
    ids_are_new: bool

    async def store(self, broker: Broker, packed: Sequence[bytes], *, all_or_nothing: bool) -> set[str]:
        """Store a job for each item of `packed`; returns the ids of the jobs that were stored before."""
        known = set[str]()
        if not self.ids_are_new:
            known = await broker.job_reader.known_ids(self.pattern.queue, self.ids)
        calls = [(id, arguments) for id, arguments in zip(self.ids, packed, strict=True) if id not in known]
        if all_or_nothing:
            indexes = await broker.atomic.submit(self.pattern, calls, self.due, self.room)
            return known | {calls[index][0] for index in indexes}
        return known | await self._store_each(broker, calls)

    async def _store_each(self, broker: Broker, calls: Sequence[tuple[str, bytes]]) -> set[str]:
        """Store jobs, each by itself; returns the ids of the jobs that were stored before.

        Raises `PartlySubmitted`, or the first error itself if no job was stored.
        """
        refused, stored_before = await broker.bulk.submit(
            self.pattern, calls, self.due, self.room, ids_are_new=self.ids_are_new
        )
        if not refused:
            return {calls[index][0] for index in stored_before}
        unknown = any(isinstance(error, SubmitUnknown) for error in refused.values())
        if len(refused) == len(self.ids) and (len(self.ids) == 1 or not unknown):
            raise refused[0]
        errors = {calls[index][0]: error for index, error in refused.items()}
        stored = [id for id in self.ids if id not in errors]
        by_index = {index: errors[id] for index, id in enumerate(self.ids) if id in errors}
        raise PartlySubmitted(stored, by_index)


async def store_prepared(
    broker: Broker,
    middleware: tuple[SubmitMiddleware, ...],
    bulk: Bulk,
    packed: Sequence[bytes],
    *,
    all_or_nothing: bool,
) -> set[str]:
    """Store the jobs of a bulk as its middleware returns them; returns the ids that were stored before."""
    jobs = [
        replace(bulk.pattern, id=id, arguments=arguments)
        for id, arguments in zip(bulk.ids, packed, strict=True)
    ]

    async def store(prepared: Sequence[Job]) -> set[str]:
        return await store_parts(broker, middleware, bulk, prepared, all_or_nothing=all_or_nothing)

    return await submit_inside(middleware, jobs, store)


async def store_parts(
    broker: Broker,
    middleware: tuple[SubmitMiddleware, ...],
    bulk: Bulk,
    jobs: Sequence[Job],
    *,
    all_or_nothing: bool,
) -> set[str]:
    """Store jobs; those that follow each other and differ only in their ids and arguments together.

    Returns the ids of the jobs that were stored before.
    """
    parts = [
        (replace(bulk, pattern=like, ids=[job.id for job in part]), [job.arguments for job in part])
        for like, part in alike(jobs)
    ]
    if all_or_nothing and len(parts) > 1:
        rule = "must not be set if the middleware gives the jobs different headers or options"
        raise BadOption("all_or_nothing", all_or_nothing, rule)
    known, refused = set[str](), dict[int, JsqError]()
    start = 0
    for part, arguments in parts:
        try:
            known |= await part.store(broker, arguments, all_or_nothing=all_or_nothing)
        except PartlySubmitted as error:
            refused |= {start + place: one for place, one in error.refused.items()}
        except BrokerError as error:
            if len(parts) == 1:
                raise
            refused |= dict.fromkeys(range(start, start + len(arguments)), error)
        start += len(arguments)
    stored = [job for place, job in enumerate(jobs) if place not in refused]
    report_submitted(middleware, [job for job in stored if job.id not in known])
    if refused:
        raise PartlySubmitted([job.id for job in stored], refused)
    return known


def alike(jobs: Iterable[Job]) -> list[tuple[Job, list[Job]]]:
    """Runs of jobs that differ only in their ids and arguments, each with a pattern of its jobs."""
    found: list[tuple[Job, list[Job]]] = []
    for job in jobs:
        pattern = replace(job, id="", arguments=b"")
        if found and found[-1][0] == pattern:
            found[-1][1].append(job)
        else:
            found.append((pattern, [job]))
    return found


def check_ids(ids: Sequence[str], count: int) -> Sequence[str]:
    """Raises `BadOption` unless there is one id for each call, `BadName` for a wrong id."""
    if isinstance(ids, str) or not isinstance(ids, Sequence) or len(ids) != count:
        raise BadOption("ids", ids, f"must be a list with an id for each of the {count:,} calls")
    for id in ids:
        check_id(id)
    if len(set(ids)) < count:
        twice = next(id for index, id in enumerate(ids) if id in ids[:index])
        raise BadOption("ids", twice, "must be unique; one id is given twice")
    return ids


def check_many(options: Options) -> None:
    """Raises `BadOption` for options that the jobs of a bulk submit cannot share."""
    if options.id is not None:
        raise BadOption(
            "id", options.id, "must not be set for many jobs; use ids=, or submit the job by itself"
        )


def check_unique_many(options: Options, *, own_ids: bool, all_or_nothing: bool) -> None:
    """Raises `BadOption` for unique jobs with `all_or_nothing` or with ids of their own."""
    if not options.unique:
        return
    if all_or_nothing:
        raise BadOption(
            "all_or_nothing",
            all_or_nothing,
            "must not be combined with unique: unique jobs are stored one by one",
        )
    if own_ids:
        raise BadOption("unique", options.unique, "must not be combined with ids= or map")


def pack_calls(task: str, calls: Iterable[CallArguments], pack: Pack, before: int = 0) -> list[bytes]:
    """The encoded arguments of many calls; `before` is the number of calls that were sent before these.

    Raises `BadArguments` with the position of the wrong call.
    """
    packed: list[bytes] = []
    try:
        for args, named in split_calls(task, calls):
            packed.append(pack(args, named))
    except BadArguments as error:
        index = before + len(packed)
        raise BadArguments(f"call {index:,}, counted from 0: {error}", index) from error
    return packed


def split_calls(
    task: str, calls: Iterable[CallArguments]
) -> Iterator[tuple[Sequence[object], Mapping[str, object]]]:
    """Calls as positional and named arguments. Raises `BadArguments`."""
    for call in calls:
        if isinstance(call, (list, tuple)):
            yield call, _NO_NAMES
        elif isinstance(call, Mapping):
            yield (), call
        else:
            kind = type(call).__name__
            raise BadArguments(
                f"{task}: each call must be a list of arguments or a dictionary of named ones, got {kind}; "
                "one argument is written [argument]"
            )
