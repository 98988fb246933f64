"""Ids that a careless program would mistake for a wildcard, a path, an escape or an option."""

from typing import Final

PLAIN_IDS: Final = ("-_-", "_" * 128)
"""Ids that are their own tokens."""

ODD_IDS: Final = (
    "user:123",
    "a.b",
    "a=2Eb",
    "order/17",
    "Grüße",
    "*",
    ">",
    "..",
    "{{wildcard(1)}}",
    "$JS.API.>",
    "a@b.example",
    " with spaces ",
    '"it\'s" 100%d \\n',
    "e\u0301",
    "\U0001f600" * 128,
)
"""Ids that differ from their tokens; one of them has the longest possible token."""
