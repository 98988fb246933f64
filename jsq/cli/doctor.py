"""`jsq doctor`: a look at the server."""

from typing import Annotated

import typer

from jsq.cli.session import Session, command


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
    """Tell what is well on the server, and what is not, with a cure. Exits with 1 if there is an error.

    With --monitor, also whether each server is healthy, and whether their copies of the streams are the same.
    """
    findings = session.run(lambda client: client.admin.doctor(monitors=monitor or ()))
    for finding in findings:
        line = f"{finding.severity:<7}  {finding.what}: {finding.told}"
        session.printer.next(finding, line, name="what")
    return int(any(finding.severity == "error" for finding in findings))
