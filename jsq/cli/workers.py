"""`jsq worker ls`: list the live workers."""

from datetime import datetime
from typing import Any

from jsq.cli.options import command
from jsq.cli.session import Session

WORKER_COLUMNS = ("worker", "host", "pid", "state", "since", "slots", "busy", "done", "queues", "tasks")


@command
def workers(session: Session) -> None:
    """List the live workers, with their queues and the tasks that they know.

    A worker that dies is listed for up to 30 seconds more, until its last heartbeat expires.

    \b
    jsq worker ls
    jsq worker ls -o json
    """
    found = session.run(lambda client: client.admin.workers())
    found.sort(key=lambda worker: str(worker.get("worker")))
    session.printer.all(found, WORKER_COLUMNS, name="worker", rows=[worker_row(one) for one in found])


def worker_row(worker: dict[str, Any]) -> dict[str, object]:
    """A worker as a row of a table."""
    since = worker.get("since")
    return {**worker, "since": datetime.fromisoformat(since) if since else None}
