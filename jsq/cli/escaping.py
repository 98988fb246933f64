"""Values as text that is safe to show: JSON, YAML and plain text.

Other people wrote the contents of a job. A character that a terminal would obey instead of show (an escape,
a carriage return, a change of writing direction) is written as its number, by the rules of each form.
"""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST_KEY = 120
"""YAML reads a key on one line up to 1,024 bytes; a longer key needs the form with a question mark."""

_plain_key = re.compile(r"(?!(?:true|false|null|yes|no|on|off|y|n)$)[A-Za-z_][A-Za-z0-9_-]*", re.IGNORECASE)


def safe(text: str, *, lines: bool = False) -> str:
    """Text without characters that control a terminal; with `lines`, line feeds stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else _named(c) for c in text)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON with printable characters as they are, and all others escaped."""
    text = json.dumps(value, ensure_ascii=not _is_unicode(), indent=indent)
    # Line feeds are only between fields here; those in strings are escaped.
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def yaml_text(value: Any) -> str:
    """YAML in block style, with strings quoted as in JSON."""
    return "\n".join(_block(value))


def _block(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, held in value.items():
            yield from _entry(str(key), held)
    elif isinstance(value, list) and value:
        for held in value:
            first, *rest = _block(held)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(key: str, value: Any) -> Iterator[str]:
    shown = key if _plain_key.fullmatch(key) else _scalar(key)
    if len(shown) > LONGEST_KEY:
        yield f"? {shown}"
        shown = ""
    if isinstance(value, Mapping | list) and value:
        yield f"{shown}:"
        yield from (f"  {line}" for line in _block(value))
    else:
        yield f"{shown}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    text = json.dumps(value, ensure_ascii=False)
    ascii_only = not _is_unicode()
    return "".join(_yaml(c) if not c.isprintable() or (ascii_only and c > "~") else c for c in text)


def _number(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    # Without a dot, YAML 1.1 reads 1e+16 as a string.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _named(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def _yaml(character: str) -> str:
    return f"\\U{ord(character):08x}"


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
