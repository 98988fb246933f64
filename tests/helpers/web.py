"""Clients of web servers that run in the test: without a socket, or behind uvicorn."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import uvicorn


@contextlib.asynccontextmanager
async def requests_to(
    server: Any, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that runs here, without a socket."""
    transport = httpx.ASGITransport(server)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


@contextlib.asynccontextmanager
async def served(server: Any, headers: Mapping[str, str] | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that uvicorn serves on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(server, log_config=None)
        running = uvicorn.Server(config)
        serving = asyncio.create_task(running._serve([listener]))
        while not running.started:
            assert not serving.done()
            await asyncio.sleep(0.005)
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=base, headers=headers, timeout=20) as client:
                yield client
        finally:
            running.should_exit = True
            await serving
