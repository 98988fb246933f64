"""A log line for a change of a job, at a third of the usual cost: there may be ten thousand a second.

`logging` finds the calling function and the names of thread and process again for each line. They are the
same for all lines of this module; only the time and the extras differ.
"""

import logging
import os
import time
from collections.abc import Mapping

_common_fields = vars(logging.LogRecord("jsq.job", logging.INFO, __file__, 0, "", (), None))


def emit(
    log: logging.Logger,
    level: int,
    message: str,
    about: Mapping[str, object],
    failure: Mapping[str, object] | None = None,
) -> None:
    """Log a message as `log.log(level, message, extra=about)` does, if the level is on.

    `failure` holds the fields `exc_info` and `exc_text` of the record, if it has them.
    """
    if not log.isEnabledFor(level):
        return
    record = logging.LogRecord.__new__(logging.LogRecord)
    now = time.time()
    vars(record).update(
        _common_fields,
        name=log.name,
        levelno=level,
        levelname=logging.getLevelName(level),
        msg=message,
        created=now,
        msecs=int((now % 1) * 1000) + 0.0,
        process=os.getpid(),
    )
    if failure:
        vars(record).update(failure)
    vars(record).update(about)
    log.handle(record)
