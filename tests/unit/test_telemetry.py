"""Log lines: one line for each record, without control characters."""

import asyncio
import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from jsq.errors import BadOption
from jsq.model.outcome import MAX_TRACEBACK_LENGTH, Fault, TryAgain
from jsq.telemetry.logging import JsonLines, LineHandler, TextLines
from jsq.telemetry.probes import read_address
from jsq.worker.fast_log import emit
from jsq.worker.transitions import outcome_fields


@contextlib.contextmanager
def writing(*forms: logging.Formatter) -> Iterator[None]:
    """Write the log lines of jobs to stderr with several formatters."""
    log = logging.getLogger("jsq.job")
    handlers = [LineHandler() for _ in forms]
    for handler, form in zip(handlers, forms, strict=True):
        handler.setFormatter(form)
        log.addHandler(handler)
    log.setLevel("INFO")
    log.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        log.setLevel("NOTSET")
        log.propagate = True


def record(message: str, **about: object) -> logging.LogRecord:
    made = logging.LogRecord("jsq.job", logging.INFO, "", 0, message, (), None)
    vars(made).update(about)
    made.created = 0.0
    return made


def test_a_text_line_shows_the_extras_of_the_record() -> None:
    line = TextLines().format(record("job retrying", job="a1", delay=1.5, error="ValueError: no way"))
    assert line == '1970-01-01T00:00:00.000Z INFO job retrying job=a1 delay=1.5 error="ValueError: no way"'


def test_a_quoted_value_is_json_and_escaped_once() -> None:
    error = 'first "line"\nsecond\x1b[2K \u202e\x9b end'
    line = TextLines().format(record("job failed", error=error))

    assert line.isprintable()
    assert json.loads(line.split(" error=", 1)[1]) == error


@pytest.mark.parametrize("nasty", ["\x1b[31mred", "a\nfake line", "a\rb", "\u202eevil", "\x00"])
def test_a_log_line_contains_no_control_characters(nasty: str) -> None:
    line = TextLines().format(record(nasty, error=nasty))
    assert line.isprintable()


def failure(message: str) -> logging.LogRecord:
    """The record of a failed job, whose exception has a message."""
    try:
        raise ValueError(message)
    except ValueError as error:
        return record(
            "job failed", job="a1", error=message, exc_info=(ValueError, error, error.__traceback__)
        )


def test_a_traceback_is_indented_and_cannot_be_taken_for_a_line() -> None:
    first, *more = (
        TextLines().format(failure("a\n2026-01-31T12:00:00.000Z INFO job succeeded\x1b[2K")).splitlines()
    )

    assert " INFO job failed job=a1 error=" in first
    assert more[0] == "  Traceback (most recent call last):"
    assert more[-1] == r"  2026-01-31T12:00:00.000Z INFO job succeeded\x1b[2K"
    assert all(line.startswith("  ") and line.isprintable() for line in more)


def test_a_long_traceback_keeps_its_end() -> None:
    shown = json.loads(JsonLines().format(failure("x" * 50_000 + "the end")))["traceback"]

    assert len(shown) <= MAX_TRACEBACK_LENGTH + len("...\n")
    assert shown.startswith("...\n")
    assert shown.endswith("the end")


def test_an_exception_without_frames_adds_no_line_to_its_error() -> None:
    error = TimeoutError("too late")
    bare = record("job failed", error="TimeoutError: too late", exc_info=(TimeoutError, error, None))

    assert "\n" not in TextLines().format(bare)
    assert "traceback" not in json.loads(JsonLines().format(bare))


def test_the_text_of_a_traceback_is_shown_as_an_exception_is() -> None:
    sent = record("job failed", error="ValueError: no", exc_text="Traceback ...\nValueError: no")

    assert TextLines().format(sent).splitlines()[1:] == ["  Traceback ...", "  ValueError: no"]
    assert json.loads(JsonLines().format(sent))["traceback"] == "Traceback ...\nValueError: no"


