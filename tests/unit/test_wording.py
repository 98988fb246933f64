"""All prose of the project follows the wording rules of `tests/helpers/wording.py`."""

from pathlib import Path

import pytest

from tests.helpers.repository import ROOT
from tests.helpers.wording import markdown_faults, python_faults, wording_faults

PENDING = ("tests",)
"""Paths whose prose is not rewritten yet. The list may only shrink."""

REWRITTEN = ("tests/guide", "tests/integration")
"""Paths in a pending folder whose prose follows the rules already."""

FILES = sorted(
    path.relative_to(ROOT)
    for pattern in ("jsq/**/*.py", "jsq/**/*.md", "tests/**/*.py", "deploy/**/*.py", "*.md")
    for path in ROOT.glob(pattern)
)


def is_pending(path: Path) -> bool:
    """Whether the longest path that contains a file, or is it, is a pending one."""
    containing = [one for one in (*PENDING, *REWRITTEN) if path.is_relative_to(one)]
    return max(containing, key=len, default="") in PENDING


@pytest.mark.parametrize("path", [path for path in FILES if not is_pending(path)], ids=str)
def test_the_prose_of_a_file_follows_the_rules(path: Path) -> None:
    check = markdown_faults if path.suffix == ".md" else python_faults

    assert check(ROOT / path) == []


def test_every_pending_or_rewritten_path_exists() -> None:
    assert [path for path in (*PENDING, *REWRITTEN) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ("The worker keeps his lease.", "banned word 'his'"),
        ("Who sweeps holds a key.", "headless sentence"),
        (f"The worker {'really ' * 40}runs.", "more than 40 words"),
    ],
)
def test_a_planted_sentence_is_found(planted: str, fault: str) -> None:
    [found] = wording_faults(f"The client submits a job. {planted}\n")

    assert found.startswith(fault)


def test_questions_code_and_headings_have_no_faults() -> None:
    text = "# What a job costs\n\nWhat does a job cost? See `told`.\n\n```python\ntold = 1\n```\n"

    assert wording_faults(text) == []
