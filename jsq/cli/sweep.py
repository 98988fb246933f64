"""`jsq sweep`: find what was left behind on the server, and mend it."""

from typing import Annotated

import typer

from jsq.broker.maintenance.sweeper import MIN_AGE
from jsq.cli.printing import say
from jsq.cli.session import Session, command
from jsq.errors import count_noun

COLUMNS = ("flaw", "queue", "job", "mended")


@command
def sweep(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="mend nothing, only tell")] = False,
    age: Annotated[float, typer.Option(help="seconds for which it must have stood")] = MIN_AGE,
) -> None:
    """Find what was left behind on the server, and mend it. Workers do so by themselves, a part at a time.

    What is begun now looks just like it: so only what has stood for long is looked at.
    """
    swept = session.run(lambda client: client.admin.sweep(age=age, dry_run=dry_run))
    session.printer.all(
        [{"flaw": one.flaw.value, "queue": one.queue, "job": one.job, "mended": one.mended} for one in swept],
        COLUMNS,
    )
    mended = sum(one.mended for one in swept)
    say(f"{count_noun(len(swept), 'flaw')} found, {mended:,} mended")
