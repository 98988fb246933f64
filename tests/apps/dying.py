"""Jobs that fail and have callbacks, for workers that are killed. Each run writes a line to `EFFECTS`."""

import os
from pathlib import Path

from jsq import App, Context, Failure

app = App()
app.queue("default", lease=2, max_crashes=100)


def effect(kind: str, id: str) -> None:
    with Path(os.environ["EFFECTS"]).open("a") as file:
        file.write(f"{kind} {id}\n")


@app.task
async def dead(failure: Failure) -> None:
    effect("dead", failure.job)


@app.task
async def instead(ctx: Context, number: int) -> None:
    effect("instead", ctx.id)


@app.task(retries=0, on_dead=dead, fallback=instead)
async def die(ctx: Context, number: int) -> None:
    effect("die", ctx.id)
    raise ValueError(number)
