"""A link between clients and a server that can be cut, held or slowed down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from urllib.parse import urlsplit


class Proxy:
    """Forwards bytes in both directions, until a method interrupts it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._pipes: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self.delay = 0.0
        self.url = ""

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.heal()
        self.cut()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def cut(self) -> None:
        """Close all connections."""
        for pipe in self._pipes:
            pipe.cancel()

    def refuse(self) -> None:
        """Close all connections and refuse new ones."""
        self._refusing = True
        self.cut()

    def hold(self) -> None:
        """Forward nothing without closing connections: a half-open link."""
        self._open.clear()

    def heal(self) -> None:
        self._refusing = False
        self.delay = 0.0
        self._open.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        there: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if not self._refusing:
                back, there = await asyncio.open_connection(*self._target)
                await asyncio.wait(
                    (
                        asyncio.ensure_future(self._pipe(reader, there)),
                        asyncio.ensure_future(self._pipe(back, writer)),
                    ),
                    return_when="FIRST_COMPLETED",
                )
        self._pipes.discard(task)
        for end in (writer, there):
            if end is not None:
                end.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await asyncio.sleep(self.delay)
                await self._open.wait()
                writer.write(data)
                await writer.drain()


class Link:
    """The link of clients to one or more servers.

    It has a proxy for each server; all are interrupted together.
    """

    def __init__(self, url: str) -> None:
        places = [urlsplit(server) for server in url.split(",")]
        self._proxies = [Proxy(place.hostname or "", place.port or 0) for place in places]

    async def __aenter__(self) -> "Link":
        for proxy in self._proxies:
            await proxy.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for proxy in self._proxies:
            await proxy.__aexit__()

    @property
    def url(self) -> str:
        return ",".join(proxy.url for proxy in self._proxies)

    def cut(self) -> None:
        for proxy in self._proxies:
            proxy.cut()

    def refuse(self) -> None:
        for proxy in self._proxies:
            proxy.refuse()

    def hold(self) -> None:
        for proxy in self._proxies:
            proxy.hold()

    def slow(self, seconds: float) -> None:
        for proxy in self._proxies:
            proxy.delay = seconds

    def heal(self) -> None:
        for proxy in self._proxies:
            proxy.heal()


@contextlib.asynccontextmanager
async def rewriting_proxy(address: str, old: bytes, new: bytes) -> AsyncIterator[str]:
    """Run a proxy that replaces bytes in everything that the server sends."""
    host, port = address.split(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk.replace(old, new) if change else chunk)
                await writer.drain()
        writer.close()

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, far_writer))
        await asyncio.gather(pump(reader, far_writer, False), pump(far_reader, writer, True))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await close_all(writers)


async def close_all(writers: Iterable[asyncio.StreamWriter]) -> None:
    """Close connections and wait until they are closed."""
    for writer in writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
