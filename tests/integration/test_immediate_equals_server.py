"""Immediate mode gives the outcomes of a server: each case runs in both, and its observations are equal.

All cases run on the server at the same time, on one worker for each App, because they mostly wait. Then each
case runs in immediate mode, in a test of its own.
"""

import asyncio
import contextlib
import contextvars
import fcntl
import logging
import os
import pickle
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from jsq import (
    INJECTED,
    App,
    Backoff,
    BatchItem,
    Context,
    ContextVars,
    CurrentJob,
    Depends,
    Failure,
    JobFailed,
    JobHandle,
    Middleware,
    PartlySubmitted,
    RateLimited,
    Reject,
    Retries,
    Retry,
    Router,
    Snooze,
    Worker,
    WorkerSettings,
    chain,
    current_job,
    group,
)
from jsq.app import AppOptions
from jsq.model.job import Job
from jsq.server import EmbeddedServer
from jsq.testing.servers import delete_streams
from tests.apps.immediate import add_in_child, fail_in_child, report_in_child
from tests.helpers.immediate_lab import Case, DelayLog, Lab
from tests.helpers.workers import running_worker

pytestmark = pytest.mark.timeout(60)  # the first test waits for all cases on the server

CASES: dict[str, Case] = {}
HOOKED_CASES: dict[str, Case] = {}
"""The cases by their names; those of the second need the hooks of an App."""

PLAIN: AppOptions = {"allow_functions": ["tests.apps.immediate:*"], "timeout": 25}
"""The options of the App without hooks."""

AT_ONCE = 20
"""Cases that run on the server at the same time: with more of them, one sees the load of the others."""

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("immediate_tenant")


def case(function: Case) -> Case:
    CASES[getattr(function, "__name__", "")] = function
    return function


def hooked_case(function: Case) -> Case:
    HOOKED_CASES[getattr(function, "__name__", "")] = function
    return function


def declare_queues(app: App) -> App:
    """An App with the queues of the cases."""
    app.queue("narrow", concurrency=1)
    app.queue("keyed", per_key=1)
    app.queue("small", max_jobs=3)
    app.queue("paused", max_jobs=1)
    app.queue("held")
    app.queue("closed")
    app.queue("forgetful", keep_arguments=False)
    app.queue("limited", rate="20/s")
    app.queue("default")
    return app


