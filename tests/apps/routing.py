"""An App with a lifespan, which includes the Router of another module when it is loaded."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from jsq import App


@contextlib.asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[Mapping[str, Any]]:
    yield {"pool": "open"}


app = App(include=["tests.apps.routed"], lifespan=lifespan)
