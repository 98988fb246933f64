"""Shows on stderr, while a command waits for a job, the progress of the job or why it does not start."""

import asyncio
import contextlib
import difflib
import sys
from collections.abc import AsyncIterator

from jsq.cli.escaping import safe
from jsq.cli.job_view import progress_text
from jsq.cli.printing import cut, print_message
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.errors import JsqError
from jsq.model.job import JobRecord

HINT_SECONDS = 2.0
"""Seconds after which a command reports that no live worker can run the job."""

STATUS_COLUMNS = 78

CLEAR_LINE = "\r\x1b[K"


@contextlib.asynccontextmanager
async def waiting_shown(client: Client, id: str, queue: str = "*") -> AsyncIterator[None]:
    """While the block waits for a job, show its progress, and report if no worker can run it."""
    handle = client.jobs.handle(id, queue)
    watchers = [asyncio.create_task(report_no_worker(client, handle))]
    if sys.stderr.isatty():
        watchers.append(asyncio.create_task(show_progress(handle)))
    try:
        yield
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


async def report_no_worker(client: Client, handle: JobHandle[object]) -> None:
    """Report that no live worker can run a job, if so. A login that may not list workers gets no report."""
    await asyncio.sleep(HINT_SECONDS)
    with contextlib.suppress(JsqError):
        job = await handle.status()
        if job.state == "queued" or job.reason == "unknown_task":
            reason = no_worker_reason(job, await client.admin.workers())
            if reason:
                print_message(f"jsq: waiting: {reason}")


def no_worker_reason(job: JobRecord, workers: list[dict[str, object]]) -> str:
    """Why none of the live workers can run a job; empty if one can."""
    serving = [worker for worker in workers if job.queue in strings(worker.get("queues"))]
    if not serving:
        return f"no live worker serves queue {job.queue}"
    known = sorted({task for worker in serving for task in strings(worker.get("tasks"))})
    if job.reason != "unknown_task" or job.task in known:
        return ""
    meant = difflib.get_close_matches(job.task, known, 1)
    hint = f"; is {meant[0]} meant?" if meant else ""
    return f"no live worker of queue {job.queue} has a task {job.task}{hint}"


def strings(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
