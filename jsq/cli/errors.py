"""Turns each error into one line on stderr and an exit code. Users see no traceback."""

import os
import re
import sys
import traceback
from collections.abc import Callable

import typer
from typer.core import TyperGroup

from jsq.cli.printing import print_message
from jsq.errors import (
    ArgumentsNotKept,
    BadAddress,
    BrokerFull,
    BrokerUnavailable,
    BulkUnknown,
    DuplicateJob,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    JsqError,
    LifespanFailed,
    NotAllowed,
    QueueFull,
    QueueNotEmpty,
    QueueNotFound,
    ResultTimeout,
    ScheduleNotFound,
    StepUnknown,
    SubmitUnknown,
    TaskExists,
    UnknownTask,
    UsageError,
    WrongState,
)
from jsq.model.peer_terms import COMMAND_TERMS, FLAG_TERMS, peer_hint

ERROR = 1
USAGE = 2
JOB_FAILED = 3
NOT_ALLOWED = 4
NOT_FOUND = 5
CONFLICT = 6
UNREACHABLE = 7
TIMED_OUT = 124
INTERRUPTED = 130
PIPE_CLOSED = 141


class Duplicate(UsageError):
    """The id is taken, and the caller asked for an error in this case."""

    def __init__(self, id: str) -> None:
        super().__init__(f"job {id} was submitted before")


class LinesRefused(UsageError):
    """Some of many lines were wrong and are in the rejects file; the others were submitted."""

    def __init__(self, count: int, path: str) -> None:
        refused = "1 line was" if count == 1 else f"{count:,} lines were"
        super().__init__(
            f"{refused} not submitted; correct {path} and submit it: `jsq submit TASK - < {path}`"
        )


CODES: tuple[tuple[type[BaseException], int], ...] = (
    (ResultTimeout, TIMED_OUT),
    (JobFailed, JOB_FAILED),
    (JobCancelled, JOB_FAILED),
    (JobExpired, JOB_FAILED),
    (JobNotFound, NOT_FOUND),
    (QueueNotFound, NOT_FOUND),
    (ScheduleNotFound, NOT_FOUND),
    (WrongState, CONFLICT),
    (QueueNotEmpty, CONFLICT),
    (TaskExists, CONFLICT),
    (Duplicate, CONFLICT),
    (DuplicateJob, CONFLICT),
    (LifespanFailed, ERROR),
    (UsageError, USAGE),
    (BadAddress, USAGE),
    (NotAllowed, NOT_ALLOWED),
    (BrokerUnavailable, UNREACHABLE),
    (SubmitUnknown, UNREACHABLE),
    (BulkUnknown, UNREACHABLE),
    (JsqError, ERROR),
    (typer.TyperException, USAGE),
    (KeyboardInterrupt, INTERRUPTED),
    (typer.Abort, INTERRUPTED),
    (BrokenPipeError, PIPE_CLOSED),
)
"""The exit code of each error; the first class that matches decides."""

EXPLAINED_BY: tuple[tuple[type[JsqError], str], ...] = (
    (QueueFull, "queues"),
    (BrokerFull, "queues"),
    (QueueNotEmpty, "queues"),
    (DuplicateJob, "uniqueness"),
    (ArgumentsNotKept, "jobs"),
    (JobExpired, "expiry"),
    (StepUnknown, "checkpoints"),
    (UnknownTask, "tasks"),
    (NotAllowed, "security"),
    (BrokerUnavailable, "troubleshooting"),
    (SubmitUnknown, "troubleshooting"),
    (BulkUnknown, "bulk"),
)
"""The page of the guide that an error names."""

SHELL_WORDS = (("(wait_for_room)", "(--wait-for-room)"),)
"""Options in the messages of errors, and how the shell writes them."""

QUIET = (INTERRUPTED, PIPE_CLOSED)
"""Codes without a message: the user caused the end."""


