"""`jsq doctor`: a check of the server."""

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
            metavar="URL", help="a server's monitoring, as http://127.0.0.1:8222; once for each server"
        ),
    ] = None,
) -> int:
    """Check the server and report problems, each with a cure. Exits with 1 if there is an error.

    With --monitor, checks the health of each server too, and compares their copies of the streams.

    \b
    jsq doctor
    jsq doctor --monitor http://127.0.0.1:8222 -o json
    """
    findings = session.run(lambda client: client.admin.doctor(monitors=monitor or ()))
    for finding in findings:
        line = f"{finding.severity:<7}  {finding.subject}: {finding.message}"
        session.printer.next(finding, line, name="subject")
    return int(any(finding.severity == "error" for finding in findings))
