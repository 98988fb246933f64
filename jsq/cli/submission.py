"""The task and the options that all jobs of one `jsq submit` share."""

from dataclasses import dataclass, replace
from typing import Any

from jsq.app import App
from jsq.cli.parsing import Call
from jsq.cli.printing import Form
from jsq.cli.session import Session
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.client.submitter import SubmitTarget, Submitter
from jsq.model.options import Options


@dataclass(frozen=True, slots=True)
class Submission:
    """A task and the options of its jobs, with the App that declares the task, if one is given."""

    target: SubmitTarget
    options: Options
    app: App | None = None

    def pack(self, call: Call) -> bytes:
        """The encoded arguments of a call, checked if the App is given. Raises `BadArguments`."""
        return self.target.pack(call.args, call.named)

    def submitter(self, client: Client) -> Submitter[..., Any]:
        """The submitter of the jobs, on a client."""
        return Submitter(client.connection, self.target, self.options)


def submission_of(task: str, options: Options, app: App | None) -> Submission:
    """The submission of a task; options that are left out are as the App declares them.

    Raises `UnknownTask`, `BadName`.
    """
    if app is None:
        return Submission(SubmitTarget(task), options)
    found = app.find(task)
    declared = found.declaration.submit_options.items()
    left_open = {name: value for name, value in declared if getattr(options, name) in (None, ())}
    return Submission(found.target, replace(options, **left_open), app)


def print_id(session: Session, handle: JobHandle[Any]) -> None:
    known = {"id": handle.id, "queue": handle.queue, "duplicate": handle.duplicate}
    session.printer.next(known, handle.id, default=Form.NAME)
