"""`jsq provision`: bring the server to what an app declares."""

from typing import Annotated

import typer

from jsq.cli.loading import load_app
from jsq.cli.printing import say
from jsq.cli.session import Session, command
from jsq.settings import QueueSettings


@command
def provision(
    session: Session,
    target: Annotated[
        str, typer.Argument(metavar="MODULE:APP", help="whose queues [all that are there]")
    ] = "",
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", metavar="1|3|5", help="servers of a cluster that hold each queue"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="change nothing; exit 1 if anything differs")
    ] = False,
) -> int:
    """Make the streams and queues, and bring them to what is declared; print what differed."""
    app = load_app(target) if target else None
    queues = app.declared if app is not None else None
    wanted = QueueSettings.read(replicas=replicas).replicas if replicas is not None else None
    changes = session.run(lambda client: client.provision(queues, replicas=wanted, check=check), app)
    for change in changes:
        session.printer.next(change, f"{change.what}: {change.how}", name="what")
    if not changes:
        say("nothing differs")
    return int(check and bool(changes))
