"""The executors: each reports the end of a function and survives it."""

import asyncio
import contextvars
import functools
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from jsq.executors import Executor, LoopExecutor, Raised, Returned, ThreadExecutor, thread
from jsq.executors.awaitables import call_with_loop
from jsq.executors.base import FunctionEnd

WAIT = 10.0
"""Seconds after which a test fails."""

ERRORS = [
    ValueError("no"),
    SystemExit(1),
    KeyboardInterrupt(),
    GeneratorExit(),
    BaseException("of the lowest kind"),
    asyncio.CancelledError(),
    RecursionError(),
    TimeoutError(),
    StopAsyncIteration(),
]
colour = contextvars.ContextVar("colour", default="none")


async def ended(executor: Executor, function: Callable[[], Any]) -> FunctionEnd:
    async with asyncio.timeout(WAIT):
        return await executor.start(function).end


def raises(error: BaseException) -> None:
    raise error


def on_loop(function: Callable[[], Any]) -> Callable[[], Any]:
    """A coroutine function that behaves like a plain function."""

    async def run() -> Any:
        return function()

    return run


KINDS = [
    pytest.param(LoopExecutor, on_loop, id="loop"),
    pytest.param(ThreadExecutor, lambda function: function, id="thread"),
]
both = pytest.mark.parametrize(("kind", "shaped"), KINDS)
Shaped = Callable[[Callable[[], Any]], Callable[[], Any]]


# -- both ----------------------------------------------------------------------------------------------------


@both
async def test_an_execution_ends_with_the_returned_value(
    kind: Callable[[], Executor], shaped: Shaped
) -> None:
    assert await ended(kind(), shaped(lambda: 5)) == Returned(5)


@both
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_execution_ends_with_any_raised_exception(
    kind: Callable[[], Executor], shaped: Shaped, error: BaseException
) -> None:
    end = await ended(kind(), shaped(functools.partial(raises, error)))

    assert isinstance(end, Raised)
    assert end.error is error


@both
async def test_an_executor_survives_a_function_that_tries_to_exit_the_process(
    kind: Callable[[], Executor], shaped: Shaped
) -> None:
    executor = kind()
    await ended(executor, shaped(functools.partial(raises, SystemExit(1))))

    assert await ended(executor, shaped(lambda: "alive")) == Returned("alive")


@both
async def test_an_exception_keeps_its_traceback(kind: Callable[[], Executor], shaped: Shaped) -> None:
    end = await ended(kind(), shaped(functools.partial(raises, ValueError("no"))))

    assert isinstance(end, Raised)
    frames = []
    trace = end.error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames[-1] == "raises"


@both
async def test_a_function_runs_in_a_copy_of_the_context_of_its_start(
    kind: Callable[[], Executor], shaped: Shaped
) -> None:
    def paint() -> str:
        before = colour.get()
        colour.set("blue")
        return before

    colour.set("red")

    assert await ended(kind(), shaped(paint)) == Returned("red")
    assert colour.get() == "red"


# -- on the loop ---------------------------------------------------------------------------------------------


async def test_many_coroutines_run_at_once() -> None:
    meeting = asyncio.Barrier(100)
    executor = LoopExecutor()

    ends = await asyncio.gather(*(ended(executor, meeting.wait) for _ in range(100)))

    assert sorted(end.value for end in ends if isinstance(end, Returned)) == list(range(100))


async def test_an_interrupted_coroutine_ends_with_the_cancellation() -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    execution = LoopExecutor().start(work)
    await began.wait()

    assert execution.interrupt()
    end = await execution.end
    assert isinstance(end, Raised)
    assert isinstance(end.error, asyncio.CancelledError)


async def test_a_coroutine_interrupted_before_its_first_step_never_runs() -> None:
    began: list[int] = []

    async def work() -> None:
        began.append(1)

    execution = LoopExecutor().start(work)

    assert execution.interrupt()
    end = await execution.end
    assert isinstance(end, Raised)
    assert isinstance(end.error, asyncio.CancelledError)
    assert began == []


