"""`jsq queue pause | resume | update`: the pauses and the settings of a queue."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from jsq.cli.parsing import read_deadline, read_duration
from jsq.cli.session import Session
from jsq.errors import UsageError
from jsq.model.pause import Pause

NONE = "none"

Queue = Annotated[str, typer.Argument(metavar="QUEUE", help="the queue's name")]
OnlyTask = Annotated[str | None, typer.Option(metavar="TASK", help="only the jobs of this task")]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="only the jobs with this key")]


def pause(
    session: Session,
    queue: Queue,
    task: OnlyTask = None,
    key: Key = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="end it after 90, 5m, 2d, or at 2030-12-31T18:00Z [no end]"),
    ] = None,
) -> None:
    """Pause a queue, a task or a key. Running jobs go on.

    \b
    jsq queue pause mail
    jsq queue pause mail --key tenant-7 --until 2h
    """
    end = read_deadline(until)
    pause = session.run(lambda client: client.queues.pause(queue, task=task, key=key, until=end))
    session.printer.one({"queue": queue, **described(pause)}, name="queue")


def resume(session: Session, queue: Queue, task: OnlyTask = None, key: Key = None) -> None:
    """End a pause.

    \b
    jsq queue resume mail --key tenant-7
    """
    session.run(lambda client: client.queues.resume(queue, task=task, key=key))
    session.printer.one({"queue": queue, "task": task or "", "key": key or ""}, name="queue")


@dataclass(frozen=True, slots=True)
class SettingOptions:
    """The settings to change; `none` removes a limit."""

    concurrency: Annotated[
        str | None, typer.Option(metavar="N", help="jobs that all workers run at once, or none")
    ] = None
    rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="how many jobs start in a period, as 100/m, or none")
    ] = None
    max_jobs: Annotated[str | None, typer.Option(metavar="N", help="jobs that may wait, or none")] = None
    max_bytes: Annotated[str | None, typer.Option(metavar="N", help="bytes that may wait, or none")] = None
    lease: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="how long a worker may be silent before its jobs are reclaimed"
        ),
    ] = None
    max_crashes: Annotated[
        str | None, typer.Option(metavar="N", help="worker crashes after which a job is quarantined")
    ] = None
    quarantine: Annotated[
        str | None, typer.Option(metavar="QUEUE", help="the queue for such jobs, or none")
    ] = None
    per_key: Annotated[
        str | None, typer.Option(metavar="N", help="jobs of one key that run at once, or none")
    ] = None
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=N", help="share of a key when keys take turns; repeat for all keys; or none"
        ),
    ] = None
    keep_arguments: Annotated[
        bool | None,
        typer.Option(
            "--keep-arguments/--no-keep-arguments",
            show_default=False,
            help="whether records of ended jobs hold their arguments",
        ),
    ] = None
    storage: Annotated[str | None, typer.Option(hidden=True)] = None
    replicas: Annotated[str | None, typer.Option(hidden=True)] = None

    def changes(self) -> dict[str, Any]:
        """The settings that are given. Raises `UsageError`."""
        numbers = ("concurrency", "max_jobs", "max_bytes", "max_crashes", "per_key")
        texts = ("rate", "quarantine", "storage", "replicas")
        found: dict[str, Any] = {}
        for name in (*numbers, *texts):
            text = getattr(self, name)
            if text is not None:
                found[name] = read_integer(name.replace("_", "-"), text) if name in numbers else text
                found[name] = None if text == NONE else found[name]
        if self.keep_arguments is not None:
            found["keep_arguments"] = self.keep_arguments
        if self.lease is not None:
            found["lease"] = read_duration(self.lease)
        if self.weight:
            found["weights"] = None if self.weight == [NONE] else read_weights(self.weight)
        return found


def update(session: Session, queue: Queue, *, settings: SettingOptions) -> None:
    """Change settings of a queue. Running workers follow at once.

    The next start of a worker, and `jsq provision`, restore the settings that the App declares.

    \b
    jsq queue update mail --concurrency 20 --rate 100/m
    """
    changes = settings.changes()
    if not changes:
        raise UsageError("give a setting to change, as --concurrency 20 or --rate 100/m")
    found = session.run(lambda client: client.queues.update(queue, **changes))
    session.printer.one({"queue": queue, **found.as_dict()}, name="queue")


def read_integer(option: str, text: str) -> int | None:
    if text == NONE:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{option} must be a whole number or none, got {text!r}") from None


def read_weights(texts: list[str]) -> dict[str, int | None]:
    """The weight of each key; the last one of a key that is given twice."""
    pairs = (text.rpartition("=") for text in texts)
    return {key: read_integer("weight", number) for key, _, number in pairs}


def described(pause: Pause) -> dict[str, Any]:
    """The fields of a pause; a pause without an end has no `until`."""
    return {"task": pause.task, "key": pause.key, "reason": pause.reason, "until": pause.until}
