"""What the jobs of one `jsq submit` have in common, be it one or a million."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jsq.app import App
from jsq.cli.parsing import Call
from jsq.cli.printing import Form
from jsq.cli.session import Session
from jsq.client.client import Client, check_each
from jsq.client.handle import JobHandle
from jsq.codec.signature import Signature, pack_call
from jsq.model.job import check_task
from jsq.model.options import Options


@dataclass(frozen=True, slots=True)
class Submission:
    """A task and how its jobs are to be submitted; with the App that declares it, if that is known."""

    task: str
    options: Options
    app: App | None = None
    signature: Signature | None = None

    def pack(self, call: Call) -> bytes:
        """A call's arguments, checked as far as the task is known. Raises `BadArguments`."""
        if self.signature is not None:
            return self.signature.pack(call.args, call.named)
        return pack_call(call.args, call.named)

    async def send(self, client: Client, arguments: bytes) -> JobHandle[Any]:
        return await client.send(self.task, arguments, self.keyed(arguments))

    async def send_many(
        self,
        client: Client,
        packed: Sequence[bytes],
        *,
        ids: Sequence[str],
        anew: bool,
        all_or_nothing: bool = False,
    ) -> list[JobHandle[Any]]:
        if self.options.unique:
            check_each(self.options, None if anew else ids, all_or_nothing)
            each = [self.keyed(arguments) for arguments in packed]
            return await client.send_each(self.task, packed, each)
        return await client.send_many(
            self.task, packed, self.options, ids=ids, anew=anew, all_or_nothing=all_or_nothing
        )

    def keyed(self, arguments: bytes) -> Options:
        """The options of one job, with its unique key where the task makes that of the arguments."""
        return self.app.find(self.task).keyed(self.options, arguments) if self.app else self.options


def order_of(task: str, options: Options, app: App | None) -> Submission:
    """An order; what its options leave open, the app's declaration says. Raises `UnknownTask`, `BadName`."""
    if app is None:
        return Submission(check_task(task), options)
    found = app.find(task)
    asked = found.declaration.asked.items()
    left_open = {name: value for name, value in asked if getattr(options, name) in (None, ())}
    return Submission(task, replace(options, **left_open), app, found.signature)


def print_id(session: Session, handle: JobHandle[Any]) -> None:
    known = {"id": handle.id, "queue": handle.queue, "duplicate": handle.duplicate}
    session.printer.next(known, handle.id, default=Form.NAME)
