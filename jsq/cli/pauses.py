"""`jsq queue pause | resume | set`: what is held back on a queue, and what it is set to."""

from typing import Annotated, Any

import typer

from jsq.cli.parsing import read_deadline, read_duration
from jsq.cli.session import Session, command
from jsq.errors import UsageError
from jsq.model.pause import Pause
from jsq.settings import QueueSettings

NONE = "none"

Queue = Annotated[str, typer.Argument(metavar="QUEUE", help="the queue's name")]
Task = Annotated[str | None, typer.Option(metavar="TASK", help="only the jobs of this task")]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="only the jobs with this key")]


@command
def pause(
    session: Session,
    queue: Queue,
    task: Task = None,
    key: Key = None,
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="it ends then: a moment, or a duration from now")
    ] = None,
) -> None:
    """Have no job of a queue, a task or a key begin.

    What runs goes on: `jsq queue pause mail --key tenant-7 --until 2h`.
    """
    end = read_deadline(until)
    hold = session.run(lambda client: client.queues.pause(queue, task=task, key=key, until=end))
    session.printer.one({"queue": queue, **told(hold)}, name="queue")


@command
def resume(session: Session, queue: Queue, task: Task = None, key: Key = None) -> None:
    """End a pause."""
    session.run(lambda client: client.queues.resume(queue, task=task, key=key))
    session.printer.one({"queue": queue, "task": task or "", "key": key or ""}, name="queue")


@command
def set_(
    session: Session,
    queue: Queue,
    concurrency: Annotated[
        str | None, typer.Option(help="jobs of a priority that run at once, or none")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="how often jobs start, as 100/m, or none")] = None,
    max_jobs: Annotated[str | None, typer.Option(help="jobs that may wait, or none")] = None,
    max_bytes: Annotated[str | None, typer.Option(help="bytes that may wait, or none")] = None,
    lease: Annotated[str | None, typer.Option(help="silence before a job is given away, as 30s")] = None,
    max_crashes: Annotated[str | None, typer.Option(help="workers that a job may take down")] = None,
    quarantine: Annotated[str | None, typer.Option(help="queue where such a job goes, or none")] = None,
    per_key: Annotated[str | None, typer.Option(help="jobs of one key that run at once, or none")] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=N", help="a key has N turns; all that are to be, or none; may be repeated"),
    ] = None,
    storage: Annotated[str | None, typer.Option(hidden=True)] = None,
    replicas: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Change what a queue is set to, while it lives.

    Workers follow at once: `jsq queue set mail --concurrency 20 --rate 100/m`. What an App declares is put
    back when a worker of it starts, or by `jsq provision`.
    """
    whole = {
        "concurrency": concurrency,
        "max-jobs": max_jobs,
        "max-bytes": max_bytes,
        "max-crashes": max_crashes,
        "per-key": per_key,
    }
    changes: dict[str, Any] = {
        name.replace("-", "_"): read_whole(name, text) for name, text in whole.items() if text is not None
    }
    texts = {"rate": rate, "quarantine": quarantine, "storage": storage, "replicas": replicas}
    changes |= {name: None if text == NONE else text for name, text in texts.items() if text is not None}
    if lease is not None:
        changes["lease"] = read_duration(lease)
    if weight:
        changes["weights"] = None if weight == [NONE] else read_weights(weight)
    if not changes:
        raise UsageError("say what to change, as --concurrency 20 or --rate 100/m")
    settings = session.run(lambda client: client.queues.update(queue, **changes))
    session.printer.one({"queue": queue, **shown(settings)}, name="queue")


def read_whole(option: str, text: str) -> int | None:
    if text == NONE:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{option} {text!r}: write a whole number, or none") from None


def read_weights(texts: list[str]) -> dict[str, int | None]:
    """Each key's weight; said twice, the last one holds."""
    pairs = (text.rpartition("=") for text in texts)
    return {key: read_whole("weight", number) for key, _, number in pairs}


def told(hold: Pause) -> dict[str, Any]:
    """A hold as it is printed; what lasts until it is lifted has no `until`."""
    return {"task": hold.task, "key": hold.key, "why": hold.why, "until": hold.until}


def shown(settings: QueueSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json")
