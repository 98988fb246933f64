"""The table of bad inputs has every row, each in one file."""

import importlib
from collections import Counter
from pathlib import Path

from tests.acceptance import bad_inputs

FILES = sorted(Path(bad_inputs.__file__).parent.glob("test_bad_inputs*.py"))


def test_every_row_of_the_table_has_exactly_one_test() -> None:
    counted: Counter[int] = Counter()
    for file in FILES:
        tests = vars(importlib.import_module(f"tests.acceptance.{file.stem}"))
        counted.update({number for test in tests.values() for number in bad_inputs.numbers(test)})
    assert counted == Counter(range(1, bad_inputs.ROWS + 1))
