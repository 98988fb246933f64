"""How results are printed: the one place that knows tables, JSON, JSON lines, YAML and names.

Results go to stdout, talk to stderr. Unless told otherwise by `--output`, a terminal gets a table; a pipe
or a file gets JSON, and a list of things one JSON object a line.
"""

import base64
import dataclasses
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from jsq.cli.escaping import json_text, safe, yaml_text

ENDLESS = 10_000
"""Columns of what is not a terminal."""

NARROW = 8
"""Columns to which a cell may be cut."""

GAP = "  "

STYLES = {
    "succeeded": "green",
    "ok": "green",
    "failed": "red",
    "error": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "warning": "yellow",
    "running": "cyan",
}


class Form(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    NAME = "name"


def say(text: str) -> None:
    """Print a message that is not a result."""
    print(safe(text, lines=True), file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Printer:
    """Writes results to stdout in one form."""

    form: Form | None = None

    def all(self, found: Sequence[object], columns: Sequence[str], *, name: str = "id") -> None:
        """Print a list. A table shows `columns`, the form `name` one field, the others everything."""
        documents = [document(one) for one in found]
        form = self._form(Form.JSONL)
        if form is Form.TABLE:
            show_table([cells(one, columns) for one in found], columns)
        elif form is Form.JSON:
            put(json_text(documents, indent=2))
        elif form is Form.YAML:
            put(yaml_text(documents))
        else:
            for one in documents:
                put(json_text(one) if form is Form.JSONL else safe(str(one[name])))

    def one(
        self,
        found: object,
        *,
        name: str = "id",
        more: Mapping[str, object] = {},
        rows: Mapping[str, Sequence[str]] = {},
    ) -> None:
        """Print one thing, with all that is known of it, and `more`; a table has the lines `rows` of some."""
        known = document(found)
        form = self._form(Form.JSON)
        if form is Form.TABLE:
            shown = cells(found, known, whole=True) | cells(more, more, whole=True)
            show_fields(shown | {field: "\n".join(map(safe, lines)) for field, lines in rows.items()})
            return
        known = known | {field: document(value) for field, value in more.items() if not empty(value)}
        if form is Form.NAME:
            put(safe(str(known[name])))
        else:
            self.value(known)

    def value(self, value: object) -> None:
        """Print a bare JSON value: what a task returned."""
        form = self._form(Form.JSON)
        if form is Form.YAML:
            put(yaml_text(value))
        else:
            put(json_text(value, indent=2 if form in (Form.JSON, Form.TABLE) else None))

    def next(self, found: object, line: str, *, name: str = "id", default: Form | None = None) -> None:
        """Print one thing of a list that may never end; a table has `line`. JSON is one object a line."""
        known = document(found)
        match self.form or default or self._form(Form.JSONL):
            case Form.TABLE:
                put(safe(line))
            case Form.NAME:
                put(safe(str(known[name])))
            case Form.YAML:
                put(yaml_text([known]))
            case _:
                put(json_text(known))

    @property
    def shows_tables(self) -> bool:
        return self._form(Form.JSON) is Form.TABLE

    def _form(self, plain: Form) -> Form:
        return self.form or (Form.TABLE if sys.stdout.isatty() else plain)


def put(text: str) -> None:
    """Write a result at once: who reads a pipe need not wait, and who has left is noticed."""
    print(text, flush=True)


def document(value: Any) -> Any:
    """A value as JSON has it: objects for dataclasses, without their empty fields; moments in UTC."""
    if (as_dict := getattr(value, "as_dict", None)) is not None:
        return {name: held for name, held in as_dict().items() if held is not None}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        shown = {key: document(held) for key, held in known.items() if held is not None and not empty(held)}
        # The result of a task is printed as it is, and only if it was kept.
        return shown | {"result": known["result"]} if known.get("has_result") else shown
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): document(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [document(held) for held in value]
    return value


def empty(value: object) -> bool:
    return value is None or (isinstance(value, str | bytes | Mapping | list | tuple) and len(value) == 0)


# -- tables ---------------------------------------------------------------------------------------------


def cells(found: Any, columns: Iterable[str], *, whole: bool = False) -> dict[str, str]:
    """The cells of one row, as text."""
    known = found if isinstance(found, Mapping) else None
    values = {column: known.get(column) if known else getattr(found, column, None) for column in columns}
    return {column: cell(value, whole=whole) for column, value in values.items()}


def cell(value: object, *, whole: bool = False) -> str:
    match value:
        case None:
            return ""
        case str():
            text = value
        case datetime():
            text = (
                f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%fZ}" if whole else away(value, datetime.now(UTC))
            )
        case list() | tuple() if all(isinstance(one, str) for one in value):
            text = ", ".join(value)
        case _:
            text = json_text(document(value))
    return safe(text, lines=whole)


def away(moment: datetime, now: datetime) -> str:
    """How far a moment is, in its largest unit."""
    seconds = abs((now - moment).total_seconds())
    units = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
    unit = next((unit for unit, size in units.items() if seconds >= size), "s")
    span = f"{seconds // units[unit]:.0f}{unit}"
    return f"{span} ago" if moment <= now else f"in {span}"


def show_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """A table, one line for each row; where the terminal is too narrow for it, one for each field."""
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.text import Text

    heads = {column: column.upper() for column in columns}
    natural = [max(cell_len(row[column]) for row in (heads, *rows)) for column in columns]
    width = shutil.get_terminal_size((ENDLESS, 24)).columns
    widths = fit(natural, width - len(GAP) * (len(columns) - 1))
    if widths is None:
        for row in rows:
            show_fields(row)
            put("")
        return
    console = Console(file=sys.stdout, width=width, highlight=False)
    for row in (heads, *rows):
        line = Text()
        for column, room in zip(columns, widths, strict=True):
            style = STYLES.get(row[column], "bold" if row is heads else "")
            line.append(set_cell_size(cut(row[column], room), room), style)
            line.append(GAP)
        line.rstrip()
        console.print(line, soft_wrap=True)


def cut(text: str, room: int) -> str:
    """A text that fits into `room` columns, with a mark where it was longer."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= room else f"{set_cell_size(text, room - 1).rstrip()}…"


def fit(natural: Sequence[int], room: int) -> list[int] | None:
    """Widths of columns that fit into a line, the last ones cut first, the first not at all; or None."""
    widths = list(natural)
    for place in range(len(widths) - 1, 0, -1):
        excess = sum(widths) - room
        if excess > 0:
            widths[place] = max(min(widths[place], NARROW), widths[place] - excess)
    return widths if sum(widths) <= room else None


def show_fields(fields: Mapping[str, str]) -> None:
    """One field a line; a text of many lines is set below its name."""
    for name, text in fields.items():
        if "\n" in text:
            put(f"{name}:\n" + "\n".join(f"  {line}" for line in text.splitlines()))
        elif text:
            put(f"{name}: {text}")
