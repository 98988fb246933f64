"""A child process that runs the tasks of one worker, one at a time, and is told by it over a socket.

A message is a pickled tuple after its length. Both ends are ours and the socket has no name, so nothing of a
user's is unpickled: arguments and results cross as the JSON they travel in anyway, and an exception is judged
here. So nothing that a task takes, gives or raises has to be picklable.

The function has the main thread. One thread listens to the worker, and ends the process when the worker has
gone; another speaks, so that a task which is interrupted leaves no half of a message behind.
"""

import asyncio
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
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from jsq.codec.signature import Signature
from jsq.context import Context, ContextLink
from jsq.declaration import FunctionLocation, takes_context
from jsq.errors import BadArguments, BadResult, UsageError
from jsq.executors.surroundings import Files, Surroundings
from jsq.model.job import Job
from jsq.model.outcome import Failed, Outcome, Succeeded, describe_error, judge_outcome
from jsq.model.retry import CHILD_MAIN, Predicate, RetryPolicy
from jsq.task import Task

LENGTH = struct.Struct(">Q")

PipeMessage = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One attempt that a child is to run.

    `retry` is the task's policy without its predicate, which no message can carry: if it `asks` one, the
    child takes it from the task that it finds at the place.
    """

    place: FunctionLocation
    job: Job
    token: int
    worker: str
    retry: RetryPolicy
    asks: bool = False
    checkpoint: bytes = b""


def serve(number: int, level: int) -> None:
    """Run what comes over the socket with this file number, until it ends. The whole life of a child."""
    wire = socket.socket(fileno=number)
    wire.set_inheritable(False)  # what a task starts shall not keep it open
    ChildServer(wire).serve(level)


class ChildServer:
    """This process."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._orders: queue.SimpleQueue[CallRequest | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._context: Context | None = None
        self._asked: dict[int, Future[bytes]] = {}
        self._asks = itertools.count()
        self._running = False
        self._busy = False
        self._clean = True
        self._files = Files()

    def serve(self, level: int) -> None:
        # The worker decides when we end; a handler of our own is not handed down to what a task starts.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, self._interrupted)
        logging.basicConfig(level=level, handlers=[Forward(self.send)], force=True)
        speaker = threading.Thread(target=self._speak, name="jsq-speak", daemon=True)
        speaker.start()
        threading.Thread(target=self._listen, name="jsq-listen", daemon=True).start()
        while (order := self._orders.get()) is not None:
            self.send("ended", self._answer(order), resident_bytes(), self._clean)
            self._busy = False
        self._outbox.put(None)
        speaker.join()

    def send(self, *message: object) -> None:
        body = pickle.dumps(message)
        self._outbox.put(LENGTH.pack(len(body)) + body)

    def _answer(self, order: CallRequest) -> Outcome:
        try:
            return self._run(order)
        except BaseException as error:  # an interruption that came when the function had just ended
            return judge_error(error, order, order.retry)
        finally:
            self._context = None

    def _run(self, order: CallRequest) -> Outcome:
        """Run one function, and judge how it ended, whatever it raised."""
        policy = order.retry
        try:
            function, signature, when = function_at(order.place)
            policy = replace(policy, retry_if=when if order.asks else None)
            args, named = signature.unpack(order.job.arguments)
        except BadArguments as error:
            return Failed("bad_arguments", describe_error(error))
        if takes_context(function):
            self._context = Context(
                order.job,
                token=order.token,
                worker=order.worker,
                link=ContextLink(self._progress, self._ask, order.checkpoint),
            )
            args.insert(0, self._context)
        before = Surroundings()
        try:
            self._running = True
            value = call_function(function, args, named)
            self._running = False
            return Succeeded(signature.pack_result(value))
        except BadResult as error:
            return Failed("bad_result", describe_error(error))
        except BaseException as error:  # a user's function may raise anything
            self._running = False
            return judge_error(error, order, policy)
        finally:
            self._running = False  # also where the function raised what we raise for its result
            self._clean = before.put_back(self._files)

    def _progress(self, fraction: float, text: str) -> None:
        self.send("progress", fraction, text)

    def _ask(self, what: str, place: str, body: bytes) -> Future[bytes]:
        """Have the worker keep something; the future has its answer."""
        number, future = next(self._asks), Future[bytes]()
        self._asked[number] = future
        self.send("ask", number, what, place, body)
        return future

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._running:
            self._running = False
            raise KeyboardInterrupt("the attempt is to end")

    def _listen(self) -> None:
        while (message := receive_message(self._wire)) is not None:
            match message:
                case ("run", order):
                    self._busy = True
                    self._orders.put(order)
                case ("answer", number, body, error):
                    future = self._asked.pop(number)
                    future.set_exception(error) if error is not None else future.set_result(body)
                case ("interrupt",):
                    if self._context is not None:
                        self._context.cancelled = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if self._busy:
            os._exit(1)  # the worker has gone, and its lease will lapse: what runs is another's
        self._orders.put(None)

    def _speak(self) -> None:
        while (body := self._outbox.get()) is not None:
            try:
                self._wire.sendall(body)
            except OSError:
                os._exit(1)  # the worker has gone, or a task has closed the socket: nobody hears us any more


class Forward(logging.Handler):
    """Hands log lines to the worker, which writes them as its own."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self._send = send
        self.setFormatter(logging.Formatter("%(message)s"))  # what else a line tells, the worker adds

    def emit(self, record: logging.LogRecord) -> None:
        told = vars(record) | {"msg": self.format(record), "args": None, "exc_info": None, "exc_text": None}
        self._send("log", {name: sendable(value) for name, value in told.items()})


def sendable(value: object) -> object:
    """What a line is about, as it is if it is plain."""
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


def judge_error(error: BaseException, order: CallRequest, policy: RetryPolicy) -> Outcome:
    job = order.job
    return judge_outcome(
        error, failures=job.failures, policy=policy, pick=random.uniform, attempt=job.attempt
    )


@functools.cache
def function_at(place: FunctionLocation) -> tuple[Callable[..., Any], Signature, Predicate | None]:
    """A function by its place, and the predicate of the task that stands there.

    Raises `UsageError`, and what its module raises while it is imported.
    """
    found: Any = main_of(place.file) if place.file else importlib.import_module(place.module)
    for part in place.name.split("."):
        found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
    function = found.function if isinstance(found, Task) else found
    if not callable(function):
        where = place.file or place.module
        raise UsageError(f"the child process finds no function {place.name} in {where}: name it so there")
    when = found.declaration.retry.retry_if if isinstance(found, Task) else None
    return function, Signature(function, skip=int(takes_context(function))), when


@functools.cache
def main_of(file: str) -> dict[str, Any]:
    """What a file defines that the worker runs as its main module."""
    sys.path.insert(0, str(Path(file).parent))
    return runpy.run_path(file, run_name=CHILD_MAIN)


def call_function(function: Callable[..., Any], args: list[Any], named: dict[str, Any]) -> Any:
    """What a function returns; a coroutine function gets a loop of its own."""
    if asyncio.iscoroutinefunction(function):
        return asyncio.run(function(*args, **named))
    return function(*args, **named)


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
    """Bytes of memory that this process holds; where the system does not tell, the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
