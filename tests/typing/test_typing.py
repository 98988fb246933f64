"""The types of the public API, checked by mypy and pyright."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GOOD = HERE / "good.py"
MISUSES = HERE / "misuses.py"

Errors = dict[str, dict[int, str]]
"""The errors of a type checker, by file and line."""

FILES = (GOOD, MISUSES)


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(folder: Path) -> Errors:
    options = ["--strict", "--no-error-summary", "--hide-error-context", "--cache-dir", str(folder)]
    output = run(ROOT, "mypy", *options, *map(str, FILES))
    errors: Errors = {}
    for file, line, message in re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE):
        errors.setdefault(Path(file).name, {})[int(line)] = message
    return errors


def pyright(folder: Path) -> Errors:
    # In a separate folder, because the settings of the project exclude the misuses.
    for path in FILES:
        shutil.copy(path, folder)
    names = [path.name for path in FILES]
    settings = {"include": names, "typeCheckingMode": "standard", "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    output = json.loads(run(folder, "pyright", "--outputjson", "--pythonpath", sys.executable))
    assert output["summary"]["filesAnalyzed"] == len(FILES)
    errors: Errors = {}
    for found in output["generalDiagnostics"]:
        if found["severity"] == "error":
            line = found["range"]["start"]["line"] + 1
            errors.setdefault(Path(found["file"]).name, {})[line] = found["message"]
    return errors


def marked(path: Path) -> set[int]:
    lines = path.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("  # error")}


@pytest.mark.parametrize("check", [mypy, pytest.param(pyright, marks=pytest.mark.proof)])
def test_the_type_checkers_accept_correct_code_and_refuse_exactly_the_marked_misuses(
    check: Callable[[Path], Errors], tmp_path: Path
) -> None:
    """One run for both files: a checker reads the package first, which takes most of its time."""
    errors = check(tmp_path)
    found = errors.pop(MISUSES.name)

    assert errors == {}
    assert marked(MISUSES) - found.keys() == set()
    assert {line: message for line, message in found.items() if line not in marked(MISUSES)} == {}
    assert len(found) > 50