async def test_an_interrupted_coroutine_may_clean_up_and_return() -> None:
    began = asyncio.Event()

    async def work() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "cleaned up"
        return "never"

    execution = LoopExecutor().start(work)
    await began.wait()
    execution.interrupt()

    assert await execution.end == Returned("cleaned up")


async def test_a_coroutine_that_swallows_its_cancellation_runs_to_its_end() -> None:
    began, cancelled, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
        await release.wait()
        return "late"

    execution = LoopExecutor().start(stubborn)
    await began.wait()
    execution.interrupt()
    await cancelled.wait()

    assert not execution.end.done()
    release.set()
    assert await execution.end == Returned("late")


async def test_an_error_during_cleanup_is_reported() -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while cleaning up")

    execution = LoopExecutor().start(work)
    await began.wait()
    execution.interrupt()

    end = await execution.end
    assert isinstance(end, Raised)
    assert str(end.error) == "while cleaning up"


async def test_a_plain_function_on_the_loop_is_an_error_not_a_crash() -> None:
    end = await ended(LoopExecutor(), lambda: 5)

    assert isinstance(end, Raised)
    assert isinstance(end.error, TypeError)


def test_closing_the_loop_ends_its_coroutines() -> None:
    seen: list[type[BaseException]] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            seen.append(type(error))
            raise

    async def main() -> asyncio.Future[Any]:
        end = LoopExecutor().start(work).end
        await asyncio.sleep(0)
        return end

    assert asyncio.run(main()).done()
    assert seen == [asyncio.CancelledError]


# -- in threads ----------------------------------------------------------------------------------------------


async def test_a_function_runs_beside_the_loop() -> None:
    end = await ended(ThreadExecutor(), threading.current_thread)

    assert isinstance(end, Returned)
    assert end.value is not threading.main_thread()
    assert end.value.daemon


async def test_many_functions_run_at_once() -> None:
    meeting = threading.Barrier(50)
    executor = ThreadExecutor()

    ends = await asyncio.gather(*(ended(executor, lambda: meeting.wait(WAIT)) for _ in range(50)))

    assert sorted(end.value for end in ends if isinstance(end, Returned)) == list(range(50))


async def test_an_idle_thread_is_used_again() -> None:
    executor = ThreadExecutor()

    first = await ended(executor, threading.get_ident)
    await idle(executor)
    second = await ended(executor, threading.get_ident)

    assert first == second


async def idle(executor: ThreadExecutor) -> None:
    """Wait until a thread is idle."""
    assert await asyncio.to_thread(executor._idle.acquire, timeout=WAIT)
    executor._idle.release()


async def test_the_pool_has_as_many_threads_as_ran_at_once() -> None:
    executor = ThreadExecutor()
    seen = set()
    for _ in range(20):
        end = await ended(executor, threading.get_ident)
        assert isinstance(end, Returned)
        seen.add(end.value)
        await idle(executor)

    assert len(seen) == 1


async def test_an_idle_thread_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "IDLE_SECONDS", 0.01)
    executor = ThreadExecutor()

    first = await ended(executor, threading.current_thread)
    assert isinstance(first, Returned)
    await asyncio.to_thread(first.value.join, WAIT)

    assert not first.value.is_alive()
    assert await ended(executor, lambda: "again") == Returned("again")


async def test_no_work_is_lost_while_threads_start_and_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "IDLE_SECONDS", 0.0001)
    executor = ThreadExecutor()

    for number in range(300):
        assert await ended(executor, functools.partial(abs, number)) == Returned(number)


async def test_a_thread_cannot_be_interrupted() -> None:
    release = threading.Event()
    execution = ThreadExecutor().start(lambda: release.wait(WAIT))

    assert not execution.interrupt()
    assert not execution.end.done()
    release.set()
    assert await execution.end == Returned(True)


