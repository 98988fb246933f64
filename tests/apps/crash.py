"""A process that kills itself at the n-th point of its work: of a worker, a submit, a cancel, a retry or a
sweep.

A point is a message that is sent (just before and just after it), or a reply that arrives (before it is
processed). `CRASH_AT` is the number of the point; with 0 the process is not killed. The points that the
process passes are written to the file `POINTS`.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from jsq import App, Context, Failure, JobHandle, Reject, Retry, Snooze
from jsq.broker import Delivery
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.maintenance import sweeper as sweeps
from jsq.broker.maintenance.repairs import Repairs
from jsq.model.repair import FoundInconsistency
from jsq.settings import WorkerSettings
from jsq.transport.connection import NatsConnection
from jsq.transport.replies import Reply
from jsq.transport.retrying import While
from jsq.transport.wire import PendingReplies
from jsq.worker import Worker
from jsq.worker.attempt import Attempt

LEASE = 2.0
CALLBACKS = "callbacks"
"""The queue of callbacks and fallbacks, which the killed worker does not serve."""

SWEEP_LEASE = 2
"""Seconds after which a sweep can be repeated if the sweeper died."""

END = b"\r\n"

WITHOUT_POINTS = ("$JS.API.CONSUMER.MSG.NEXT", "$JS.API.CONSUMER.INFO", "$JS.API.STREAM.INFO", "$KV.")
"""The start of the subjects of requests that are not about a job."""


def declare(app: App) -> App:
    """Declare the queues and tasks of all scenarios. Each run of a task writes a line to `EFFECTS`."""
    apart = os.environ.get("QUARANTINE")
    app.queue("default", lease=LEASE, max_crashes=1 if apart else 3, quarantine=apart)
    if apart:
        app.queue(apart, lease=LEASE)
    declare_ends(app)
    declare_steps(app)
    app.queue(CALLBACKS, lease=LEASE)
    declare_callbacks(app)
    return app


def declare_ends(app: App) -> None:
    """Declare a task for each outcome."""

    @app.task
    async def succeed(ctx: Context) -> int:
        return effect(ctx)

    @app.task(retries=3, backoff=[0.1])
    async def retry(ctx: Context) -> int:
        if effect(ctx) == 1:
            raise Retry("once more", delay=0.1)
        return 1

    @app.task
    async def snooze(ctx: Context) -> int:
        if effect(ctx) == 1:
            raise Snooze(0.1)
        return 1

    @app.task(unique="k", on_duplicate="keep_last")
    async def last(ctx: Context, n: int) -> int:
        effect(ctx)
        return n

    @app.task
    async def fail(ctx: Context) -> None:
        effect(ctx)
        raise Reject("never")


def declare_steps(app: App) -> None:
    """Declare tasks that store something between their attempts."""

    @app.task(retries=0)
    async def once(ctx: Context) -> int:
        async def step() -> int:
            return effect(ctx)

        return await ctx.once("step", step)

    @app.task
    async def keep(ctx: Context) -> int:
        await ctx.checkpoint(1)
        return effect(ctx)


def declare_callbacks(app: App) -> None:
    """Declare tasks that fail, at once or after a retry, with their callbacks and fallback."""

    @app.task(queue=CALLBACKS)
    async def notify(ctx: Context, failure: Failure) -> None:
        effect(ctx)

    @app.task(queue=CALLBACKS)
    async def instead(ctx: Context) -> int:
        return effect(ctx)

    @app.task(retries=0, on_failure=notify, on_dead=notify, fallback=instead)
    async def die(ctx: Context) -> None:
        effect(ctx)
        raise ValueError("no")

    @app.task(retries=1, backoff=[0.5], on_failure=notify, on_dead=notify, fallback=instead)
    async def linger(ctx: Context) -> None:
        effect(ctx)
        raise ValueError("no")


def effect(ctx: Context) -> int:
    """Note a run; returns its number among the runs of the job."""
    path = Path(os.environ["EFFECTS"])
    with path.open("a") as file:
        file.write(f"{ctx.id}\n")
    return path.read_text().split().count(ctx.id)


def served_queues(app: App) -> list[str]:
    """The queues that a worker serves: those of the app, and the quarantine."""
    return [*app.queues, *(settings.quarantine for settings in app.declared.values() if settings.quarantine)]


class Points:
    """Counts the points that the process passes, and kills it at one of them."""

    def __init__(self) -> None:
        self.armed = False
        self.passed = 0
        self.last = int(os.environ["CRASH_AT"])

    def note(self, what: str) -> None:
        if not self.armed:
            return
        self.passed += 1
        with Path(os.environ["POINTS"]).open("a") as file:
            file.write(f"{what}\n")
        if self.passed == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def set_points(points: Points) -> None:
    """Place points where the process communicates with the server.

    A worker arms them with its first job or the first wake-up, a sweep with its first repair.
    """
    put, answered, begin, repair = (
        NatsConnection.put,
        PendingReplies.resolve,
        Attempt.__init__,
        Repairs.repair,
    )
    admit = KeyGroups.admit

    def put_at_points(nats: NatsConnection, command: bytes) -> None:
        subject = command.split(b" ", 2)[1].decode()
        of_job = "_ids." in subject or "_jobs." in subject or "_flows." in subject
        if (subject.startswith(WITHOUT_POINTS) and not of_job) or checks_ticks(subject):
            put(nats, command)
            return
        settles = subject.startswith("$JS.ACK")
        kind = f"{command.split(END)[1].decode()} " if settles else ".".join(subject.split(".")[1:3])
        points.note(f"before {kind}")
        put(nats, command)
        nats.send_pending()
        points.note(f"after {kind}")

    def answered_at_points(pending: PendingReplies, message: Reply) -> None:
        points.note("answer")
        answered(pending, message)

    def begin_and_arm(attempt: Attempt, delivery: Delivery, *more: Any) -> None:
        points.armed = True
        begin(attempt, delivery, *more)

    async def repair_and_arm(repairs: Repairs, found: FoundInconsistency) -> bool:
        points.armed = True
        return await repair(repairs, found)

    async def admit_and_arm(
        groups: KeyGroups, queue: str, token: str, *, while_: While | None = None
    ) -> None:
        points.armed = True
        await admit(groups, queue, token, while_=while_)

    KeyGroups.admit = admit_and_arm  # type: ignore[assignment, method-assign]  # replaced on purpose
    NatsConnection.put = put_at_points  # type: ignore[assignment, method-assign]  # replaced on purpose
    PendingReplies.resolve = answered_at_points  # type: ignore[assignment, method-assign]  # replaced on purpose
    Attempt.__init__ = begin_and_arm  # type: ignore[assignment, method-assign]  # replaced on purpose
    Repairs.repair = repair_and_arm  # type: ignore[assignment, method-assign]  # replaced on purpose


def checks_ticks(subject: str) -> bool:
    """Whether a request belongs to the check of a worker that each schedule has a next tick."""
    call, _, stream = subject.rpartition(".")
    return call == "$JS.API.DIRECT.GET" and ("_SCHEDULED_" in stream or stream.endswith("_schedules"))


async def work(app: App) -> None:
    async with app:
        served = [queue for queue in served_queues(app) if queue != CALLBACKS]
        await Worker(app, queues=served, settings=WorkerSettings(burst=True)).run()


CALLS: Mapping[str, Callable[[JobHandle[Any]], Awaitable[object]]] = {
    "cancel": lambda job: job.cancel(),
    "move": lambda job: job.reschedule(delay=1200),
    "promote": lambda job: job.promote(),
    "edit": lambda job: job.edit({"n": 2}, tags=["edited"]),
    "elsewhere": lambda job: job.move(queue=CALLBACKS, priority="high"),
    "again": lambda job: job.retry(again=True),
}
"""The operations of a user on the handle of a job."""


async def operate(app: App, what: str, points: Points) -> None:
    """Run an operation of a user on the job `mine`."""
    async with app:
        client = app.client
        await client.queues.list()
        points.armed = what != "sweep"
        match what:
            case "submit":
                await client.task("succeed").options(id="mine").submit()
            case "submit-keyed":
                await client.task("succeed").options(id="mine", key="k", per_key=1).submit()
            case "return" | "replace" | "keep_last" as way:
                await client.task("succeed").options(unique="k", on_duplicate=way).submit()
            case "debounce":
                await client.task("succeed").options(unique="k", debounce=30).submit()
            case "replay":
                await client.dead_letters.retry("mine")
            case "sweep":
                await client.admin.sweep(age=0)
            case _:
                await CALLS[what](client.jobs.handle("mine"))
        points.armed = False


def main() -> None:
    points = Points()
    set_points(points)
    sweeps.LEASE_SECONDS = SWEEP_LEASE
    app = declare(App(namespace=os.environ["JSQ_NAMESPACE"]))
    what = sys.argv[1]
    asyncio.run(work(app) if what == "work" else operate(app, what, points))


if __name__ == "__main__":
    main()
