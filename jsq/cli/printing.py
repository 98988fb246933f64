"""How results are printed: the one place that knows tables, JSON, JSON lines, YAML and names.

Results go to stdout, messages to stderr. Without `--output`, a terminal gets a table. A pipe or a file gets
JSON, and a list there is one JSON object a line.
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
from jsq.cli.styles import STYLES, paint

UNLIMITED_COLUMNS = 10_000
"""Columns of an output that is not a terminal."""

MIN_COLUMNS = 8
"""The least width to which a cell is cut."""

GAP = "  "


class Form(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    NAME = "name"


def print_message(text: str) -> None:
    """Print a message that is not a result."""
    print(safe(text, lines=True), file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Printer:
    """Writes results to stdout in one form."""

    form: Form | None = None

    def all(
        self,
        found: Sequence[object],
        columns: Sequence[str],
        *,
        name: str = "id",
        rows: Sequence[Mapping[str, object]] | None = None,
        omit: str = "",
    ) -> None:
        """Print a list.

        A table shows `columns`, of `rows` if they are given. The form `name` prints one field. The other
        forms print every field but `omit`.
        """
        form = self._form(Form.JSONL)
        if form is Form.TABLE:
            show_table([cells(one, columns) for one in (found if rows is None else rows)], columns)
            return
        documents = [document(one) for one in found]
        documents = [{key: held for key, held in one.items() if key != omit} for one in documents]
        if form is Form.JSON:
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
        fields: Mapping[str, str] | None = None,
    ) -> None:
        """Print one result, with all its fields and those of `more`. A table shows `fields`, if given."""
        form = self._form(Form.JSON)
        if form is Form.TABLE:
            show_fields(fields if fields is not None else cells(found, document(found), full=True))
            return
        known = document(found) | {
            field: document(value) for field, value in more.items() if not empty(value)
        }
        if form is Form.NAME:
            put(safe(str(known[name])))
        else:
            self.value(known)

    def value(self, value: object) -> None:
        """Print a bare JSON value: the result of a task."""
        form = self._form(Form.JSON)
        if form is Form.YAML:
            put(yaml_text(value))
        else:
            put(json_text(value, indent=2 if form in (Form.JSON, Form.TABLE) else None))

    def next(
        self, found: object, line: str, *, name: str = "id", default: Form | None = None, word: str = ""
    ) -> None:
        """Print one result of a list that may never end. JSON is one object a line.

        A table has `line`, in which `word` has its color on a terminal.
        """
        known = document(found)
        match self.form or default or self._form(Form.JSONL):
            case Form.TABLE:
                put(safe(line).replace(word, paint(word, word, sys.stdout), 1) if word else safe(line))
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
    """Write a result at once: the reader of a pipe need not wait for it, and a closed pipe is noticed."""
    print(text, flush=True)


def document(value: Any) -> Any:
    """A value as JSON: dataclasses as objects without their empty fields, moments in UTC."""
    if (as_dict := getattr(value, "as_dict", None)) is not None:
        return {name: held for name, held in as_dict().items() if held is not None}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        shown = {key: document(held) for key, held in known.items() if held is not None and not empty(held)}
        # The result of a task is printed as it is, and only if it was stored.
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


def cells(found: Any, columns: Iterable[str], *, full: bool = False) -> dict[str, str]:
    """The cells of one row, as text."""
    known = found if isinstance(found, Mapping) else None
    values = {column: known.get(column) if known else getattr(found, column, None) for column in columns}
    return {column: cell(value, full=full) for column, value in values.items()}


def cell(value: object, *, full: bool = False) -> str:
    match value:
        case None:
            return ""
        case str():
            text = value
        case datetime():
            text = (
                f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%fZ}" if full else away(value, datetime.now(UTC))
            )
        case list() | tuple() if all(isinstance(one, str) for one in value):
            text = ", ".join(value)
        case _:
            text = json_text(document(value))
    return safe(text, lines=full)


def away(moment: datetime, now: datetime) -> str:
    """The distance of a moment from now, in its largest unit."""
    seconds = abs((now - moment).total_seconds())
    units = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
    unit = next((unit for unit, size in units.items() if seconds >= size), "s")
    span = f"{seconds // units[unit]:.0f}{unit}"
    return f"{span} ago" if moment <= now else f"in {span}"


def show_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """A table with a line for each row, or with a line for each field if the terminal is too narrow."""
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.text import Text

    heads = {column: column.upper() for column in columns}
    natural = [max(cell_len(row[column]) for row in (heads, *rows)) for column in columns]
    width = shutil.get_terminal_size((UNLIMITED_COLUMNS, 24)).columns
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
    """A text cut to `room` columns, with a mark at its end if it was longer."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= room else f"{set_cell_size(text, room - 1).rstrip()}…"


def fit(natural: Sequence[int], room: int) -> list[int] | None:
    """Widths of columns that fit into a line, or None. The last ones are cut first, the first one never."""
    widths = list(natural)
    for place in range(len(widths) - 1, 0, -1):
        excess = sum(widths) - room
        if excess > 0:
            widths[place] = max(min(widths[place], MIN_COLUMNS), widths[place] - excess)
    return widths if sum(widths) <= room else None


def show_fields(fields: Mapping[str, str]) -> None:
    """Print one field a line; a text of several lines goes below its name."""
    for name, text in fields.items():
        if "\n" in text:
            put(f"{name}:\n" + "\n".join(f"  {line}" for line in text.splitlines()))
        elif text:
            put(f"{name}: {paint(text, text, sys.stdout) if name == 'state' else text}")
