"""`jsq doctor`: check the server."""

from typing import Annotated

import typer

from jsq.cli.options import command
from jsq.cli.session import Session


@command
def doctor(
    session: Session,
    monitor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="the monitoring port of a server: http://127.0.0.1:8222; may be repeated"
        ),
    ] = None,
) -> int:
    """Check the server and report problems, each with its fix. Exits with 1 if there is an error.

    --monitor also checks the health of a server, and compares the copies of the streams on all such servers.

    \b
    jsq doctor
    jsq doctor --monitor http://127.0.0.1:8222 -o json
    """
    findings = session.run(lambda client: client.admin.doctor(monitors=monitor or ()))
    for finding in findings:
        line = f"{finding.severity:<7}  {finding.subject}: {finding.message}"
        session.printer.next(finding, line, name="subject", word=finding.severity)
    return int(any(finding.severity == "error" for finding in findings))
