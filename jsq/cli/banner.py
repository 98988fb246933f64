"""The banner of `jsq worker`: what the worker is, and what it runs, on stderr."""

import os
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import jsq
from jsq.cli.escaping import safe
from jsq.cli.printing import print_message
from jsq.settings import QueueSettings

BANNER_FILE = "_JSQ_BANNER"
"""The variable with the path of a file. The worker process that creates it prints the banner."""

MOST_NAMES = 30
"""Names of tasks and schedules that the banner lists."""

WIDTH = 100


def claim_banner() -> bool:
    """Whether this process prints the banner: of the processes of one supervisor the first does."""
    path = os.environ.get(BANNER_FILE)
    if path is None:
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except OSError:
        return False
    return True


def print_banner(worker: Any) -> None:
    """Print the banner of a worker that is ready."""
    app, resources = worker.app, worker.resources
    server = resources.broker.wire.server.version
    settings, address = worker.settings, app.client.login.shown
    ahead = f", {settings.prefetch} ahead" if settings.prefetch else ""
    lines = [
        f"jsq {jsq.__version__}, nats-server {server} at {address}, namespace {app.namespace}",
        f"  slots: {settings.concurrency}{ahead}",
    ]
    strict = ", each before the next" if settings.strict else ""
    lines.append(f"  queues{strict}:")
    lines += [f"    {queue_line(one, resources.queues[one], worker.weights)}" for one in worker.queues]
    lines += name_lines("tasks", app.tasks)
    lines += name_lines("functions", app.functions.patterns)
    lines += name_lines("schedules", app.schedules)
    print_message("\n".join(lines))


def queue_line(queue: str, settings: QueueSettings, weights: Mapping[str, int]) -> str:
    """A queue, with its weight and the settings that differ from the defaults."""
    changed = [
        f"{name}={safe(str(value))}"
        for name, value in settings.as_dict().items()
        if value != QueueSettings.defaults[name]
    ]
    weight = [f"weight={weights[queue]}"] if queue in weights else []
    return "  ".join([queue, *weight, *changed])


def name_lines(what: str, names: Iterable[str]) -> list[str]:
    """The names of one kind, in lines; no lines if there are no names."""
    found = sorted(names)
    if not found:
        return []
    more = [f"and {len(found) - MOST_NAMES} more"] if len(found) > MOST_NAMES else []
    text = f"{what}: " + ", ".join([*found[:MOST_NAMES], *more])
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
