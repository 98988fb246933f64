"""Tasks whose failures Sentry gets: by its middleware, and by its logging integration alone."""

import logging
import os

import sentry_sdk

from jsq import App
from jsq.contrib.sentry import Sentry

sentry_sdk.init(dsn=os.environ["DSN"], traces_sample_rate=1.0)

app = App()
log = logging.getLogger("shop")
middleware = [Sentry()]


@app.task(retries=1, backoff="none", middleware=middleware)
async def on_loop() -> None:
    log.info("mail sent")
    raise ValueError("no address")


@app.task(retries=0, executor="process", middleware=middleware)
def in_process() -> None:
    raise ValueError("no address")


@app.task(retries=0)
async def unwatched() -> None:
    raise ValueError("no address")


@app.task(middleware=middleware)
async def fine() -> None:
    log.info("fine")
