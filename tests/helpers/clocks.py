"""A machine whose clock is wrong, while its server's is right."""

import sys
import time
from datetime import datetime, timedelta, tzinfo

import pytest

TRUE = datetime


class _Kind(type):
    def __instancecheck__(cls, one: object) -> bool:
        return isinstance(one, TRUE)


def put_clock_ahead(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have all of jsq in this process read a clock that is ahead."""

    class Ahead(TRUE, metaclass=_Kind):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> TRUE:  # type: ignore[override]  # of the kind that all have
            return TRUE.now(tz) + timedelta(seconds=seconds)

    clock = time.time
    patch.setattr(time, "time", lambda: clock() + seconds)
    for name, module in list(sys.modules.items()):
        if name.startswith("jsq.") and getattr(module, "datetime", None) is TRUE:
            patch.setattr(module, "datetime", Ahead)
