"""A wrong clock on the machine of a client or worker, while the clock of the server is right."""

import sys
import time
from datetime import datetime, timedelta, tzinfo

import pytest

TRUE = datetime


class _DatetimeType(type):
    def __instancecheck__(cls, one: object) -> bool:
        return isinstance(one, TRUE)


def set_clock_ahead(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clock that jsq reads in this process ahead by `seconds`."""

    class Ahead(TRUE, metaclass=_DatetimeType):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> TRUE:  # type: ignore[override]  # returns a plain datetime
            return TRUE.now(tz) + timedelta(seconds=seconds)

    clock = time.time
    patch.setattr(time, "time", lambda: clock() + seconds)
    for name, module in list(sys.modules.items()):
        if name.startswith("jsq.") and getattr(module, "datetime", None) is TRUE:
            patch.setattr(module, "datetime", Ahead)
