"""A child process that runs the tasks of one worker, one at a time. It talks to the worker over a socket.

A message is its length, then a pickled tuple. Both ends belong to jsq and the socket has no name, so no user
data is unpickled: arguments and results are sent as JSON, and an exception is judged in the child. So the
arguments, results and exceptions of a task need not be picklable.

The function runs in the main thread. One thread reads the messages of the worker, and ends the process when
the worker has gone. Another thread writes, so that a task that is interrupted leaves no partial message.
"""

import asyncio
import contextlib
import functools
import importlib
import itertools
import logging
import os
import pickle
import queue
import random
import resource
import runpy
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from jsq.app import App
from jsq.codec.signature import Signature, hides_coroutine_function, is_coroutine_function
from jsq.context import Context, ContextLink
from jsq.declaration import (
    FunctionLocation,
    takes_context,
)
from jsq.errors import BadArguments, BadResult, LifespanFailed, UsageError
from jsq.executors.awaitables import awaited, call_with_loop, end_without_result, is_awaitable
from jsq.executors.child_loop import ChildLoop
from jsq.executors.forks import reset_signals_in_forks
from jsq.executors.labels import LABEL_SOURCE, CallLabels, current_labels, job_labels
from jsq.executors.process_state import ProcessState, StandardFiles
from jsq.hooks import HookedCall, RunPlain, TaskHooks
from jsq.model.job import Job
from jsq.model.outcome import (
    Failed,
    Outcome,
    Succeeded,
    describe_error,
    judge_outcome,
)
from jsq.model.retry import CHILD_MAIN, Predicate, RetryPolicy
from jsq.task import AnyTask, Task

LENGTH = struct.Struct(">Q")

STACKS_SIGNAL = signal.SIGUSR1
"""A child prints the stacks of its threads at this signal, also while its function holds Python's lock."""

