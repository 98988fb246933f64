"""The colors of words on a terminal. Pipes, files, `NO_COLOR` and dumb terminals get plain text."""

import os
from typing import TextIO

STYLES = {
    "succeeded": "green",
    "ok": "green",
    "failed": "red",
    "error": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "warning": "yellow",
    "running": "cyan",
    "retrying": "magenta",
}
"""The style of each word that has one, by the names of rich."""

STYLE_CODES = {"green": 32, "red": 31, "yellow": 33, "cyan": 36, "magenta": 35}


def has_colors(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colors, and the user wants them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, word: str, stream: TextIO) -> str:
    """The text in the style of a word, if the word has one and the stream shows colors."""
    style = STYLES.get(word)
    return f"\x1b[{STYLE_CODES[style]}m{text}\x1b[0m" if style is not None and has_colors(stream) else text