class Recording(Middleware):
    """Records its calls by the task of the job."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Any]] = {}

    def record(self, job: Job, *what: Any) -> None:
        self.calls.setdefault(job.task, []).append(what)

    def submitting(self, job: Job) -> Job:
        self.record(job, "submitting")
        return replace(job, headers={**job.headers, "seen": "yes"})

    def submit_ended(self, jobs: Sequence[Job], error: BaseException | None) -> None:
        self.record(jobs[0], "submit_ended", len(jobs), repr(error))

    def submitted(self, job: Job) -> None:
        self.record(job, "submitted")

    async def around(self, ctx: Context, call: Any) -> Any:
        self.record(ctx.job, "before", ctx.attempt)
        try:
            found = await call()
        except BaseException as error:
            self.record(ctx.job, "raised", type(error).__name__)
            raise
        self.record(ctx.job, "after", found)
        return found

    async def succeeded(self, job: Job, result: Any) -> None:
        self.record(job, "succeeded", result)

    async def failed(self, job: Job, error: BaseException) -> None:
        self.record(job, "failed", type(error).__name__)

    async def retrying(self, job: Job, error: BaseException) -> None:
        self.record(job, "retrying", repr(error))

    async def cancelled(self, job: Job) -> None:
        self.record(job, "cancelled")

    async def settled(self, job: Job) -> None:
        self.record(job, "settled")


def hooked_app(**where: Any) -> App:
    """An App with a lifespan and middleware."""

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Mapping[str, Any]]:
        yield {"pool": "open", "recording": recording}

    recording = Recording()
    app = App(lifespan=lifespan, middleware=[recording, CurrentJob(), ContextVars(tenant)], **where)

    @app.on_start
    def started(state: dict[str, Any]) -> None:
        state["started"] = True

    app.recording = recording  # type: ignore[attr-defined]  # for the cases
    return declare_queues(app)


async def run_on_server(
    url: str, namespace: str, cases: Mapping[str, Case], log: DelayLog, *, hooked: bool
) -> dict[str, Any]:
    """The observations of all cases, with a server and one worker; an exception in place of them."""
    where = {"url": url, "namespace": namespace}
    app = hooked_app(**where) if hooked else declare_queues(App(**where, **PLAIN))
    async with app, running_worker(Worker(app, settings=WorkerSettings(concurrency=200))):
        labs = [Lab(name, app) for name in cases]
        for lab in labs:
            lab.log = log
        room = asyncio.Semaphore(AT_ONCE)

        async def run(one: Case, lab: Lab) -> Any:
            async with room:
                return await one(lab)

        async with asyncio.timeout(60):
            running = [run(one, lab) for one, lab in zip(cases.values(), labs, strict=True)]
            found = await asyncio.gather(*running, return_exceptions=True)
    return dict(zip(cases, found, strict=True))


@pytest.fixture(scope="module")
def on_server(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The observations of all cases with a server. One test process makes them for all."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return observe_on_server(server)
    file = tmp_path_factory.getbasetemp().parent / "immediate_equals_server.pickle"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_bytes(pickle.dumps(observe_on_server(server)))
        return dict(pickle.loads(file.read_bytes()))


def observe_on_server(server: EmbeddedServer) -> dict[str, Any]:
    """Run all cases with a server."""
    names = [f"imm{os.getpid()}", f"imm{os.getpid()}h"]

    async def run() -> dict[str, Any]:
        plain, hooked = await asyncio.gather(
            run_on_server(server.url, names[0], CASES, log, hooked=False),
            run_on_server(server.url, names[1], HOOKED_CASES, log, hooked=True),
        )
        return plain | hooked

    log, logger = DelayLog(), logging.getLogger("jsq.job")
    logger.addHandler(log)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        return asyncio.run(run())
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)
        for name in names:
            delete_streams(server.url, name)


async def check(name: str, one: Case, app: App, on_server: dict[str, Any]) -> None:
    """Run a case in immediate mode, and compare what it observes with what it observed with a server."""
    expected = on_server[name]
    if isinstance(expected, BaseException):
        raise expected

    async with app.immediate() as immediate:
        observed = await one(Lab(name, app, immediate))

    assert observed == expected


# -- arguments and results ---------------------------------------------------------------------------------


class Address(BaseModel):
    street: str
    number: int = 1


@dataclass
class Order:
    id: UUID
    total: Decimal
    at: datetime
    tags: tuple[str, ...]


@case
async def a_result(lab: Lab) -> Any:
    @lab.task
    async def add(a: int, b: int = 5) -> int:
        return a + b

    jobs = [await add.submit(1, 2), await add.submit(b=1, a="3"), await add.submit(1)]
    return [(await lab.outcome(job), await job.result()) for job in jobs]


@case
async def values_of_many_types(lab: Lab) -> Any:
    @lab.task
    async def echo(
        order: Order, address: Address, many: set[int], raw: bytes
    ) -> tuple[Order, Address, set[int]]:
        lab.note(type(order.total).__name__, type(many).__name__, raw)
        return order, address, many

    at = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    order = Order(UUID(int=7), Decimal("1.10"), at, ("x", "y"))
    job = await echo.submit(order, Address(street="Main"), {1}, b"bytes")
    return await lab.outcome(job), await job.result(), lab.notes


@case
async def a_value_that_json_changes(lab: Lab) -> Any:
    @lab.task
    async def echo(value) -> Any:  # type: ignore[no-untyped-def]  # an argument without annotation
        lab.note(value)
        return {1: (value, float("inf"))}

    job = await echo.submit((1, 2))
    return await lab.outcome(job), lab.notes, await lab.error(job.result(), job)


@case
async def a_result_that_is_no_json(lab: Lab) -> Any:
    @lab.task
    async def make() -> Any:
        return threading.Event

    job = await make.submit()
    return await lab.outcome(job), await lab.error(job.result(), job)


@case
async def a_result_that_is_not_kept(lab: Lab) -> Any:
    @lab.task(keep_result=0)
    async def make() -> int:
        return 1

    job = await make.submit()
    return await lab.outcome(job), await lab.error(job.result(), job)


@case
async def results_with_a_key_of_their_own(lab: Lab) -> Any:
    @lab.task
    async def make(size: int) -> str:
        return "x" * size

    jobs = [await make.submit(100_000), await make.options(keep_result=60).submit(3)]
    return [(await lab.outcome(job), len(await job.result())) for job in jobs]


@case
async def a_result_that_is_too_large(lab: Lab) -> Any:
    @lab.task
    async def make() -> str:
        return "x" * 1_100_000

    job = await make.submit()
    return await lab.outcome(job), await lab.error(job.result(), job)


@case
async def wrong_arguments(lab: Lab) -> Any:
    @lab.task
    async def add(a: int, b: int) -> int:
        return a + b

    submits = [add.submit("x", 1), add.submit(1), add.submit(1, 2, c=3), add.submit_many([(1, 2), (1, "y")])]
    return [await lab.error(one) for one in submits]


@case
async def arguments_that_are_too_large(lab: Lab) -> Any:
    @lab.task
    async def size(text: str) -> int:
        return len(text)

    return await lab.error(size.submit("x" * 1_100_000)), await lab.outcome(await size.submit("x" * 9_000))


@case
async def wrong_options(lab: Lab) -> Any:
    @lab.task
    async def add(a: int) -> int:
        return a

    found = []
    for options in ({"delay": -1}, {"queue": "a b"}, {"retries": -1}, {"expires": 5, "delay": 10}):
        with pytest.raises(Exception) as caught:  # noqa: PT011 -- the type is compared
            await add.options(**options).submit(1)
        found.append((type(caught.value).__name__, str(caught.value)))
    return found


@case
async def a_submit_by_name(lab: Lab) -> Any:
    @lab.task
    async def add(a: int, b: int) -> int:
        return a + b

    job = await lab.client.submit(add.name, 1, b=2)
    wrong = await lab.client.task(add.name).options(retries=0).submit("x", 1)
    return await lab.outcome(job), await job.result(), await lab.outcome(wrong)


@case
async def options_of_a_submit(lab: Lab) -> Any:
    @lab.task(tags=["own"], priority="low")
    async def show(ctx: Context) -> Any:
        return ctx.attempt, ctx.queue, dict(ctx.headers), list(ctx.job.tags), ctx.job.priority

    options = {"headers": {"trace": "1"}, "tags": ["a", "b"], "priority": "high", "retries": 7, "timeout": 9}
    job = await show.options(**options, keep_arguments=False).submit()
    return await lab.outcome(job), await lab.outcome(await show.submit())


@case
async def arguments_that_the_queue_does_not_keep(lab: Lab) -> Any:
    @lab.task(queue="forgetful")
    async def echo(a: int) -> int:
        return a

    return await lab.outcome(await echo.submit(1))


@case
async def own_ids(lab: Lab) -> Any:
    @lab.task
    async def count() -> int:
        lab.note("ran")
        return len(lab.notes)

    once = count.options(id=f"own id {lab.name}")
    first = await once.submit()
    await first.wait(20)
    second = await once.submit()
    return await lab.outcome(first), second.duplicate, second.id == first.id, await second.result(), lab.notes


# -- errors and retries ------------------------------------------------------------------------------------


@case
async def a_retry_until_success(lab: Lab) -> Any:
    @lab.task(retries=3, backoff=[0.2, 0.4])
    async def flaky(ctx: Context) -> str:
        if ctx.attempt < 3:
            raise ValueError(f"not yet: {ctx.attempt}")
        return "done"

    job = await flaky.submit()
    return await lab.outcome(job), await job.result()


@case
async def retries_that_are_spent(lab: Lab) -> Any:
    @lab.task(retries=2, backoff="linear", backoff_max=0.3)
    async def fail(a: int) -> None:
        raise KeyError("broken") from ValueError("the cause")

    job = await fail.options(backoff=[0.1, 0.3]).submit(1)
    return await lab.outcome(job), await lab.error(job.result(), job)


@case
async def no_retries(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def fail() -> None:
        raise RuntimeError("a long text " * 100)

    return await lab.outcome(await fail.submit())


@case
async def retries_by_the_type_of_the_exception(lab: Lab) -> Any:
    @lab.task(
        retries=1, backoff="none", retry_on=[OSError], retry={ConnectionError: Retries(3, backoff="none")}
    )
    async def fail(kind: str) -> None:
        raise {"os": OSError, "connection": ConnectionResetError, "value": ValueError}[kind](kind)

    return [await lab.outcome(await fail.submit(kind)) for kind in ("os", "connection", "value")]


@case
async def a_retry_predicate(lab: Lab) -> Any:
    def may_pass(error: BaseException, attempt: int) -> bool:
        return "temporary" in str(error) and attempt < 3

    @lab.task(retries=5, backoff="none", retry_if=may_pass)
    async def fail(text: str) -> None:
        raise ValueError(text)

    return [await lab.outcome(await fail.submit(text)) for text in ("temporary", "for good")]


@case
async def the_signal_retry(lab: Lab) -> Any:
    @lab.task(retries=2, backoff=[0.1])
    async def again(ctx: Context) -> str:
        if ctx.attempt == 1:
            raise Retry("later", delay=0.3)
        if ctx.attempt == 2:
            raise Retry("sooner")
        raise Retry("no more")

    return await lab.outcome(await again.submit())


@case
async def the_signal_snooze(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def wait(ctx: Context) -> list[int]:
        lab.note(ctx.attempt)
        if len(lab.notes) < 3:
            raise Snooze(0.2, "not ready")
        return lab.notes

    job = await wait.submit()
    return await lab.outcome(job), await job.result()


@case
async def the_signal_reject(lab: Lab) -> Any:
    @lab.task(retries=5)
    async def refuse() -> None:
        raise Reject("never")

    return await lab.outcome(await refuse.submit())


@case
async def the_signal_rate_limited(lab: Lab) -> Any:
    @lab.task(queue="keyed")
    async def call(ctx: Context, number: int) -> int:
        lab.note(number)
        if len(lab.notes) == 1:
            raise RateLimited(0.3)
        return number

    jobs = await call.options(key="one service").submit_many([[1], [2]])
    return [await lab.outcome(job) for job in jobs], [await job.result() for job in jobs]


@case
async def a_retry_window(lab: Lab) -> Any:
    @lab.task(retries=None, retry_for=10.0, backoff=[0.2, 20.0])
    async def fail() -> None:
        raise ValueError("still broken")

    return await lab.outcome(await fail.submit())


@case
async def an_exit_of_the_task(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def leave(how: str) -> None:
        if how == "exit":
            raise SystemExit(3)
        raise asyncio.CancelledError("by itself")

    return [await lab.outcome(await leave.submit(how)) for how in ("exit", "cancel")]


@case
async def an_exception_with_notes_and_a_strange_text(lab: Lab) -> Any:
    class Strange(Exception):
        def __str__(self) -> str:
            return "\u2603 \x00 \n line"

    @lab.task(retries=0)
    async def fail() -> None:
        error = Strange()
        error.add_note("a note")
        raise error

    return await lab.outcome(await fail.submit())


# -- time limits -------------------------------------------------------------------------------------------


@case
async def a_timeout(lab: Lab) -> Any:
    @lab.task(timeout=0.2, retries=1, backoff="none")
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            lab.note("cleaned up")

    return await lab.outcome(await hang.submit()), lab.notes


@case
async def a_timeout_of_a_thread(lab: Lab) -> Any:
    @lab.task(retries=0)
    def hang(ctx: Context) -> str:
        while not ctx.cancelled:
            threading.Event().wait(0.01)
        return "noticed"

    return await lab.outcome(await hang.options(timeout=0.2, hard_timeout=0.5).submit())


@case
async def a_timeout_that_the_task_extends(lab: Lab) -> Any:
    @lab.task(timeout=0.2, retries=0)
    async def work(ctx: Context, seconds: float) -> str:
        ctx.extend_timeout(seconds)
        await asyncio.wait_for(asyncio.shield(asyncio.Event().wait()), 0.5)
        return "done"

    outcomes = [await lab.outcome(await work.submit(seconds)) for seconds in (5.0, 0.3)]
    # The rest of the message is the time of the call, rounded.
    return [(one["state"], one["error"].partition(", extended to")[0]) for one in outcomes]


@case
async def a_deadline_while_the_job_runs(lab: Lab) -> Any:
    @lab.task(deadline=1.5)
    async def hang() -> None:
        await asyncio.Event().wait()

    job = await hang.submit()
    return await lab.outcome(job), await lab.error(job.result(), job)


@case
async def a_deadline_before_the_next_attempt(lab: Lab) -> Any:
    @lab.task(deadline=10.0, backoff=[20.0])
    async def fail() -> None:
        raise ValueError("broken")

    return await lab.outcome(await fail.submit())


@case
async def an_expiry(lab: Lab) -> Any:
    @lab.task(queue="closed")
    async def late() -> None:
        lab.note("ran")

    await lab.client.queues.pause("closed")
    job = await late.options(expires=3.0).submit()
    before = (await job.status()).state
    await lab.due(3.5)
    return before, await lab.outcome(job), lab.notes


@case
async def an_expiry_of_a_job_that_starts_in_time(lab: Lab) -> Any:
    @lab.task(expires=30)
    async def early() -> int:
        return 1

    return await lab.outcome(await early.submit())


# -- the context -------------------------------------------------------------------------------------------


@case
async def the_fields_of_a_context(lab: Lab) -> Any:
    @lab.task(retries=1, backoff="none")
    async def show(ctx: Context, a: int) -> list[Any]:
        lab.note(ctx.token)
        if ctx.attempt == 1:
            raise ValueError("first")
        rises = lab.notes == sorted(set(lab.notes)) and ctx.token > 0
        return [ctx.attempt, ctx.task, ctx.queue, dict(ctx.state), rises, ctx.cancelled, ctx.waited >= 0]

    job = await show.submit(1)
    return await lab.outcome(job), await job.result()


@case
async def progress(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def work(ctx: Context, *, fail: bool) -> None:
        ctx.progress(0.25, "a quarter")
        await asyncio.sleep(0)
        if fail:
            raise ValueError("stuck")
        with pytest.raises(Exception, match="progress"):
            ctx.progress(2)

    return [await lab.outcome(await work.submit(fail=fail)) for fail in (True, False)]


@case
async def checkpoints(lab: Lab) -> Any:
    @lab.task(retries=2, backoff="none")
    async def work(ctx: Context) -> Any:
        before = ctx.checkpointed
        await ctx.checkpoint({"attempt": ctx.attempt, "pair": (1, 2)})
        if ctx.attempt < 3:
            raise ValueError("again")
        return before

    job = await work.submit()
    return await lab.outcome(job), await job.result(), await job.checkpoint()


@case
async def a_checkpoint_of_a_failed_job(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def work(ctx: Context) -> None:
        await ctx.checkpoint([1, 2])
        raise ValueError("broken")

    job = await work.submit()
    return await lab.outcome(job), await job.checkpoint()


@case
async def steps_that_run_once(lab: Lab) -> Any:
    async def charge(amount: int) -> str:
        lab.note(amount)
        return f"charged {amount}"

    @lab.task(retries=2, backoff="none")
    async def pay(ctx: Context) -> list[str]:
        first = await ctx.once("charge", charge, 5)
        second = await ctx.once("more", charge, 6)
        if ctx.attempt < 3:
            raise ValueError("after the steps")
        return [first, second]

    job = await pay.submit()
    return await lab.outcome(job), await job.result(), lab.notes


@case
async def a_step_with_an_unknown_end(lab: Lab) -> Any:
    async def charge() -> None:
        lab.note("called")
        raise OSError("the connection broke")

    @lab.task(retries=3, backoff="none")
    async def pay(ctx: Context) -> None:
        await ctx.once("charge", charge)

    return await lab.outcome(await pay.submit()), lab.notes


@case
async def a_header_for_the_next_attempt(lab: Lab) -> Any:
    @lab.task(retries=1, backoff="none")
    async def work(ctx: Context) -> Any:
        if ctx.attempt == 1:
            await ctx.add_header("note", "from the first")
            raise ValueError("again")
        return dict(ctx.headers)

    job = await work.submit()
    return await lab.outcome(job), await job.result()


@case
async def a_context_in_a_thread(lab: Lab) -> Any:
    @lab.task(retries=1, backoff="none")
    def work(ctx: Context) -> Any:
        ctx.progress(0.5)
        done = ctx.blocking.once("step", lambda: "done once")
        before = ctx.checkpointed
        ctx.blocking.checkpoint(ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("again")
        return [done, before, threading.current_thread() is threading.main_thread()]

    job = await work.submit()
    return await lab.outcome(job), await job.result()


# -- callbacks and dead letters ----------------------------------------------------------------------------


def failure_fields(failure: Failure) -> Any:
    known = (failure.task, failure.queue, failure.attempt, failure.error, failure.reason, failure.arguments)
    return (*known, failure.dead, failure.due is not None, bool(failure.fallback), failure.tags)


@case
async def callbacks_of_a_failure(lab: Lab) -> Any:
    @lab.task
    async def note_failure(failure: Failure) -> None:
        lab.note("failed", failure_fields(failure))

    @lab.task
    async def note_death(failure: Failure) -> None:
        lab.note("dead", failure_fields(failure))

    @lab.task(retries=1, backoff="none", on_failure=note_failure, on_dead=note_death, tags=["t"])
    async def fail(a: int) -> None:
        raise ValueError(f"no {a}")

    job = await fail.submit(7)
    found = await lab.outcome(job)
    await lab.until(lambda: len(lab.notes) == 3)
    return found, sorted(lab.notes)


@case
async def a_fallback(lab: Lab) -> Any:
    @lab.task
    async def cheap(a: int) -> str:
        return f"cheap {a}"

    @lab.task(retries=0, fallback=cheap)
    async def costly(a: int) -> str:
        raise ValueError("too costly")

    job = await costly.submit(3)
    found = await lab.outcome(job)
    other = lab.client.jobs.handle((await job.status()).fallback)
    return found, await lab.outcome(other), await other.result()


@case
async def a_fallback_that_fails_too(lab: Lab) -> Any:
    @lab.task
    async def note_death(failure: Failure) -> None:
        lab.note(failure_fields(failure))

    @lab.task(retries=1, backoff="none", on_dead=note_death)
    async def cheap(a: int) -> str:
        raise ValueError("cheap, and broken")

    @lab.task(retries=0)
    async def costly(a: int) -> str:
        raise ValueError("too costly")

    job = await costly.options(fallback=cheap, on_dead=note_death).submit(3)
    found = await lab.outcome(job)
    other = lab.client.jobs.handle((await job.status()).fallback)
    outcome = await lab.outcome(other)
    await lab.until(lambda: len(lab.notes) == 2)
    return found, outcome, sorted(lab.notes)


@case
async def a_dead_letter(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def fail(a: int) -> int:
        if a < 0:
            raise ValueError("negative")
        return a

    job = await fail.submit(-1)
    found = await lab.outcome(job)
    letter = await lab.client.dead_letters.get(job.id)
    listed = [one.id == job.id for one in await lab.client.dead_letters.list(task=fail.name)]
    await lab.client.dead_letters.retry(job.id, [4])
    after = await lab.outcome(job)
    left = await lab.client.dead_letters.list(task=fail.name)
    return found, listed, letter.reason, letter.error, after, await job.result(), left


@case
async def a_retry_of_a_failed_job(lab: Lab) -> Any:
    @lab.task(retries=1, backoff="none")
    async def fail() -> str:
        lab.note("run")
        if len(lab.notes) < 3:
            raise ValueError("broken")
        return "repaired"

    job = await fail.submit()
    found = await lab.outcome(job)
    await job.retry()
    await lab.until(lambda: len(lab.notes) == 3)
    return found, await lab.outcome(job), await job.result()


@case
async def a_second_run_of_a_job_that_succeeded(lab: Lab) -> Any:
    @lab.task
    async def count(a: int) -> int:
        lab.note(a)
        return len(lab.notes)

    job = await count.submit(1)
    first = await lab.outcome(job)
    wrong = await lab.error(job.retry(), job)
    await job.retry(again=True)
    await lab.until(lambda: len(lab.notes) == 2)
    return first, wrong, await lab.outcome(job), await job.result()


@case
async def the_removal_of_a_job(lab: Lab) -> Any:
    @lab.task
    async def work() -> int:
        return 1

    job = await work.submit()
    await job.wait(20)
    await job.remove()
    return await lab.error(job.status(), job)


# -- delays ------------------------------------------------------------------------------------------------


@case
async def a_delay(lab: Lab) -> Any:
    @lab.task
    async def work() -> int:
        lab.note("ran")
        return 1

    job = await work.options(delay=60).submit()
    before = await job.status()
    waits = before.state, before.due is not None, list(lab.notes)
    await lab.due(60, job)
    return waits, await lab.outcome(job), lab.notes


@case
async def a_time(lab: Lab) -> Any:
    @lab.task
    async def work(number: float) -> float:
        lab.note(number)
        return number

    now = datetime.now(UTC)
    jobs = [await work.options(at=now + timedelta(seconds=wait)).submit(wait) for wait in (3.0, 2.0)]
    await lab.due(4.0)
    return [await lab.outcome(job) for job in jobs], lab.notes


@case
async def a_cancel_of_a_delayed_job(lab: Lab) -> Any:
    @lab.task
    async def work() -> None:
        lab.note("ran")

    job = await work.options(delay=60).submit()
    state = (await job.cancel()).state
    await lab.due(100)
    return state, await lab.outcome(job), await lab.error(job.result(), job), lab.notes


@case
async def a_promoted_job(lab: Lab) -> Any:
    @lab.task
    async def work() -> int:
        return 1

    job = await work.options(delay=60).submit()
    await job.promote()
    return await lab.outcome(job)


@case
async def a_rescheduled_job(lab: Lab) -> Any:
    @lab.task
    async def work() -> int:
        return 1

    job = await work.options(delay=60).submit()
    later = await job.reschedule(delay=0.5)
    await lab.due(0.5)
    return later.state, await lab.outcome(job), await lab.error(job.promote(), job)


@case
async def an_edited_job(lab: Lab) -> Any:
    @lab.task
    async def work(a: int) -> int:
        return a

    job = await work.options(delay=60).submit(1)
    edited = await job.edit([2], retries=5)
    await lab.due(60, job)
    return edited.state, await lab.outcome(job), await job.result()


# -- unique keys -------------------------------------------------------------------------------------------


async def observe_unique(lab: Lab, first: JobHandle[Any], second: JobHandle[Any]) -> Any:
    return second.duplicate, second.id == first.id, await lab.outcome(first), await lab.outcome(second)


@case
async def a_unique_key_that_returns_the_first_job(lab: Lab) -> Any:
    @lab.task(unique=["a"])
    async def work(a: int, b: int) -> int:
        lab.note(b)
        return b

    first = await work.options(delay=60).submit(1, 1)
    second = await work.submit(1, 2)
    await lab.due(60, first)
    seen = await observe_unique(lab, first, second)
    third = await work.submit(1, 3)
    return seen, third.duplicate, await lab.outcome(third), lab.notes


@case
async def a_unique_key_that_raises(lab: Lab) -> Any:
    @lab.task
    async def work() -> int:
        return 1

    first = await work.options(unique="key", delay=60).submit()
    error = await lab.error(work.options(unique="key", on_duplicate="raise").submit(), first)
    await lab.due(60, first)
    return error, await lab.outcome(first)


@case
async def a_unique_key_that_replaces(lab: Lab) -> Any:
    @lab.task
    async def work(a: int) -> int:
        lab.note(a)
        return a

    first = await work.options(unique="key", delay=60).submit(1)
    second = await work.options(unique="key", on_duplicate="replace").submit(2)
    await lab.due(100)
    return await observe_unique(lab, first, second), lab.notes


@case
async def a_successor_of_a_running_job(lab: Lab) -> Any:
    @lab.task
    async def work(a: int) -> int:
        lab.note(a)
        if a < 3:
            again = work.options(unique="key", on_duplicate="keep_last")
            jobs = [await again.submit(a + 1), await again.submit(a + 2)]
            lab.note([job.duplicate for job in jobs])
        return a

    first = await work.options(unique="key", on_duplicate="keep_last").submit(1)
    found = await lab.outcome(first)
    await lab.until(lambda: 3 in lab.notes)
    return found, lab.notes


@case
async def a_unique_key_until_the_start(lab: Lab) -> Any:
    @lab.task(unique="key", unique_until="start")
    async def work(a: int) -> list[bool]:
        lab.note(a)
        if a == 1:
            other = await work.submit(2)
            return [other.duplicate]
        return []

    first = await work.submit(1)
    found = await lab.outcome(first), await first.result()
    await lab.until(lambda: len(lab.notes) == 2)
    return found, lab.notes


@case
async def a_unique_key_for_some_time(lab: Lab) -> Any:
    @lab.task(unique="key", unique_for=60)
    async def work(a: int) -> int:
        return a

    first = await work.submit(1)
    await first.wait(20)
    return await observe_unique(lab, first, await work.submit(2))


@case
async def a_throttle(lab: Lab) -> Any:
    @lab.task(unique="key", throttle=60)
    async def work(a: int) -> int:
        return a

    first = await work.submit(1)
    await first.wait(20)
    return await observe_unique(lab, first, await work.submit(2))


@case
async def a_debounce(lab: Lab) -> Any:
    @lab.task(unique="key", debounce=60)
    async def work(a: int) -> int:
        lab.note(a)
        return a

    first = await work.submit(1)
    second = await work.submit(2)
    await lab.due(60, second)
    return await observe_unique(lab, first, second), lab.notes


# -- many jobs ---------------------------------------------------------------------------------------------


@case
async def a_bulk_submit(lab: Lab) -> Any:
    @lab.task
    async def add(a: int, b: int) -> int:
        return a + b

    jobs = await add.submit_many([(number, 1) for number in range(150)])
    more = await add.submit_many([{"a": 1, "b": 2}], all_or_nothing=True)
    delayed = await add.options(delay=0.3).submit_many([(1, 1), (2, 2)])
    await lab.due(0.3)
    return [await job.result(20) for job in (*jobs, *more, *delayed)]


@case
async def a_second_bulk_submit_loop(lab: Lab) -> Any:
    @lab.task
    async def count(number: int) -> int:
        return number

    return [len(await count.submit_many([[one] for one in range(120)])) for _ in range(3)]


@case
async def a_queue_without_room(lab: Lab) -> Any:
    @lab.task(queue="paused")
    async def work(number: int) -> int:
        return number

    await lab.client.queues.pause("paused")
    first = await work.submit(1)
    errors = [await lab.error(one.submit(2)) for one in (work, work.options(wait_for_room=0.1))]
    await lab.client.queues.resume("paused")
    return errors, await lab.outcome(first)


@case
async def a_wait_for_room(lab: Lab) -> Any:
    @lab.task(queue="small")
    async def work(number: int) -> int:
        return number

    jobs = await work.options(wait_for_room=20).submit_many([[number] for number in range(8)])
    return [await job.result(20) for job in jobs]


@case
async def a_bulk_submit_with_ids(lab: Lab) -> Any:
    @lab.task
    async def add(a: int, b: int) -> int:
        lab.note(a)
        return a + b

    calls, ids = [(1, 1), (2, 2)], [f"{lab.name} {number}" for number in range(3)]
    first = await add.submit_many(calls, ids=ids[:2])
    await asyncio.gather(*(job.wait(20) for job in first))
    again = await add.submit_many([*calls, (3, 3)], ids=ids, all_or_nothing=True)
    return [(job.duplicate, await job.result(20)) for job in again], sorted(lab.notes)


@case
async def a_bulk_submit_of_unique_jobs(lab: Lab) -> Any:
    @lab.task(unique=True, on_duplicate="raise")
    async def work(a: int) -> int:
        return a

    with pytest.raises(PartlySubmitted) as caught:
        await work.options(delay=60).submit_many([[1], [1], [2]])
    jobs = [lab.client.jobs.handle(id) for id in caught.value.stored]
    await lab.due(60, *jobs)
    kinds = {index: type(error).__name__ for index, error in caught.value.refused.items()}
    return kinds, [await lab.outcome(job) for job in jobs]


@case
async def a_map(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def invert(a: float) -> float:
        return 1 / a

    everything: list[Any] = [result async for result in invert.map([1, 0, 4], return_exceptions=True)]
    everything[1] = type(everything[1]).__name__, everything[1].error
    unordered = sorted([result async for result in invert.map(range(1, 30), unordered=True, window=4)])
    with pytest.raises(JobFailed) as caught:
        await invert.map([0])
    return everything, unordered, caught.value.error


# -- order and limits --------------------------------------------------------------------------------------


@case
async def jobs_of_one_key(lab: Lab) -> Any:
    @lab.task(queue="keyed", retries=1, backoff=[0.1])
    async def work(ctx: Context, number: int) -> int:
        lab.note("begin", number)
        await asyncio.sleep(0)
        lab.note("end", number)
        if number == 1 and ctx.attempt == 1:
            raise ValueError("again")
        return number

    jobs = await work.options(key="tenant").submit_many([[1], [2], [3]])
    outcomes = [await lab.outcome(job) for job in jobs]
    begins = [one for one in lab.notes if one[0] == "begin"]
    follows = [
        lab.notes[place + 1] == ("end", one[1]) for place, one in enumerate(lab.notes) if one in begins
    ]
    return outcomes, sorted(begins), all(follows)


@case
async def a_job_of_the_key_of_the_running_job(lab: Lab) -> Any:
    @lab.task(queue="keyed")
    async def child() -> None:
        lab.note("child")

    @lab.task(queue="keyed")
    async def parent() -> str:
        await child.options(key="same").submit()
        lab.note("parent ends")
        return "done"

    job = await parent.options(key="same").submit()
    found = await lab.outcome(job)
    await lab.until(lambda: "child" in lab.notes)
    return found, lab.notes


@case
async def a_queue_that_runs_one_job_at_a_time(lab: Lab) -> Any:
    @lab.task(queue="narrow")
    async def child() -> None:
        lab.note("child")

    @lab.task(queue="narrow")
    async def parent() -> None:
        await child.submit()
        await asyncio.sleep(0)
        lab.note("parent ends")

    job = await parent.submit()
    found = await lab.outcome(job)
    await lab.until(lambda: "child" in lab.notes)
    return found, lab.notes


@case
async def a_rate_limit(lab: Lab) -> Any:
    @lab.task(rate="5/s")
    async def work(number: int) -> int:
        return number

    jobs = await work.submit_many([[number] for number in range(7)])
    outcomes = [await lab.outcome(job) for job in jobs]
    starts = sorted([(await job.status()).started for job in jobs])
    return outcomes, (starts[-1] - starts[0]).total_seconds() >= 0.9


@case
async def a_rate_limit_of_a_queue(lab: Lab) -> Any:
    @lab.task(queue="limited")
    async def work(number: int) -> int:
        return number

    jobs = await work.submit_many([[number] for number in range(25)])
    outcomes = [await lab.outcome(job) for job in jobs]
    starts = sorted([(await job.status()).started for job in jobs])
    return outcomes, (starts[-1] - starts[0]).total_seconds() >= 0.9


@case
async def a_rate_limit_of_each_key(lab: Lab) -> Any:
    @lab.task(key_rate="2/s", queue="keyed")
    async def work(number: int) -> int:
        return number

    jobs = await work.options(key="tenant").submit_many([[number] for number in range(3)])
    return [await lab.outcome(job) for job in jobs]


@case
async def a_pause(lab: Lab) -> Any:
    @lab.task(queue="held")
    async def work(a: int) -> int:
        lab.note(a)
        return a

    await lab.client.queues.pause("held")
    job = await work.submit(1)
    before = (await job.status()).state, list(lab.notes)
    await lab.client.queues.resume("held")
    return before, await lab.outcome(job), lab.notes


@case
async def a_move_to_another_queue(lab: Lab) -> Any:
    @lab.task
    async def work(ctx: Context) -> str:
        return ctx.queue

    job = await work.options(delay=60).submit()
    moved = await job.move(queue="keyed", priority="high")
    await lab.due(60, job)
    return moved.state, moved.quarantine, await lab.outcome(job)


@case
async def more_jobs_of_a_key_at_once(lab: Lab) -> Any:
    @lab.task(queue="keyed", per_key=2)
    async def work(number: int) -> int:
        return number

    jobs = await work.options(key="wide").submit_many([[1], [2], [3]])
    unicode = await work.options(key="ключ ⚙", id="идентификатор ⚙").submit(4)
    return [await lab.outcome(job) for job in (*jobs, unicode)]


@case
async def a_batch(lab: Lab) -> Any:
    @lab.batch_task(size=3, wait=5.0, retries=1, backoff="none")
    async def index(items: list[BatchItem[int]]) -> list[Any]:
        lab.note(sorted(item.value for item in items))
        return [ValueError("odd") if item.value % 2 and item.attempt == 1 else item.value for item in items]

    jobs = await index.submit_many([[0], [2], [4]])
    return [await lab.outcome(job) for job in jobs], [await job.result() for job in jobs], lab.notes


@case
async def a_batch_of_one_job(lab: Lab) -> Any:
    @lab.batch_task(size=10, wait=0.1, retries=1, backoff="none")
    async def index(items: list[BatchItem[int]]) -> list[Any]:
        lab.note([(item.value, item.attempt) for item in items])
        return [ValueError("first") if item.attempt == 1 else item.value for item in items]

    job = await index.submit(5)
    return await lab.outcome(job), lab.notes


# -- jobs that submit jobs ---------------------------------------------------------------------------------


@case
async def a_job_that_awaits_another(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def child(a: int) -> int:
        if a < 0:
            raise ValueError("negative")
        return a * 2

    @lab.task(retries=0)
    async def parent(a: int) -> int:
        job = await child.submit(a)
        return int(await job.result()) + 1

    jobs = [await parent.submit(1), await parent.submit(-1)]
    outcomes = [await lab.outcome(job) for job in jobs]
    outcomes[1]["error"] = outcomes[1]["error"].partition(" job ")[0]
    outcomes[1]["attempts"] = outcomes[1]["traceback"] = None
    return outcomes, await jobs[0].result()


@case
async def a_chain_of_jobs(lab: Lab) -> Any:
    @lab.task
    async def page(number: int) -> None:
        lab.note(number)
        if number < 8:
            await page.submit(number + 1)

    await page.submit(1)
    await lab.until(lambda: len(lab.notes) == 8)
    return lab.notes


@case
async def blocking_calls_of_a_thread(lab: Lab) -> Any:
    @lab.task
    async def child(a: int) -> int:
        return a * 2

    @lab.task
    def parent(a: int) -> int:
        return int(child.delay(a).result(20)) + int(child.options(retries=0).blocking.submit(1).result(20))

    job = await parent.submit(4)
    return await lab.outcome(job), await job.result()


@case
async def a_cancel_of_a_running_job(lab: Lab) -> Any:
    @lab.task
    async def work(ctx: Context) -> None:
        try:
            lab.note((await lab.client.jobs.cancel(ctx.id)).state)
        finally:
            lab.note("cleaned up")

    job = await work.submit()
    found = await lab.outcome(job)
    await lab.until(lambda: "cleaned up" in lab.notes)
    return found, lab.notes, await lab.error(job.result(), job)


@case
async def a_cancel_of_a_job_that_has_ended(lab: Lab) -> Any:
    @lab.task
    async def work() -> int:
        return 1

    job = await work.submit()
    await job.wait(20)
    return await lab.error(job.cancel(), job)


@case
async def lists_of_jobs(lab: Lab) -> Any:
    @lab.task(retries=0, tags=["listed"])
    async def work(a: int) -> int:
        return 1 // a

    jobs = [await work.submit(1), await work.submit(0), await work.options(delay=60).submit(2)]
    await asyncio.gather(*(job.wait(20) for job in jobs[:2]))
    found = await lab.client.jobs.list(task=work.name)
    failed = await lab.client.jobs.list(task=work.name, state="failed")
    by_argument = await lab.client.jobs.list(task=work.name, arg={"a": 1})
    cancelled = await lab.client.jobs.cancel_many(task=work.name)
    events = [event.state async for event in jobs[0].events()]
    one = await lab.client.jobs.get(jobs[1].id)
    states = sorted(record.state for record in found), [record.state for record in failed]
    return states, [record.arguments for record in by_argument], cancelled, events, one.error


@case
async def a_job_that_does_not_exist(lab: Lab) -> Any:
    job = lab.client.jobs.handle("missing")
    return [await lab.error(one) for one in (job.status(), job.result(20), job.cancel(), job.retry())]


# -- workflows ---------------------------------------------------------------------------------------------


async def workflow_outcome(lab: Lab, job: JobHandle[Any]) -> Any:
    """The outcome of a workflow and of its nodes."""
    found = await lab.outcome(job)
    # The checks of a waiting workflow depend on the clock.
    del found["attempts"], found["delays"], found["was_started"]
    workflow = await lab.client.workflows.get(job.id)
    nodes = [(one.name, one.state, one.reason, one.after) for one in workflow.nodes]
    return found, nodes


@case
async def a_chain_and_a_group(lab: Lab) -> Any:
    @lab.task
    async def double(a: int) -> int:
        return a * 2

    @lab.task(retries=1, backoff=[0.1])
    async def total(ctx: Context, numbers: list[int]) -> int:
        if ctx.attempt == 1:
            raise ValueError("again")
        return sum(numbers)

    flow = chain(group(chain(double.s(number), double.s()) for number in range(3)), total.s(), double.s())
    job = await lab.app.submit(flow, name="sums")
    return await workflow_outcome(lab, job), await job.result()


@case
async def a_workflow_that_fails(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def check(a: int) -> int:
        if a < 0:
            raise ValueError("negative")
        return a

    @lab.task
    async def report(found: list[Any]) -> list[str]:
        return [type(one).__name__ for one in found]

    failing = await lab.app.submit(chain(check.s(-1), check.s()))
    going_on = await lab.app.submit(chain(group([check.s(1), check.s(-2)], on_error="continue"), report.s()))
    skipping = await lab.app.submit(chain(check.s(-3).on_error("skip"), check.s()))
    jobs = [failing, going_on, skipping]
    outcomes = [await workflow_outcome(lab, job) for job in jobs]
    return (
        outcomes,
        await lab.error(failing.result(), failing),
        await going_on.result(),
        await skipping.result(),
    )


@case
async def a_graph_of_jobs(lab: Lab) -> Any:
    @lab.task
    async def load(name: str) -> str:
        return f"page {name}"

    @lab.task
    async def join(one: str, other: str) -> str:
        return f"{one}, {other}"

    with lab.app.workflow("graph") as flow:
        first, second = flow.add(load, "a"), flow.add(load, "b")
        flow.add(join, first.result, second.result, after=[first])
    job = await lab.app.submit(flow.options(id=f"{lab.name}-1"))
    return await workflow_outcome(lab, job), await job.result()


@case
async def a_cancelled_workflow(lab: Lab) -> Any:
    @lab.task
    async def step(a: int) -> int:
        lab.note(a)
        return a

    job = await lab.app.submit(chain(step.s(1), step.s()).options(delay=60))
    await job.cancel()
    return await workflow_outcome(lab, job), lab.notes


# -- executors and dependencies ----------------------------------------------------------------------------


@case
async def a_task_in_a_thread(lab: Lab) -> Any:
    @lab.task(retries=0)
    def work(a: int) -> int:
        return 10 // a

    return [await lab.outcome(await work.submit(a)) for a in (2, 0)]


@case
async def a_task_of_a_child_process(lab: Lab) -> Any:
    add = lab.task(executor="process")(add_in_child)
    fail = lab.task(executor="process", retries=1, backoff="none")(fail_in_child)
    report = lab.task(executor="process")(report_in_child)
    jobs = [await add.submit(1, 2), await fail.submit(), await report.submit()]
    outcomes = [await lab.outcome(job) for job in jobs]
    outcomes[1]["traceback"] = outcomes[1]["attempts"] = None
    return outcomes, [await job.result() for job in (jobs[0], jobs[2])]


@case
async def an_executor_that_a_submit_names(lab: Lab) -> Any:
    @lab.task
    async def work() -> int:
        return 1

    job = await lab.client.task(work.name).options(executor="thread", retries=0).submit()
    return await lab.outcome(job)


@case
async def dependencies(lab: Lab) -> Any:
    async def connection(ctx: Context) -> AsyncIterator[str]:
        lab.note("open", ctx.attempt)
        try:
            yield "connection"
        except ValueError as error:
            lab.note("error", str(error))
            raise
        finally:
            lab.note("close")

    def settings() -> dict[str, int]:
        return {"size": 2}

    def repository(
        using: Annotated[str, Depends(connection)], size: Annotated[dict[str, int], Depends(settings)]
    ) -> Iterator[str]:
        yield f"repository of {using}, {size['size']}"
        lab.note("left")

    @lab.task(retries=1, backoff="none")
    async def work(ctx: Context, a: int, repo: Annotated[str, Depends(repository)] = INJECTED) -> str:
        if ctx.attempt == 1:
            raise ValueError("first")
        return f"{repo} {a}"

    job = await work.submit(1)
    return await lab.outcome(job), await job.result(), lab.notes


@case
async def a_dependency_that_is_replaced(lab: Lab) -> Any:
    def real() -> str:
        return "real"

    @lab.task
    async def work(found: Annotated[str, Depends(real)] = INJECTED) -> str:
        return found

    with lab.app.override(real, lambda: "fake"):
        job = await work.submit()
        return await lab.outcome(job), await job.result()


@case
async def an_older_name_of_a_task(lab: Lab) -> Any:
    @lab.task(aliases=[lab.task_name("old")])
    async def new(ctx: Context, a: int) -> list[Any]:
        return [ctx.task, a]

    job = await lab.client.submit(lab.task_name("old"), 1)
    return await lab.outcome(job), await job.result()


@case
async def exceptions_that_are_not_retried(lab: Lab) -> Any:
    @lab.task(retries=3, backoff="exponential", jitter=0, backoff_max=0.2, no_retry_on=[KeyError])
    async def fail(kind: str) -> None:
        raise {"key": KeyError, "value": ValueError}[kind](kind)

    jobs = [await fail.submit("key"), await fail.options(backoff="none").submit("value")]
    return [await lab.outcome(job) for job in jobs]


@case
async def an_exponential_backoff(lab: Lab) -> Any:
    @lab.task(retries=2, backoff=Backoff("exponential", base=0.1, factor=3, jitter=0))
    async def fail() -> None:
        raise ValueError("broken")

    return await lab.outcome(await fail.submit())


@case
async def a_function_that_is_no_task(lab: Lab) -> Any:
    job = await lab.client.submit("tests.apps.immediate:add_in_child", 1, 2)
    return await lab.outcome(job), await job.result()


@case
async def a_task_of_a_router(lab: Lab) -> Any:
    router = Router(prefix=lab.name, queue="keyed", tags=["routed"], retries=0)

    @router.task
    async def work(ctx: Context) -> list[Any]:
        return [ctx.task, ctx.queue]

    lab.app.include(router)
    job = await work.submit()
    return await lab.outcome(job), await job.result()


@case
async def a_task_that_takes_several_slots(lab: Lab) -> Any:
    @lab.task(slots=2, keep_arguments=False)
    async def work(a: int) -> int:
        return a

    return await lab.outcome(await work.submit(1)), await lab.outcome(await work.options(slots=3).submit(2))


@case
async def times_as_datetimes(lab: Lab) -> Any:
    @lab.task
    async def work(ctx: Context) -> bool:
        return ctx.job.deadline == later

    later = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    job = await work.options(deadline=later, expires=later, retry_for="1h").submit()
    return await lab.outcome(job), await job.result()


@case
async def many_jobs_at_once(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def work(a: int) -> int:
        lab.note(a)
        if a % 2 and lab.notes.count(a) == 1:
            raise ValueError("odd")
        return a

    jobs = await work.submit_many([[1], [2], [3]])
    await asyncio.gather(*(job.wait(20) for job in jobs))
    retried = await lab.client.jobs.retry_many(task=work.name, state="failed")
    await lab.until(lambda: len(lab.notes) == 5)
    outcomes = [await lab.outcome(job) for job in jobs]
    removed = await lab.client.jobs.remove_many(task=work.name)
    return retried, outcomes, removed, await lab.client.jobs.list(task=work.name)


@case
async def the_removal_of_dead_letters(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def fail() -> None:
        raise ValueError("broken")

    job = await fail.submit()
    await job.wait(20)
    letters = await lab.client.dead_letters.list(task=fail.name)
    fields = [(one.task, one.queue, one.reason, one.error, one.attempt) for one in letters]
    purged = await lab.client.dead_letters.purge(task=fail.name)
    return fields, purged, await lab.error(lab.client.dead_letters.get(job.id), job), await lab.outcome(job)


@case
async def a_function_that_returns_an_awaitable(lab: Lab) -> Any:
    async def inner(a: int) -> int:
        return a + 1

    @lab.task
    def work(a: int) -> Any:
        return inner(a)

    return await lab.outcome(await work.submit(1))


@case
async def a_job_that_submits_a_unique_job_twice(lab: Lab) -> Any:
    @lab.task(unique=True)
    async def child(a: int) -> int:
        lab.note(a)
        return a

    @lab.task
    async def parent() -> list[bool]:
        delayed = child.options(delay=60)
        jobs = [await delayed.submit(1), await delayed.submit(1)]
        for job in jobs[:1]:
            await job.promote()
        return [job.duplicate for job in jobs]

    job = await parent.submit()
    found = await lab.outcome(job), await job.result()
    await lab.until(lambda: lab.notes == [1])
    return found


# -- features together -------------------------------------------------------------------------------------


@case
async def a_unique_job_with_a_delay_and_retries(lab: Lab) -> Any:
    @lab.task(retries=2, backoff=[0.2], unique=["a"])
    async def work(ctx: Context, a: int) -> int:
        lab.note(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return a

    first = await work.options(delay=60).submit(1)
    second = await work.submit(1)
    await lab.due(60, first)
    found = await lab.outcome(first)
    third = await work.submit(1)
    return second.duplicate, found, third.duplicate, await lab.outcome(third), lab.notes


@case
async def a_fallback_of_a_delayed_job_with_a_key(lab: Lab) -> Any:
    @lab.task
    async def cheap(ctx: Context, a: int) -> Any:
        return a, sorted(ctx.headers), ctx.queue, list(ctx.job.tags), ctx.job.key

    @lab.task(retries=0, fallback=cheap)
    async def costly(a: int) -> None:
        raise ValueError("too costly")

    options = {"headers": {"h": "1"}, "tags": ["x"], "key": "own", "expires": 300}
    job = await costly.options(delay=30, **options).submit(3)
    await lab.due(30, job)
    found = await lab.outcome(job)
    other = lab.client.jobs.handle((await job.status()).fallback)
    return found, await lab.outcome(other), await other.result()


@case
async def a_callback_that_fails(lab: Lab) -> Any:
    @lab.task(retries=0)
    async def note_failure(failure: Failure) -> None:
        lab.note("called")
        raise RuntimeError("the callback is broken")

    @lab.task(retries=0, on_failure=note_failure, on_dead=note_failure)
    async def fail() -> None:
        raise ValueError("broken")

    async def dead_tasks() -> list[str]:
        dead = await lab.client.dead_letters.list()
        return sorted(one.task for one in dead if one.task.startswith(lab.name))

    async def all_are_dead() -> bool:
        return len(await dead_tasks()) == 3

    found = await lab.outcome(await fail.submit())
    await lab.until(all_are_dead)
    return found, lab.notes, await dead_tasks()


@case
async def signals_of_a_batch(lab: Lab) -> Any:
    @lab.batch_task(size=5, wait=5.0, retries=1, backoff="none")
    async def index(items: list[BatchItem[int]]) -> list[Any]:
        ends = (None, Reject("never"), Retry("again"), ValueError("odd"), KeyError("missing"))
        return [item.value if item.attempt > 1 else ends[item.value] for item in items]

    jobs = await index.submit_many([[0], [1], [2], [3], [4]])
    return [await lab.outcome(job) for job in jobs]


@case
async def exceptions_that_are_no_errors(lab: Lab) -> Any:
    class Own(BaseException):
        pass

    kinds = (asyncio.CancelledError, SystemExit, GeneratorExit, Own, StopAsyncIteration, MemoryError)

    @lab.task(retries=0)
    async def work(number: int) -> None:
        raise kinds[number]("raised by the task")

    @lab.task(retries=0)
    def work_in_thread(number: int) -> None:
        raise kinds[number]("raised by the task")

    jobs = [await task.submit(number) for task in (work, work_in_thread) for number in range(len(kinds))]
    return [{**await lab.outcome(job), "traceback": ""} for job in jobs]


@case
async def submits_of_a_thread_that_a_task_starts(lab: Lab) -> Any:
    @lab.task
    def child(a: int) -> int:
        return a + 1

    @lab.task(retries=0)
    def parent() -> list[int]:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(child.delay(1).result(10)))
        thread.start()
        thread.join()
        return [*found, child.delay(5).result(10)]

    return await lab.outcome(await parent.submit())


@case
async def dependencies_that_fail(lab: Lab) -> Any:
    async def broken() -> int:
        raise ValueError("in the provider")

    async def broken_at_the_end() -> AsyncIterator[int]:
        yield 1
        raise ValueError("in the clean-up")

    @lab.task(retries=1, backoff="none")
    async def first(x: Annotated[int, Depends(broken)] = INJECTED) -> int:
        return x

    @lab.task(retries=1, backoff="none")
    async def second(x: Annotated[int, Depends(broken_at_the_end)] = INJECTED) -> int:
        return x

    return [await lab.outcome(await task.submit()) for task in (first, second)]


# -- hooks of the App --------------------------------------------------------------------------------------


def calls_of(lab: Lab, task: str) -> Any:
    """The calls of the middleware for a task: those of the submits, and those of the worker, in order."""
    found = lab.app.recording.calls[lab.task_name(task)]  # type: ignore[attr-defined]  # see `hooked_app`
    submits = [one for one in found if one[0].startswith("submit")]
    return submits, [one for one in found if not one[0].startswith("submit")]


@hooked_case
async def middleware_of_a_job_that_succeeds(lab: Lab) -> Any:
    @lab.task
    async def work(ctx: Context, a: int) -> list[Any]:
        state = {name: value for name, value in ctx.state.items() if name != "recording"}
        return [a, state, dict(ctx.headers), current_job() is ctx]

    job = await work.submit(1)
    found = await lab.outcome(job)
    await lab.until(lambda: ("settled",) in calls_of(lab, "work")[1])
    return found, await job.result(), calls_of(lab, "work")


@hooked_case
async def middleware_of_a_job_that_fails(lab: Lab) -> Any:
    @lab.task(retries=1, backoff="none")
    def work() -> None:
        raise ValueError("broken")

    job = await work.submit()
    found = await lab.outcome(job)
    await lab.until(lambda: calls_of(lab, "work")[1].count(("settled",)) == 2)
    return found, calls_of(lab, "work")


@hooked_case
async def middleware_of_a_bulk_submit(lab: Lab) -> Any:
    @lab.task
    async def work(a: int) -> int:
        return a

    jobs = await work.submit_many([[1], [2]])
    outcomes = [await lab.outcome(job) for job in jobs]
    await lab.until(lambda: calls_of(lab, "work")[1].count(("settled",)) == 2)
    submits, runs = calls_of(lab, "work")
    return outcomes, submits, sorted(map(repr, runs))


@hooked_case
async def middleware_of_a_cancelled_job(lab: Lab) -> Any:
    @lab.task
    async def work(ctx: Context) -> None:
        await lab.client.jobs.cancel(ctx.id)

    job = await work.submit()
    found = await lab.outcome(job)
    await lab.until(lambda: ("settled",) in calls_of(lab, "work")[1])
    return found, calls_of(lab, "work")


@hooked_case
async def context_variables_in_headers(lab: Lab) -> Any:
    @lab.task
    async def work() -> str:
        return tenant.get("nothing")

    @lab.task
    async def bare() -> str:
        return other.get("nothing")

    other = contextvars.ContextVar[str]("other")
    other.set("set by the submitter")
    token = tenant.set("seven")
    job, plain = await work.submit(), await bare.submit()
    tenant.reset(token)
    return await lab.outcome(job), await job.result(), await plain.result(20)


@hooked_case
async def a_middleware_of_the_task(lab: Lab) -> Any:
    class Doubling(Middleware):
        async def around(self, ctx: Context, call: Any) -> Any:
            lab.note("outer" if ctx.attempt == 1 else "again")
            if ctx.attempt == 1:
                raise ValueError("by the middleware")
            return 2 * await call()

    @lab.task(middleware=[Doubling()], retries=1, backoff="none")
    async def work(a: int) -> int:
        lab.note("function")
        return a

    job = await work.submit(4)
    return await lab.outcome(job), await job.result(), lab.notes


@hooked_case
async def signals_that_a_middleware_raises(lab: Lab) -> Any:
    class Raising(Middleware):
        async def around(self, ctx: Context, call: Any) -> Any:
            signal = {"retry": Retry("later"), "snooze": Snooze(0.1), "reject": Reject("never")}[
                ctx.job.tags[0]
            ]
            if ctx.id in lab.notes:
                return await call()
            lab.note(ctx.id)
            raise signal

    @lab.task(middleware=[Raising()], retries=1, backoff="none")
    async def work() -> int:
        return 1

    jobs = [await work.options(tags=[tag]).submit() for tag in ("retry", "snooze", "reject")]
    return [await lab.outcome(job) for job in jobs]


# -- the comparison ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
async def test_immediate_mode_gives_the_outcome_of_a_server(name: str, on_server: dict[str, Any]) -> None:
    app = declare_queues(App("nats://127.0.0.1:1", namespace="nowhere", **PLAIN))

    await check(name, CASES[name], app, on_server)


@pytest.mark.parametrize("name", HOOKED_CASES)
async def test_immediate_mode_runs_the_hooks_of_a_worker(name: str, on_server: dict[str, Any]) -> None:
    app = hooked_app(url="nats://127.0.0.1:1", namespace="nowhere")

    await check(name, HOOKED_CASES[name], app, on_server)


def test_the_suite_has_at_least_sixty_cases() -> None:
    assert len(CASES) + len(HOOKED_CASES) >= 60