PipeMessage = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A request to run one attempt.

    `retry` is the policy of the task without its predicate, which cannot be pickled. With `uses_predicate`,
    the child takes the predicate from the task at `location`.
    """

    location: FunctionLocation
    job: Job
    token: int
    worker: str
    retry: RetryPolicy
    uses_predicate: bool = False
    checkpoint: bytes = b""
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """A request to import functions that may be called later."""

    locations: tuple[FunctionLocation, ...]


def serve(number: int, level: int) -> None:
    """Run the requests from a socket until it is closed; this is the main program of a child.

    `number` is the file descriptor of the socket, `level` the log level.
    """
    wire = socket.socket(fileno=number)
    wire.set_inheritable(False)  # processes that a task starts must not keep it open
    ChildServer(wire).serve(level)


class ChildServer:
    """Serves the requests of the worker."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._requests: queue.SimpleQueue[CallRequest | ImportRequest | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._context: Context | None = None
        self._pending_requests: dict[int, Future[bytes]] = {}
        self._request_numbers = itertools.count()
        self._running = False
        self._received = self._served = 0  # the reader counts the one, the main thread the other
        self._clean = True
        self._loop: ChildLoop | None = None
        self._forked = False
        self._files = StandardFiles()

    def serve(self, level: int) -> None:
        # Only the worker ends this process. Unlike SIG_IGN, a handler is not inherited by a program that a
        # task starts; a process that it forks gets the default handler.
        reset_signals_in_forks()
        os.register_at_fork(after_in_child=functools.partial(self._leave_worker, level))
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, self._interrupted)
        self._files.print_stacks_on(STACKS_SIGNAL)
        logging.basicConfig(level=level, handlers=[Forward(self.send)], force=True)
        writer = threading.Thread(target=self._write_messages, name="jsq-writer", daemon=True)
        writer.start()
        threading.Thread(target=self._read_messages, name="jsq-reader", daemon=True).start()
        while (request := self._next_request()) is not None:
            if isinstance(request, ImportRequest):
                self._import(request)
            else:
                self.send("ended", self._execute(request), resident_bytes(), self._clean)
            self._served += 1
        if self._loop is not None:
            self._loop.close()
        self._outbox.put(None)
        writer.join()

    def _next_request(self) -> CallRequest | ImportRequest | None:
        if self._loop is None:
            return self._requests.get()
        return self._loop.wait(self._requests.get)

    def _import(self, request: ImportRequest) -> None:
        """Import functions ahead of their calls, and enter the lifespan. A call raises the errors again."""
        for location in request.locations:
            with contextlib.suppress(BaseException):  # the code of a user's module may raise anything
                found = function_at(location)
                self._enter(found, found.task.hooks_on(found.task.declaration.queue) if found.task else None)

    def _enter(self, found: "ChildFunction", hooks: TaskHooks | None) -> Mapping[str, Any]:
        """Enter the lifespan of the task's App, once; returns its state. Raises `LifespanFailed`."""
        app = found.task.app if found.task is not None else None
        has_lifespan = app is not None and app.lifespan.is_used
        if self._loop is None and (has_lifespan or hooks is not None):
            self._loop = ChildLoop()
        if app is None or self._loop is None or not has_lifespan:
            return {}
        try:
            return self._loop.enter(app)
        except LifespanFailed:
            self._clean = False  # another child tries again
            raise

    def send(self, *message: object) -> None:
        if self._forked:
            return
        body = pickle.dumps(message)
        self._outbox.put(LENGTH.pack(len(body)) + body)

    def _execute(self, request: CallRequest) -> Outcome:
        try:
            return self._run(request)
        except BaseException as error:  # an interrupt that arrived just after the function had ended
            return judge_error(error, request, request.retry)
        finally:
            self._context = None

    def _run(self, request: CallRequest) -> Outcome:
        """Run one function, and judge how it ended, whatever it raised."""
        policy = request.retry
        try:
            found = function_at(request.location)
            policy = replace(policy, retry_if=found.predicate if request.uses_predicate else None)
            args, named = found.signature.unpack(request.job.arguments)
        except BadArguments as error:
            return Failed("bad_arguments", describe_error(error))
        hooks = found.task.hooks_on(request.job.queue) if found.task is not None else None
        state = self._enter(found, hooks)
        given = request.checkpoint, state, request.waited
        link = ContextLink(self._progress, self._request, *given, extend=self._extend)
        if found.takes_context or hooks is not None:
            self._context = Context(request.job, token=request.token, worker=request.worker, link=link)
        if self._context is not None and found.takes_context:
            args.insert(0, self._context)
        before = ProcessState()
        labels = CallLabels(job_labels(request.job))
        LABEL_SOURCE.set(labels)
        self.send("began")
        try:
            value = self._call(found.function, args, named, hooks)
            return packed_success(found.signature, value)
        except BaseException as error:  # a user's function may raise anything
            return judge_error(error, request, policy)
        finally:
            self._running = False  # an interrupt may have arrived just before
            labels.end()
            self._clean = before.restore(self._files)
            self._files.print_stacks_on(STACKS_SIGNAL)  # the function may have set another handler

    def _call(
        self, function: Callable[..., Any], args: list[Any], named: dict[str, Any], hooks: TaskHooks | None
    ) -> Any:
        """Call a function: on a new event loop, or on that of this child, or in the main thread."""
        loop, context = self._loop, self._context
        is_async, hides = is_coroutine_function(function), hides_coroutine_function(function)
        if loop is None or not (is_async or hides or hooks is not None):
            return self._call_plain(functools.partial(call_function, function, args, named))

        def begin(run_plain: RunPlain) -> Coroutine[Any, Any, Any]:
            run_all = functools.partial(run_and_await, run_plain, hides)
            if hooks is None or context is None:
                call = functools.partial(function, *args, **named)
                return awaited(call()) if is_async else run_all(call)
            return HookedCall(hooks, function, (args, named), None if is_async else run_all).run(context)

        return loop.run(begin, self._call_plain)

    def _call_plain(self, call: Callable[[], Any]) -> Any:
        """Call a function in the main thread, where an interrupt raises KeyboardInterrupt."""
        self._running = True
        try:
            return call()
        finally:
            self._running = False

    def _progress(self, fraction: float, text: str) -> None:
        self.send("progress", fraction, text)

    def _extend(self, seconds: float) -> None:
        self.send("extend", seconds)

    def _request(self, what: str, place: str, body: bytes) -> Future[bytes]:
        """Send a request of the task to the worker; the future gets the reply."""
        if self._forked:
            raise UsageError("the context cannot be used in a process that the task has forked")
        number, future = next(self._request_numbers), Future[bytes]()
        self._pending_requests[number] = future
        self.send("request", number, what, place, body)
        return future

    def _leave_worker(self, level: int) -> None:
        """In a process that the task has forked: no thread of it writes messages, so log to stderr."""
        self._forked = True
        logging.basicConfig(level=level, force=True)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._running:
            self._running = False
            raise KeyboardInterrupt("the attempt must end")
        if self._loop is not None:
            self._loop.interrupt()

    def _read_messages(self) -> None:
        while (message := receive_message(self._wire)) is not None:
            match message:
                case ("run" | "import", request):
                    self._received += 1
                    self._requests.put(request)
                case ("reply", number, body, error):
                    future = self._pending_requests.pop(number)
                    future.set_exception(error) if error is not None else future.set_result(body)
                case ("interrupt",):
                    if self._context is not None:
                        self._context.cancelled = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if self._received != self._served:
            end_process_group()  # the worker has gone and its lease will lapse: another worker gets the job
        self._requests.put(None)

    def _write_messages(self) -> None:
        while (body := self._outbox.get()) is not None:
            try:
                self._wire.sendall(body)
            except OSError:
                os._exit(1)  # the worker has gone, or a task has closed the socket


