"""Middleware of the project."""

from jsq import Context, Middleware
from jsq.middleware import CallNext


class Notes(Middleware):
    """Notes the tasks that ran."""

    ran: list[str] = []  # noqa: RUF012 -- of all instances

    async def around(self, ctx: Context, call: CallNext) -> object:
        self.ran.append(ctx.task)
        return await call()
