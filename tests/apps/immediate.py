"""Functions that run in a child process with a server, and in this process in immediate mode."""

from jsq import Context


def add_in_child(a: int, b: int) -> int:
    return a + b


def fail_in_child() -> None:
    raise ValueError("broken in the child")


async def report_in_child(ctx: Context) -> list[object]:
    ctx.progress(0.5, "half")
    await ctx.checkpoint({"at": 1})
    return [ctx.attempt, ctx.queue, ctx.checkpointed]
