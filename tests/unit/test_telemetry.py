"""Log lines: one line each, and inert in a terminal."""

import json
import logging

import pytest

from jsq.errors import BadOption
from jsq.telemetry.lines import JsonLines, TextLines
from jsq.telemetry.probes import read_address


def record(message: str, **about: object) -> logging.LogRecord:
    made = logging.LogRecord("jsq.job", logging.INFO, "", 0, message, (), None)
    vars(made).update(about)
    made.created = 0.0
    return made


def test_a_text_line_tells_what_it_is_about() -> None:
    line = TextLines().format(record("job retrying", job="a1", delay=1.5, error="ValueError: no way"))
    assert line == '1970-01-01T00:00:00.000Z INFO job retrying job=a1 delay=1.5 error="ValueError: no way"'


@pytest.mark.parametrize("nasty", ["\x1b[31mred", "a\nfake line", "a\rb", "\u202eevil", "\x00"])
def test_nothing_in_a_line_moves_a_terminal(nasty: str) -> None:
    line = TextLines().format(record(nasty, error=nasty))
    assert line.isprintable()


def test_a_json_line_is_one_object() -> None:
    line = JsonLines().format(record("job failed", job="a1", error="a\nb"))
    assert "\n" not in line
    assert json.loads(line) == {
        "at": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "logger": "jsq.job",
        "message": "job failed",
        "job": "a1",
        "error": "a\nb",
    }


@pytest.mark.parametrize(
    ("text", "read"),
    [("0.0.0.0:80", ("0.0.0.0", 80)), ("9464", ("127.0.0.1", 9464)), ("[::1]:1", ("::1", 1))],
)
def test_an_address_is_read(text: str, read: tuple[str, int]) -> None:
    assert read_address(text) == read


@pytest.mark.parametrize("text", ["", "x", "host:", "host:port", "host:70000", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadOption, match="http cannot be"):
        read_address(text)
