"""`jsq doctor`: a look at the server."""

from jsq.cli.session import Session, command


@command
def doctor(session: Session) -> int:
    """Tell what is well on the server, and what is not, with a cure. Exits with 1 if there is an error."""
    findings = session.run(lambda client: client.doctor())
    for finding in findings:
        line = f"{finding.severity:<7}  {finding.what}: {finding.told}"
        session.printer.next(finding, line, name="what")
    return int(any(finding.severity == "error" for finding in findings))
