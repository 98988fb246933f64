"""Tasks that log with a logger of their own, and then fail with a cause, a note and a group."""

import asyncio
import logging

from jsq import App

app = App()
log = logging.getLogger("shop.mail")


def fail() -> None:
    """Raise an exception with a cause, a note, and a group."""
    try:
        dict[str, int]()["order 17"]
    except KeyError as error:
        error.add_note("the stock was read at noon")
        raise ExceptionGroup("two faults", [ValueError("no address"), OSError("no mail")]) from error


async def line(text: str) -> None:
    log.info(text)


@app.task(retries=1, backoff="none")
async def on_loop() -> None:
    log.info("direct line", extra={"task": "mine"})
    async with asyncio.TaskGroup() as group:
        group.create_task(line("line of a subtask"))
    await asyncio.to_thread(log.info, "line of a thread")
    fail()


@app.task(retries=0)
def in_thread() -> None:
    log.info("direct line")
    fail()


@app.task(retries=0, executor="process")
def in_process() -> None:
    log.info("direct line")
    try:
        fail()
    except ExceptionGroup:
        log.exception("line with an exception")
        raise
