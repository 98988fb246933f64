"""The queues of `jsq worker --queues`: names, weights, `all`, and patterns such as `mail-*`."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from jsq.errors import BadOption, NotAllowed, UsageError
from jsq.settings import split_list
from jsq.transport.waiting import wait_for_server

ALL_NAMES = "all"

ChosenQueues = list[str] | dict[str, int]


def read_queues(text: str) -> ChosenQueues:
    """Names joined by commas, or names with weights; a name without one then has 1. Raises `BadOption`."""
    pairs = [part.partition("=")[::2] for part in split_list(text)]
    names = [name for name, _ in pairs]
    if "=" not in text:
        return names
    for name, weight in pairs:
        if names.count(name) > 1:
            raise BadOption("queues", text, f"must name {name} only once")
        if weight and not weight.isdecimal():
            raise BadOption(
                "queues", f"{name}={weight}", "must have whole numbers as weights, such as mail=3,default=1"
            )
    return {name: int(weight or 1) for name, weight in pairs}


def is_queue_pattern(name: str) -> bool:
    """Whether a name of `--queues` may be that of several queues."""
    return name == ALL_NAMES or "*" in name


async def find_queues(app: Any, chosen: ChosenQueues, *, wait: bool) -> ChosenQueues:
    """The chosen queues, with the queues that exist now in place of each pattern.

    They are those of the App and those on the server; with `wait`, waits for a server. A quarantine matches
    no pattern, because it has workers of its own. Raises `UsageError` for a pattern that matches no queue.
    """
    if not any(map(is_queue_pattern, chosen)):
        return chosen
    known = sorted({*app.queues, *await server_queues(app, wait=wait)})
    found: dict[str, int] = {}
    for name in chosen:
        pattern = "*" if name == ALL_NAMES else name
        names = [one for one in known if fnmatchcase(one, pattern)] if is_queue_pattern(name) else [name]
        if not names:
            raise UsageError(f"--queues: no queue matches {name}; the queues are {', '.join(known)}")
        weight = chosen[name] if isinstance(chosen, Mapping) else 1
        for one in names:
            found.setdefault(one, weight)
    return found if isinstance(chosen, Mapping) else list(found)


async def server_queues(app: Any, *, wait: bool) -> list[str]:
    """The queues on the server that are no quarantine; none if the login may not list them."""
    try:
        stats = await wait_for_server(
            app.client.queues.stats, lambda error: None, seconds=None if wait else 0.0
        )
    except NotAllowed:
        return []
    apart = {one.settings.quarantine for one in stats}
    return [one.queue for one in stats if one.queue not in apart]
