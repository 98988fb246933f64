"""`around_sync`: middleware in the thread of a plain function."""

import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from jsq import INJECTED, App, Context, Depends, Middleware
from jsq.middleware import CallNext
from tests.helpers.workers import Working


async def test_around_sync_runs_in_the_thread_of_a_plain_function_and_inside_around(
    app: App, working: Working
) -> None:
    seen: list[tuple[str, bool]] = []

    class Places(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        async def around(self, ctx: Context, call: CallNext) -> Any:
            seen.append((f"{self.name} around", in_main_thread()))
            return await call()

        def around_sync(self, ctx: Context, call: Callable[[], Any]) -> Any:
            seen.append((f"{self.name} around_sync {ctx.attempt}", in_main_thread()))
            return call() + self.name

    def in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    @app.task(middleware=[Places("a"), Middleware(), Places("b")])
    def plain(text: str) -> str:
        seen.append((text, in_main_thread()))
        return text

    @app.task(middleware=[Places("c")])
    async def on_loop() -> str:
        return "loop"

    async with working():
        assert await (await plain.submit("x")).result(10) == "xba"
        assert await (await on_loop.submit()).result(10) == "loop"

    assert seen == [
        ("a around", True),
        ("b around", True),
        ("a around_sync 1", False),
        ("b around_sync 1", False),
        ("x", False),
        ("c around", True),
    ]


async def test_around_sync_surrounds_the_dependencies_of_a_plain_function_and_its_errors(
    app: App, working: Working
) -> None:
    seen: list[str] = []

    class Notes(Middleware):
        def around_sync(self, ctx: Context, call: Callable[[], Any]) -> Any:
            seen.append("before")
            try:
                return call()
            except ValueError as error:
                seen.append(str(error))
                return "handled"

    def opened() -> Iterator[str]:
        seen.append("open")
        yield "value"
        seen.append("not reached: the function has raised")

    @app.task(middleware=[Notes()])
    def broken(given: Annotated[str, Depends(opened)] = INJECTED) -> str:
        raise ValueError(given)

    async with working():
        assert await (await broken.submit()).result(10) == "handled"

    assert seen == ["before", "open", "value"]
