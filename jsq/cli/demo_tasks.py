"""The task of `jsq demo`: count the lines and words of a text file, and hash it."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jsq import App

LEASE = 2.0

app = App(name="jsq-demo")
app.queue("default", lease=LEASE)

_word = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True)
class Counted:
    """The counts and the hash of one file."""

    lines: int
    words: dict[str, int]
    sha256: str


@app.task(name="demo.count", retries=3)
def count(path: str) -> Counted:
    """Count a file's lines and words, and hash it."""
    content = Path(path).read_bytes()
    text = content.decode(errors="replace")
    words = Counter(word.lower() for word in _word.findall(text))
    return Counted(text.count("\n"), dict(words), hashlib.sha256(content).hexdigest())
