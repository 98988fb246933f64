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

Errors = dict[int, str]
"""The errors of a type checker in a file, by line."""


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(path: Path, folder: Path) -> Errors:
    output = run(
        ROOT,
        "mypy",
        "--strict",
        "--no-error-summary",
        "--hide-error-context",
        "--cache-dir",
        str(folder),
        str(path),
    )
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE)
    assert {Path(file).name for file, _, _ in found} <= {path.name}, output
    return {int(line): message for _, line, message in found}


def pyright(path: Path, folder: Path) -> Errors:
    # In a separate folder, because the settings of the project exclude the misuses.
    shutil.copy(path, folder)
    settings = {"include": [path.name], "typeCheckingMode": "standard", "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    output = json.loads(run(folder, "pyright", "--outputjson", "--pythonpath", sys.executable))
    assert output["summary"]["filesAnalyzed"] == 1
    return {
        found["range"]["start"]["line"] + 1: found["message"]
        for found in output["generalDiagnostics"]
        if found["severity"] == "error"
    }


@pytest.fixture(params=["mypy", pytest.param("pyright", marks=pytest.mark.proof)])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], Errors]:
    checker = mypy if request.param == "mypy" else pyright
    return lambda path: checker(path, tmp_path)


def marked(path: Path) -> set[int]:
    lines = path.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("  # error")}


def test_correct_user_code_passes_the_type_checkers(check: Callable[[Path], Errors]) -> None:
    assert check(GOOD) == {}


def test_the_type_checkers_refuse_exactly_the_marked_misuses(check: Callable[[Path], Errors]) -> None:
    found = check(MISUSES)

    assert marked(MISUSES) - found.keys() == set()
    assert {line: message for line, message in found.items() if line not in marked(MISUSES)} == {}
    assert len(found) > 50
