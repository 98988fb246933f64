"""Many jobs of one submit: each stored by itself, or all or none."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from jsq.broker import Broker
from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.errors import BadArguments, BadOption, PartlySubmitted, SubmitUnknown
from jsq.model.job import Job, check_id
from jsq.model.options import Options

CallArguments: TypeAlias = Sequence[object] | Mapping[str, object]
"""The arguments of one of many jobs: a list of positional ones, or a dictionary of named ones."""

Pack: TypeAlias = Callable[[Sequence[object], Mapping[str, object]], bytes]

_NO_NAMES: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class Bulk:
    """Jobs that are like `pattern`, but for their ids and arguments.

    `ids_are_new` says that the ids were made for these jobs, and never sent before.
    """

    pattern: Job
    due: datetime | None
    room: WaitForRoom | None
    ids: Sequence[str]
    ids_are_new: bool

    async def store(self, broker: Broker, packed: Sequence[bytes], *, all_or_nothing: bool) -> set[str]:
        """Store a job for each of the arguments; returns the ids of those that were stored before."""
        known = set[str]()
        if not self.ids_are_new:
            known = await broker.job_reader.known_ids(self.pattern.queue, self.ids)
        calls = [(id, arguments) for id, arguments in zip(self.ids, packed, strict=True) if id not in known]
        if all_or_nothing:
            places = await broker.atomic.submit(self.pattern, calls, self.due, self.room)
            return known | {calls[place][0] for place in places}
        return known | await self._store_each(broker, calls)

    async def _store_each(self, broker: Broker, calls: Sequence[tuple[str, bytes]]) -> set[str]:
        """Store jobs, each by itself; returns the ids of those that were stored before.

        Raises `PartlySubmitted`, or the one error where no job was stored.
        """
        refused, stood = await broker.bulk.submit(
            self.pattern, calls, self.due, self.room, ids_are_new=self.ids_are_new
        )
        if not refused:
            return {calls[place][0] for place in stood}
        unknown = any(isinstance(error, SubmitUnknown) for error in refused.values())
        if len(refused) == len(self.ids) and (len(self.ids) == 1 or not unknown):
            raise refused[0]
        errors = {calls[place][0]: error for place, error in refused.items()}
        stored = [id for id in self.ids if id not in errors]
        places = {place: errors[id] for place, id in enumerate(self.ids) if id in errors}
        raise PartlySubmitted(stored, places)


def check_ids(ids: Sequence[str], count: int) -> Sequence[str]:
    """Raises `BadOption` for anything but one id for each call, `BadName` for a wrong id."""
    if isinstance(ids, str) or not isinstance(ids, Sequence) or len(ids) != count:
        raise BadOption("ids", ids, f"it takes a list with an id for each of the {count:,} calls")
    for id in ids:
        check_id(id)
    if len(set(ids)) < count:
        twice = next(id for place, id in enumerate(ids) if id in ids[:place])
        raise BadOption("ids", twice, "it is given twice: an id is one job's")
    return ids


def check_many(options: Options) -> None:
    """Raises `BadOption` for options that many jobs cannot have together."""
    if options.id is not None:
        raise BadOption("id", options.id, "an id is one job's: submit that by itself")


def check_unique_many(options: Options, *, own_ids: bool, all_or_nothing: bool) -> None:
    """Raises `BadOption` for unique jobs that are to be stored other than each by itself."""
    if not options.unique:
        return
    if all_or_nothing:
        raise BadOption("all_or_nothing", all_or_nothing, "unique jobs are stored each by itself")
    if own_ids:
        raise BadOption("unique", options.unique, "what has ids of its own, or is mapped, has no keys")


def pack_calls(task: str, calls: Iterable[CallArguments], pack: Pack, before: int = 0) -> list[bytes]:
    """The arguments of many calls, packed; `before` is the number of calls that went before these.

    Raises `BadArguments`, which names the place of the wrong call.
    """
    packed: list[bytes] = []
    try:
        for args, named in split_calls(task, calls):
            packed.append(pack(args, named))
    except BadArguments as error:
        place = before + len(packed)
        raise BadArguments(f"call {place:,} of many: {error}", place) from error
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
                f"{task}: it takes a list of arguments, or a dictionary of named ones: no {kind}"
            )