def guarded(call: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command to its exit code, which is the number it returns or that of its error."""
    try:
        code = call()
        sys.stdout.flush()
    except SystemExit as leaving:
        # The library turns a closed pipe into an exit.
        return PIPE_CLOSED if isinstance(leaving.__context__, BrokenPipeError) else exit_code(leaving.code)
    except BaseException as error:
        return print_error(error, debug=debug)
    return exit_code(code)


def print_error(error: BaseException, *, debug: bool = False) -> int:
    """Print the error on stderr; returns its exit code."""
    code = code_of(error)
    if code not in QUIET:
        print_message(f"jsq: {one_line(describe(error))}")
    if debug:
        traceback.print_exception(error)
    return code


def code_of(error: BaseException) -> int:
    return next((code for kind, code in CODES if isinstance(error, kind)), ERROR)


def describe(error: BaseException) -> str:
    if isinstance(error, typer.TyperException):
        return f"error: {mistyped(error)}"
    if isinstance(error, JsqError):
        text = " ".join(["error:", str(error), *getattr(error, "__notes__", ())])
        for name, written in SHELL_WORDS:
            text = text.replace(name, written)
        return text + page_hint(error)
    return f"internal error: {type(error).__name__}: {error} (JSQ_DEBUG=1 prints the traceback)"


def page_hint(error: JsqError) -> str:
    """The end of a message that names a page of the guide; empty for an error without one."""
    if isinstance(error, BrokerUnavailable) and not error.retryable:
        return ""  # its message names the setting that is wrong
    page = next((page for kind, page in EXPLAINED_BY if isinstance(error, kind)), "")
    return f"; see `jsq guide {page}`" if page else ""


def mistyped(error: typer.TyperException) -> str:
    """The error of the parser for wrong words as one line, with the fix at its end."""
    context: typer.Context | None = getattr(error, "ctx", None)
    text = error.format_message().rstrip(".")
    text = f"{text[:1].lower()}{text[1:]}"
    command = context.command if context is not None else None
    if hint := peer_answer(text):
        return hint
    fix = f"see `{context.command_path if context is not None else 'jsq'} --help`"
    if (found := _meant.search(text)) is not None:
        names = [name for name in (found[1] or found[2]).split(", ") if name not in hidden_options(command)]
        if not names:
            return f"{text[: found.start()]}; {fix}"
        meant = " or ".join(names)
        return f"{text[: found.start()]}; is {meant} meant? {fix[:1].upper()}{fix[1:]}"
    what, colon, why = text.partition(": ")
    text = f"{what}{colon}{translate_rule(why)}"
    if text.startswith("no such command") and isinstance(command, TyperGroup):
        text += f": there are {', '.join(command.commands)}"
    elif text.startswith("no such option") and context is not None and context.parent is None:
        text += ": write the options of a command after its name"
    elif _dashed.match(text):
        text += ": write arguments that start with a dash after --"
    return f"{text}; {fix}"


def peer_answer(text: str) -> str:
    """The error about a word of another task queue, which names the one of jsq; empty for other words."""
    if (found := _unknown_word.match(text)) is None:
        return ""
    hint = peer_hint(COMMAND_TERMS if found[1] == "command" else FLAG_TERMS, found[2])
    return f"{found[0]}: {hint}" if hint else ""


_unknown_word = re.compile(r"no such (command|option):? '?([\w-]+)'?")
_meant = re.compile(r"\. Did you mean (.+)\?$| \(Possible options: (.+)\)$")
_dashed = re.compile(r"no such option: -\d")


def hidden_options(command: object) -> set[str]:
    """The options of a command that its help does not show."""
    parameters = getattr(command, "params", ())
    return {name for one in parameters if getattr(one, "hidden", False) for name in one.opts}


def one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def exit_code(code: object) -> int:
    if isinstance(code, int):
        return int(code)
    return 0 if code is None else ERROR


def leave(code: int) -> None:
    """End the program, also if its output is closed."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
    sys.exit(code)


def translate_rule(message: str) -> str:
    """The message of a checker about a value, in the form of all other messages."""
    for pattern, words in RULES:
        message = pattern.sub(words, message)
    return message


RULES = (
    (re.compile(r"^Value error, "), ""),
    (re.compile(r"^Input should be greater than or equal to (\S+)"), r"must be \1 or more"),
    (re.compile(r"^Input should be less than or equal to (\S+)"), r"must be \1 at most"),
    (re.compile(r"^Input should be a valid integer(, .*)?$"), "must be a whole number"),
    (re.compile(r"^Input should be a valid number(, .*)?$"), "must be a number"),
    (re.compile(r"^Input should be "), "must be "),
)
