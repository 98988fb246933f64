"""The context variables of immediate mode: the jobs, and the call of a client, that run the present code."""

import contextvars
from dataclasses import dataclass, field


@dataclass(slots=True)
class ClientCall:
    """A call of a client, and the ids of the jobs that it has stored. `submits` is false for changes."""

    submits: bool
    ids: list[str] = field(default_factory=list)


client_call: contextvars.ContextVar[ClientCall | None] = contextvars.ContextVar("client_call", default=None)
"""The call of a client that the present code runs in."""

running_jobs: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("running_jobs", default=())
"""The ids of the jobs that the present code runs in: the outermost first."""
