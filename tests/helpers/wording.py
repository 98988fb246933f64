"""The wording rules of the project: which words, sentence starts and sentence lengths prose must not have.

The rules are those of a technical manual. A sentence names its actor, has at most `MAX_WORDS` words, and uses
the terms of the field instead of private words.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

MAX_WORDS = 40

BANNED = (
    "he him his himself she her",
    "tell tells told telling",
    "says said",
    "hear hears heard",
    "looks looked",
    "stands stood",
    "anew twin twins",
    "mend mends mended mending",
    "cure cures cured",
    "knock knocks knocked",
    "whoever whosoever",
)
"""Words that no prose may contain, grouped by their stem."""

BANNED_PHRASES = ("comes to", "came to", "let be", "lets be", "let on", "job lost", "come what may")

BANNED_IN_NAMES = frozenset({"told", "anew", "twin", "mend", "mends", "mended", "knock", "knocks", "whoever"})
"""Parts of identifiers that no name may contain."""

_WORDS = re.compile(rf"\b({'|'.join(' '.join(BANNED).split())})\b", re.IGNORECASE)
_PHRASES = re.compile(rf"\b({'|'.join(BANNED_PHRASES)})\b", re.IGNORECASE)
_PARTS = re.compile("|".join(BANNED_IN_NAMES), re.IGNORECASE)
_HEADLESS = re.compile(r"(Who|What|Whoever|Whatever|Whose|Those who|Those that|One that|One who)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[A-Z`\"'(*])")
_BLOCK_START = re.compile(r"\s*(?:[-*|#>]|\d+\.)\s")
_TABLE_ROW = re.compile(r"^\s*\|", re.MULTILINE)


def wording_faults(text: str) -> list[str]:
    """The faults of a passage of prose, one line each; an empty list if it follows the rules.

    The text is Markdown or a docstring. Code blocks and code spans are not prose.
    """
    return [fault for sentence in sentences(text) for fault in _faults(sentence)]


def sentences(text: str) -> Iterator[str]:
    """The sentences of a passage. Headings have none; a list item or a table cell is a passage of its own."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"``.*?``|`[^`]*`", "CODE", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for block in _blocks(text):
        joined = " ".join(block.split())
        yield from (part for part in _SENTENCE_END.split(joined) if part)


def _blocks(text: str) -> Iterator[str]:
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("    ") and not block:
            continue  # an indented code block
        if not line.strip() or _BLOCK_START.match(line):
            yield "\n".join(block)
            block = []
        if line.lstrip().startswith("|"):
            yield from line.split("|")
        elif not line.startswith("#"):
            block.append(re.sub(_BLOCK_START, "", line))


def _faults(sentence: str) -> Iterator[str]:
    start = sentence[:60]
    for found in (*_WORDS.finditer(sentence), *_PHRASES.finditer(sentence)):
        yield f"banned word {found[0]!r}: {sentence[max(0, found.start() - 30) : found.end() + 30]}"
    if _HEADLESS.match(sentence) and not sentence.endswith("?"):
        yield f"headless sentence: {start}"
    if len(re.findall(r"[\w'/.-]*\w[\w'/.-]*", sentence)) > MAX_WORDS:
        yield f"more than {MAX_WORDS} words: {start}"


def python_prose(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings, comments and texts of a Python file, each with its line."""
    source = path.read_text()
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text
        elif isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "CODE" for part in node.values
                ),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value
    yield from _comments(source)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Comments, those on successive lines joined."""
    if "#" not in source:
        return
    block, first, last = "", 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#: ")
            if token.start[0] == last + 1 and block:
                block = f"{block} {text}"
            else:
                if block:
                    yield first, block
                block, first = text, token.start[0]
            last = token.start[0]
    if block:
        yield first, block


def name_faults(path: Path) -> Iterator[str]:
    """The identifiers of a Python file that contain a private word."""
    source = path.read_text()
    if not _PARTS.search(source):
        return
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case _:
                continue
        parts = re.findall(r"[a-z]+|[A-Z][a-z]*", name)
        if BANNED_IN_NAMES & {part.lower() for part in parts}:
            yield f"{node.lineno}: name {name}"


def python_faults(path: Path) -> list[str]:
    """Every fault of wording in a Python file, with its line, without repetitions."""
    faults = [f"{line}: {fault}" for line, text in python_prose(path) for fault in wording_faults(text)]
    return [*dict.fromkeys([*faults, *name_faults(path)])]


def markdown_faults(path: Path) -> list[str]:
    """Every fault of wording in a Markdown file."""
    return wording_faults(path.read_text())
