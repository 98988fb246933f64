"""The tests that need Django: they run inside of the project, by `manage.py test`."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from jsq.contrib.django import app
from jsq.embedded import EmbeddedWorker


@contextlib.asynccontextmanager
async def working(**settings: Any) -> AsyncIterator[EmbeddedWorker]:
    """Run a worker of the project in this process, and close the connection at the end."""
    try:
        async with app.working(**settings) as worker:
            yield worker
    finally:
        await app.close()
