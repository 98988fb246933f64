"""`jsq job get`: the command that should start fastest. It imports only the code that reads one job."""

import asyncio

from jsq.cli.job_view import print_job
from jsq.cli.options import CommonOptions, JobId, QueueOfId, command
from jsq.client.lookup import job_record, open_lookup
from jsq.model.attempts import JobAttempt
from jsq.model.job import JobRecord, check_id, check_queue
from jsq.settings import read_login, read_namespace


@command
def job_get(options: CommonOptions, id: JobId, queue: QueueOfId = "*") -> None:
    """Show a job: its arguments, times, result and attempts.

    A table shows the size of a long result; `jsq job result` prints the result. -o json prints the whole
    record.

    \b
    jsq job get order-17
    jsq job get order-17 -o json
    """
    found, attempts = asyncio.run(
        read_job(options, check_id(id), queue if queue == "*" else check_queue(queue))
    )
    print_job(options.printer, found, attempts)


async def read_job(options: CommonOptions, id: str, queue: str) -> tuple[JobRecord, list[JobAttempt]]:
    """The record of a job, and its attempts; no attempts for a job that has not started."""
    login, namespace = read_login(options.server or None), read_namespace(options.namespace or None)
    async with open_lookup(login, namespace=namespace, name="jsq-cli") as lookup:
        options.report_connection(login.shown, namespace)
        found = job_record(await lookup.last(id, queue))
        return found, await lookup.attempts(id, queue) if found.attempt or found.started else []
