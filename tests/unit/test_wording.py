"""All prose of the project follows the wording rules of `tests/helpers/wording.py`."""

from pathlib import Path

import pytest

from tests.helpers.repository import ROOT
from tests.helpers.wording import markdown_faults, python_faults, wording_faults

EXEMPT = ("tests/helpers/wording.py", "tests/unit/test_wording.py")
"""Files that contain the banned words as data."""

FILES = sorted(
    path
    for pattern in ("jsq/**/*.py", "jsq/**/*.md", "tests/**/*.py", "deploy/**/*.py", "*.md")
    for path in ROOT.glob(pattern)
)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=named)
def test_the_prose_of_a_folder_follows_the_rules(folder: Path) -> None:
    faults = {}
    for path in FILES:
        if path.parent == folder and named(path) not in EXEMPT:
            check = markdown_faults if path.suffix == ".md" else python_faults
            faults[named(path)] = check(path)

    assert {name: found for name, found in faults.items() if found} == {}


def test_every_exempt_file_exists() -> None:
    assert [path for path in EXEMPT if not (ROOT / path).exists()] == []


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
