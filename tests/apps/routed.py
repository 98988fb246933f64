"""A Router whose module imports no App; `tests.apps.routing` includes it."""

import os

from jsq import Context, Router

inner = Router("inner", executor="process", retries=0)
router = Router("shop")


@inner.task
def state_in_child(ctx: Context) -> tuple[str, int]:
    return ctx.state["pool"], os.getpid()


router.include(inner)
