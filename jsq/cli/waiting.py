"""Shows on stderr, while a command waits for a job, the progress of the job or why it does not start."""

import asyncio
import contextlib
import difflib
import sys
from collections.abc import AsyncIterator, Container, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from jsq.cli.escaping import safe
from jsq.cli.job_view import progress_text
from jsq.cli.printing import cut, print_message
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.errors import JsqError, ResultTimeout, count_noun
from jsq.model.job import JobRecord
from jsq.model.job_filter import DELAYED_STATES
from jsq.model.pause import WHOLE_QUEUE
from jsq.model.worker_info import declared_options, knows_task, serves_queue, texts

HINT_SECONDS = 2.0
"""Seconds after which a command reports that no live worker can run the job."""

STATUS_COLUMNS = 78

CLEAR_LINE = "\r\x1b[K"


@contextlib.asynccontextmanager
async def waiting_shown(client: Client, id: str, queue: str = "*") -> AsyncIterator[None]:
    """While the block waits for a job, show its progress, and report why the job does not start."""
    handle = client.jobs.handle(id, queue)
    report = asyncio.create_task(report_later(client, handle))
    watchers = [report]
    if sys.stderr.isatty():
        watchers.append(asyncio.create_task(show_progress(handle)))
    try:
        yield
    except ResultTimeout:
        if not report.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(report_reason(client, handle), HINT_SECONDS)
        raise
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.wait(watchers)


async def show_progress(handle: JobHandle[object]) -> None:
    """Show the state and the progress of a job in one line, until cancelled."""
    try:
        with contextlib.suppress(JsqError):
            async for event in handle.events():
                line = safe(f"{event.state} {progress_text(event)}".rstrip())
                print(f"{CLEAR_LINE}{cut(line, STATUS_COLUMNS)}", end="", file=sys.stderr, flush=True)
    finally:
        print(CLEAR_LINE, end="", file=sys.stderr, flush=True)


async def report_later(client: Client, handle: JobHandle[object]) -> None:
    """After a moment, report why a job does not start, if so."""
    await asyncio.sleep(HINT_SECONDS)
    await report_reason(client, handle)


async def report_reason(client: Client, handle: JobHandle[object]) -> None:
    """Report why a job does not start, if so. A login that may not read the reasons gets no report."""
    with contextlib.suppress(JsqError):
        job = await handle.status()
        reason = ""
        if job.state == "queued" or job.reason == "unknown_task":
            workers = await client.admin.workers()
            reason = no_worker_reason(job, workers) or await limit_reason(client, job, workers)
        elif job.state in DELAYED_STATES:
            reason = due_reason(job)
        if reason:
            print_message(f"jsq: waiting: {reason}")


def due_reason(job: JobRecord) -> str:
    """When a delayed job is due, and the error of its last attempt; empty if it is due in a moment."""
    if job.due is None or job.due < datetime.now(UTC) + timedelta(seconds=HINT_SECONDS):
        return ""
    error = f"attempt {job.attempt} failed ({job.error}); " if job.state == "retrying" else ""
    return f"{error}the job is due at {job.due.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def no_worker_reason(job: JobRecord, workers: list[dict[str, Any]]) -> str:
    """Why none of the live workers can run a job; empty if one can."""
    serving = [worker for worker in workers if serves_queue(worker, job.queue)]
    if not serving:
        return f"no live worker serves queue {job.queue}"
    if not job.task or any(knows_task(worker, job.task) for worker in serving):
        return ""
    return unknown_task_reason(job.queue, job.task, serving)


def unknown_task_reason(queue: str, task: str, serving: list[dict[str, Any]]) -> str:
    """That no worker of a queue has a task, and which task may be meant."""
    if ":" in task:
        return f"no live worker of queue {queue} allows the function {task}"
    known = sorted({one for worker in serving for one in texts(worker.get("tasks"))})
    meant = difflib.get_close_matches(task, known, 1)
    hint = f"; is {meant[0]} meant?" if meant else ""
    return f"no live worker of queue {queue} has a task {task}{hint}"


async def limit_reason(client: Client, job: JobRecord, workers: list[dict[str, Any]]) -> str:
    """Which pause or limit keeps a job from its start, as far as that can be seen; else empty."""
    stats = await client.queues.get(job.queue)
    for pause in sorted(stats.pauses, key=lambda one: one.scope != WHOLE_QUEUE):
        if pause.scope == WHOLE_QUEUE or pause.task == job.task:
            what = f"queue {job.queue}" if pause.scope == WHOLE_QUEUE else f"task {job.task}"
            end = f" until {pause.until:%Y-%m-%d %H:%M:%S} UTC" if pause.until is not None else ""
            why = " by RateLimited" if pause.reason == "rate_limited" else ""
            return f"{what} is paused{why}{end}"
    waiting, settings = sum(stats.waiting.values()), stats.settings
    behind = f"; {count_noun(waiting, 'job')} of the queue can start next" if waiting else ""
    if settings.concurrency is not None and stats.running >= settings.concurrency:
        return f"queue {job.queue} runs {settings.concurrency} jobs at once, and no more{behind}"
    if settings.rate is not None and not waiting:
        return f"queue {job.queue} starts {settings.rate} at most"
    if stats.waiting_for_key:
        return f"{count_noun(stats.waiting_for_key, 'job')} of queue {job.queue} wait for a job of their key"
    slots = sum(int(worker.get("slots") or 0) for worker in workers if serves_queue(worker, job.queue))
    if slots and stats.running >= slots:
        return f"all {slots} slots of the workers of queue {job.queue} are in use{behind}"
    return ""


async def report_submit_by_name(client: Client, task: str, queue: str, given: Container[str]) -> None:
    """Warn if the live workers of a queue do not know a task, or declare options that a submit lacks.

    `given` are the options that the submit has. No warning for a login that may not list the workers.
    """
    with contextlib.suppress(JsqError):
        workers = await client.admin.workers()
        for warning in submit_warnings(workers, task, queue, given):
            print_message(f"jsq: warning: {warning}")


def submit_warnings(
    workers: list[dict[str, Any]], task: str, queue: str, given: Container[str]
) -> Iterator[str]:
    """The warnings about a submit of a task by its name, by what the live workers know of the task."""
    knowing = [worker for worker in workers if knows_task(worker, task)]
    declared = next((found for worker in knowing if (found := declared_options(worker, task))), {})
    missing = {name: value for name, value in declared.items() if name not in given}
    if missing.get("queue") == queue:
        del missing["queue"]
    if missing:
        shown = ", ".join(f"{name}={value}" for name, value in missing.items())
        yield f"task {task} declares {shown}, which a submit by name does not use; add them, or --app"
    serving = [worker for worker in workers if serves_queue(worker, queue)]
    if serving and not any(knows_task(worker, task) for worker in serving) and "queue" not in missing:
        yield unknown_task_reason(queue, task, serving)
