"""`jsq sweep`: find inconsistencies on the server, and repair them."""

from typing import Annotated

import typer

from jsq.broker.maintenance.sweeper import MIN_AGE
from jsq.cli.options import command
from jsq.cli.printing import say
from jsq.cli.session import Session
from jsq.cli.submit_options import duration
from jsq.errors import count_noun

INCONSISTENCY_COLUMNS = ("inconsistency", "queue", "job", "repaired")


@command
def sweep(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="repair nothing, only list")] = False,
    age: Annotated[float, duration("the least age of what is examined")] = MIN_AGE,
) -> None:
    """Find inconsistencies on the server, and repair them. Workers do so by themselves, a part at a time.

    Skips entries younger than --age, because work in progress looks the same.

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
    say(f"{count_noun(len(swept), 'inconsistency')} found, {repaired:,} repaired")
