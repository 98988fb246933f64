"""Many jobs of one submit: each by itself, or all or none."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jsq.broker import Broker
from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.client.handle import JobHandle
from jsq.codec.signature import Signature
from jsq.errors import BadOption, PartlySubmitted, SubmitUnknown
from jsq.model.job import Job, check_id, new_ids


async def submit_bulk(
    broker: Broker,
    pattern: Job,
    packed: Sequence[bytes],
    due: datetime | None,
    patience: WaitForRoom | None,
    *,
    ids: Sequence[str] | None,
    anew: bool,
    all_or_nothing: bool,
    signature: Signature | None,
) -> list[JobHandle[Any]]:
    """Submit a job like `pattern` for each of some arguments; see `Client.submit_many`.

    Ids that are `anew` were made for these jobs, and never sent before.
    """
    names = new_ids(len(packed)) if ids is None else check_ids(ids, len(packed))
    anew = anew or ids is None
    known = set[str]() if anew else await broker.jobs.known(pattern.queue, names)
    calls = [(id, arguments) for id, arguments in zip(names, packed, strict=True) if id not in known]
    if all_or_nothing:
        known |= await _stored_whole(broker, pattern, calls, due, patience)
    else:
        known |= await _stored_each(broker, pattern, calls, due, patience, names, anew=anew)
    return [JobHandle(broker, id, pattern.queue, signature=signature, duplicate=id in known) for id in names]


async def _stored_whole(
    broker: Broker,
    pattern: Job,
    calls: Sequence[tuple[str, bytes]],
    due: datetime | None,
    patience: WaitForRoom | None,
) -> set[str]:
    """Store jobs, all or none; returns the ids of those which stood before."""
    stood = await broker.atomic.submit(pattern, calls, due, patience)
    return {calls[place][0] for place in stood}


async def _stored_each(
    broker: Broker,
    pattern: Job,
    calls: Sequence[tuple[str, bytes]],
    due: datetime | None,
    patience: WaitForRoom | None,
    names: Sequence[str],
    *,
    anew: bool,
) -> set[str]:
    """Store jobs, each by itself; returns the ids of those which stood before.

    Raises an error that tells of all those that were not.
    """
    refused, stood = await broker.bulk.submit(pattern, calls, due, patience, anew=anew)
    if not refused:
        return {calls[place][0] for place in stood}
    unknown = any(isinstance(error, SubmitUnknown) for error in refused.values())
    if len(refused) == len(names) and (len(names) == 1 or not unknown):
        raise refused[0]
    errors = {calls[place][0]: error for place, error in refused.items()}
    stored = [id for id in names if id not in errors]
    raise PartlySubmitted(stored, {place: errors[id] for place, id in enumerate(names) if id in errors})


def check_ids(ids: Sequence[str], count: int) -> Sequence[str]:
    """Raises `BadOption` for ids that are not one for each call, `BadName` for what is none."""
    if isinstance(ids, str) or not isinstance(ids, Sequence) or len(ids) != count:
        raise BadOption("ids", ids, f"it takes a list with an id for each of the {count:,} calls")
    for id in ids:
        check_id(id)
    if len(set(ids)) < count:
        twice = next(id for place, id in enumerate(ids) if id in ids[:place])
        raise BadOption("ids", twice, "it is given twice: an id is one job's")
    return ids