def test_the_fast_path_writes_the_same_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("jsq.job")
    about = {"job": "a1", "task": "mail", "attempt": 2, "seconds": 0.25, "error": "no way"}
    with writing(JsonLines(), TextLines()):
        log.warning("job retrying", extra=about)
        emit(log, logging.WARNING, "job retrying", about)
        emit(log, logging.DEBUG, "not written", about)
    lines = [re.sub(r"20\d\d-[\d:.T-]*Z", "AT", line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 4
    assert lines[:2] == lines[2:]


async def test_log_lines_are_written_at_the_end_of_a_loop_iteration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("jsq.job")
    with writing(TextLines()):
        log.info("one")
        log.info("two")
        assert capsys.readouterr().err == ""
        await asyncio.sleep(0)
        assert capsys.readouterr().err.count("\n") == 2
        log.info("three")
        log.error("at once")
        assert capsys.readouterr().err.count("\n") == 2


def test_without_an_event_loop_a_log_line_is_written_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with writing(TextLines()):
        logging.getLogger("jsq.job").info("one")
        assert "one" in capsys.readouterr().err


def test_a_stopped_event_loop_holds_no_log_lines_back(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("jsq.job")
    loop = asyncio.new_event_loop()

    async def say() -> None:
        log.info("one")
        loop.stop()

    with writing(TextLines()):
        task = loop.create_task(say())
        loop.run_forever()
        loop.close()
        assert task.done()
        log.info("two")
        assert capsys.readouterr().err.count("\n") == 2


def test_a_closed_stderr_does_not_stop_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with writing(TextLines()):
        logging.getLogger("jsq.job").error("nobody reads it")


def test_a_json_line_is_one_object() -> None:
    line = JsonLines().format(record("job failed", job="a1", error="a\nb"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "logger": "jsq.job",
        "message": "job failed",
        "job": "a1",
        "error": "a\nb",
    }


def test_json_lines_keep_all_scripts_and_no_control_characters() -> None:
    line = JsonLines().format(record("job failed", error="Grüße"))
    nasty = JsonLines().format(record("job failed", error="\u202eevil"))

    assert "Grüße" in line
    assert nasty.isprintable()


def test_the_time_of_a_json_line_is_not_replaced_by_an_extra() -> None:
    line = JsonLines().format(record("event loop stalled", at="tasks.py:5"))

    assert json.loads(line)["time"] == "1970-01-01T00:00:00.000Z"


def test_a_snooze_is_logged_with_a_reason_and_not_as_an_error() -> None:
    snoozed = TryAgain(5.0, Fault("Snooze: busy"), counts_as_failure=False)

    assert outcome_fields(snoozed) == {"delay": 5.0, "why": "Snooze: busy"}


@pytest.mark.parametrize(
    ("text", "read"),
    [("0.0.0.0:80", ("0.0.0.0", 80)), ("9464", ("127.0.0.1", 9464)), ("[::1]:1", ("::1", 1))],
)
def test_an_http_address_is_parsed(text: str, read: tuple[str, int]) -> None:
    assert read_address(text) == read


@pytest.mark.parametrize("text", ["", "x", "host:", "host:port", "host:70000", "host:-1"])
def test_an_invalid_http_address_is_refused(text: str) -> None:
    with pytest.raises(BadOption, match="http must "):
        read_address(text)


def test_a_terminal_log_line_has_a_colored_level_and_no_microseconds() -> None:
    record = logging.LogRecord("jsq", logging.WARNING, "", 0, "job retrying", (), None)
    vars(record).update(seconds=1.214467, short=0.000419, error="Größe 1")

    line = TextLines(colors=True).format(record)

    assert " \x1b[33mWARNING\x1b[0m job retrying " in line
    assert line.endswith('seconds=1.214 short=0.000419 error="Größe 1"')
    assert "\x1b" not in TextLines().format(record)
