"""`jsq provision`: create on the server what an App declares, and print the permissions of its users."""

from dataclasses import dataclass
from typing import Annotated

import typer

from jsq.app import App
from jsq.broker.topology.provision import Change
from jsq.cli.escaping import json_text
from jsq.cli.loading import load_app
from jsq.cli.options import Texts, command
from jsq.cli.parsing import read_pairs
from jsq.cli.printing import print_message, put
from jsq.cli.session import Session
from jsq.cli.submit_options import duration
from jsq.client.client import Client
from jsq.errors import UsageError
from jsq.model.job import DEFAULT_QUEUE
from jsq.settings import QueueSettings


@dataclass(frozen=True, slots=True)
class RoleOptions:
    """The options that print accounts and users."""

    roles: Annotated[
        bool, typer.Option("--roles", help="print accounts and users for nats-server.conf; uses no server")
    ] = False
    jwt: Annotated[bool, typer.Option("--jwt", help="with --roles: print the claims of JWTs instead")] = False
    user: Annotated[
        Texts,
        typer.Option(
            metavar="NAME=ROLE",
            help="with --roles: a user, as web=submitter, jsq=admin or ops=worker:mail,pdf+observer:*",
        ),
    ] = None
    queue: Annotated[
        Texts, typer.Option("--queue", "-q", help="with --roles: a queue for the roles that name none")
    ] = None
    nkey: Annotated[
        Texts,
        typer.Option(metavar="NAME=KEY", help="with --roles: the public key of a user"),
    ] = None

    def check(self) -> None:
        """Raises `UsageError` for an option that needs `--roles`, if that is not given."""
        if not self.roles and (self.user or self.queue or self.nkey or self.jwt):
            raise UsageError("--user, --queue, --nkey and --jwt need --roles")


@command
def provision(
    session: Session,
    target: Annotated[
        str, typer.Argument(metavar="MODULE:APP", help="the App whose queues to create [the existing queues]")
    ] = "",
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", metavar="1|3|5", help="servers that store each queue [as declared]"),
    ] = None,
    events: Annotated[
        float | None, duration("keep an event log of all jobs for this long [as the App declares]")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="change nothing; exit 1 if anything differs")
    ] = False,
    wait: Annotated[float, duration("how long to wait for servers that are not up yet")] = 0.0,
    *,
    roles: RoleOptions,
) -> int:
    """Create the streams and queues, or change them to what is declared, and print the changes.

    \b
    jsq provision shop:app --check
    jsq provision --replicas 3 --wait 5m
    jsq provision --events 30d
    jsq provision --roles --user ops=admin --user web=submitter:mail > accounts.conf
    """
    app = load_app(target) if target else None
    roles.check()
    if roles.roles:
        print_roles(session, app, roles)
        return 0
    queues = app.declared if app is not None else None
    wanted = QueueSettings.read(replicas=replicas).replicas if replicas is not None else None
    schedules = app.schedules.values() if app is not None else ()
    name = app.name if app is not None else None
    kept = events if events is not None or app is None else app.events

    async def bring(client: Client) -> list[Change]:
        return await client.admin.provision(
            queues, replicas=wanted, schedules=schedules, app=name, events=kept, check=check
        )

    changes = session.run(bring, app, wait=wait)
    for change in changes:
        session.printer.next(change, f"{change.what}: {change.how}", name="what")
    if not changes:
        print_message("nothing differs")
    return int(check and bool(changes))


def print_roles(session: Session, app: App | None, options: RoleOptions) -> None:
    """Print accounts and users; the queues are those of the options, or the app's, or the default one."""
    queues = options.queue or (app.queues if app is not None else (DEFAULT_QUEUE,))
    nkeys = read_pairs("--nkey", options.nkey or ())
    found = session.client(app).admin.roles(*(options.user or ()), queues=queues, nkeys=nkeys)
    put(json_text(found.claims(), indent=2) if options.jwt else found.conf().rstrip("\n"))