class Forward(logging.Handler):
    """Sends log records to the worker, which writes them as its own."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        labels = {} if record.name.startswith("jsq.") else current_labels()
        fields = vars(record) | {"msg": record.getMessage(), "args": None, "exc_info": None}
        added = {name: value for name, value in labels.items() if name not in fields}
        self._send("log", {name: sendable(value) for name, value in (fields | added).items()})


def sendable(value: object) -> object:
    """A value of a log record: itself if it is a plain value, else its text."""
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


def packed_success(signature: Signature, value: object) -> Outcome:
    """The success of a function that returned a value; without the value, if it cannot be stored."""
    try:
        return Succeeded(signature.pack_result(value))
    except BadResult as error:
        return end_without_result(signature.name, value, error)


def judge_error(error: BaseException, request: CallRequest, policy: RetryPolicy) -> Outcome:
    job = request.job
    return judge_outcome(
        error, failures=job.failures, policy=policy, pick=random.uniform, attempt=job.attempt
    )


@dataclass(frozen=True, slots=True)
class ChildFunction:
    """A function in this process: its task, if the name leads to one, and what its calls need."""

    function: Callable[..., Any]
    signature: Signature
    takes_context: bool
    task: AnyTask | None = None

    @property
    def predicate(self) -> Predicate | None:
        """The `retry_if` of the task."""
        return self.task.declaration.retry.retry_if if self.task is not None else None


def object_at(location: FunctionLocation) -> Any:
    """The object at a location; None if the module does not have it. Raises the exceptions of its import."""
    found: Any = main_of(location.file) if location.file else importlib.import_module(location.module)
    for part in location.name.split("."):
        found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
    return found


@functools.cache
def function_at(location: FunctionLocation) -> ChildFunction:
    """The function at a location. Raises `UsageError`, and the exceptions of its module's import."""
    if location.app is not None and isinstance(app := object_at(location.app), App):
        app.load()
    found = object_at(location)
    if isinstance(found, Task):
        return ChildFunction(found.function, found.signature, found.takes_context, found)
    if not callable(found):
        where = location.file or location.module
        raise UsageError(
            f"the child process finds no function {location.name} in {where}; define it under this name"
        )
    takes = takes_context(found)
    return ChildFunction(found, Signature(found, skip=int(takes)), takes)


@functools.cache
def main_of(file: str) -> dict[str, Any]:
    """The names that are defined by the file which the worker runs as its main module."""
    sys.path.insert(0, str(Path(file).parent))
    return runpy.run_path(file, run_name=CHILD_MAIN)


def call_function(function: Callable[..., Any], args: list[Any], named: dict[str, Any]) -> Any:
    """Call a function; what it returns is awaited on a new event loop, if it is awaitable."""
    call = functools.partial(function, *args, **named)
    if is_coroutine_function(function):
        return asyncio.run(call())
    value = call_with_loop(call) if hides_coroutine_function(function) else call()
    return asyncio.run(awaited(value)) if is_awaitable(value) else value


async def run_and_await(run_plain: RunPlain, hides: bool, call: Callable[[], Any]) -> Any:
    """Run a plain function, which `hides` a coroutine function or not, and await what it returns."""
    value = await run_plain(functools.partial(call_with_loop, call) if hides else call)
    return await value if is_awaitable(value) else value


def end_process_group() -> None:
    """End this process and those that its task has started, which are in its process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def receive_message(wire: socket.socket) -> PipeMessage | None:
    """The next message; None at the end."""
    head = receive_exactly(wire, LENGTH.size)
    body = receive_exactly(wire, LENGTH.unpack(head)[0]) if head is not None else None
    return pickle.loads(body) if body is not None else None


def receive_exactly(wire: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = wire.recv(count - len(parts))
        except OSError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


def resident_bytes() -> int:
    """Bytes of memory that this process uses, or if the system does not report that, its peak use."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
