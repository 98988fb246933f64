"""`jsq sweep`: find inconsistencies on the server, and repair them."""

from typing import Annotated

import typer

from jsq.broker.maintenance.sweeper import MIN_AGE
from jsq.cli.options import command
from jsq.cli.printing import print_message
from jsq.cli.session import Session
from jsq.cli.submit_options import duration
from jsq.errors import count_noun

INCONSISTENCY_COLUMNS = ("inconsistency", "queue", "job", "repaired")


@command
def sweep(
    session: Session,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the inconsistencies and repair none")
    ] = False,
    age: Annotated[float, duration("skip entries younger than this")] = MIN_AGE,
) -> None:
    """Find inconsistencies on the server, and repair them. Workers do this all the time, a part at a time.

    Entries younger than --age are skipped, because work in progress is no different from an inconsistency.

    \b
    jsq sweep --dry-run
    jsq sweep --age 5m
    """
    swept = session.run(lambda client: client.admin.sweep(age=age, dry_run=dry_run))
    session.printer.all(
        [
            {"inconsistency": one.kind.value, "queue": one.queue, "job": one.job, "repaired": one.repaired}
            for one in swept
        ],
        INCONSISTENCY_COLUMNS,
    )
    repaired = sum(one.repaired for one in swept)
    print_message(f"{count_noun(len(swept), 'inconsistency')} found, {repaired:,} repaired")