async def test_stop_iteration_is_reported_like_any_other_error() -> None:
    end = await ended(ThreadExecutor(), lambda: next(iter(())))

    assert isinstance(end, Raised)
    assert isinstance(end.error, StopIteration)


async def test_an_idle_thread_keeps_no_references() -> None:
    class Large:
        pass

    executor, large = ThreadExecutor(), Large()
    alive = weakref.ref(large)

    await ended(executor, functools.partial(type, large))
    await idle(executor)
    del large
    gc.collect()

    assert alive() is None


async def test_a_function_whose_thread_cannot_be_started_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    executor = ThreadExecutor()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            executor.start(lambda: ran.append(1))

    assert await ended(executor, lambda: list(ran)) == Returned([])


def test_a_thread_may_outlive_its_loop() -> None:
    release = threading.Event()
    executor = ThreadExecutor()

    async def main() -> None:
        executor.start(lambda: release.wait(WAIT))

    asyncio.run(main())
    release.set()

    assert executor._idle.acquire(timeout=WAIT)


async def test_an_end_that_is_no_longer_awaited_is_dropped() -> None:
    release = threading.Event()
    executor = ThreadExecutor()
    execution = executor.start(lambda: release.wait(WAIT))

    execution.end.cancel()
    release.set()
    await idle(executor)

    assert await ended(executor, lambda: "alive") == Returned("alive")


def test_a_thread_that_never_ends_does_not_block_the_exit_of_the_process() -> None:
    script = """
import asyncio, threading
from jsq.executors import ThreadExecutor

async def main():
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def forever():
        loop.call_soon_threadsafe(began.set)
        threading.Event().wait()

    ThreadExecutor().start(forever)
    await began.wait()
    print("leaving")

asyncio.run(main())
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")


# -- awaitables that plain functions return ------------------------------------------------------------------


async def double(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


def future_of(n: int) -> asyncio.Future[int]:
    """A future that needs an event loop when it is made."""
    return asyncio.ensure_future(double(n))


@pytest.mark.parametrize("make", [lambda: double(4), lambda: call_with_loop(lambda: future_of(4))])
async def test_what_a_function_in_a_thread_returns_is_awaited(make: Callable[[], Any]) -> None:
    assert await ended(ThreadExecutor(), make) == Returned(8)


async def test_the_coroutine_of_a_function_in_a_thread_runs_on_the_loop_in_its_context() -> None:
    async def place() -> Any:
        return asyncio.get_running_loop(), colour.get()

    def paint() -> Any:
        colour.set("red")
        return place()

    assert await ended(ThreadExecutor(), paint) == Returned((asyncio.get_running_loop(), "red"))


async def test_an_exception_of_a_returned_coroutine_is_the_end() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    end = await ended(ThreadExecutor(), lambda: leave())

    assert isinstance(end, Raised)
    assert isinstance(end.error, SystemExit)


async def test_a_returned_coroutine_is_interrupted() -> None:
    waits = asyncio.Event()

    async def wait() -> None:
        waits.set()
        await asyncio.Event().wait()

    execution = ThreadExecutor().start(lambda: wait())
    async with asyncio.timeout(WAIT):
        await waits.wait()
        assert execution.interrupt()
        end = await execution.end

    assert isinstance(end, Raised)
    assert isinstance(end.error, asyncio.CancelledError)


async def test_a_coroutine_that_is_returned_after_the_interruption_never_starts() -> None:
    release, started = threading.Event(), []

    async def wait() -> None:
        started.append(1)

    def block() -> Any:
        release.wait(WAIT)
        return wait()

    execution = ThreadExecutor().start(block)
    assert not execution.interrupt()
    release.set()
    async with asyncio.timeout(WAIT):
        end = await execution.end

    assert isinstance(end, Raised)
    assert started == []


def test_a_function_with_a_loop_of_its_own_may_block_on_it() -> None:
    assert call_with_loop(lambda: asyncio.run(double(4))) == 8
    assert call_with_loop(lambda: 5) == 5
