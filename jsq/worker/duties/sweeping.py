"""Workers sweep in the background: each asks for a turn regularly, and one at a time gets it."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from jsq.broker import Broker
from jsq.errors import BrokerError, NotAllowed
from jsq.model.repair import RepairResult

log = logging.getLogger("jsq.sweep")

MAX_FIRST_DELAY = 10.0
"""Seconds after its start within which a worker asks for its first turn, if not earlier by its interval."""


async def sweep_regularly(
    broker: Broker, by: str, every: float, swept: Callable[[Sequence[RepairResult]], None]
) -> None:
    """Ask for a turn `every` so many seconds (0: never), and call `swept` with the results of each turn.

    The interval is random, so that workers that were started together do not ask at the same time. Returns if
    the login lacks the permission. A repeated error is logged as a warning once.
    """
    pause, hindered = min(every, MAX_FIRST_DELAY), False
    while every > 0:
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = every
        try:
            done = await broker.sweeper.sweep_slice(by, interval=every)
        except NotAllowed as error:
            log.warning("sweep not allowed", extra={"why": str(error)})
            return
        except BrokerError as error:
            log.log(logging.DEBUG if hindered else logging.WARNING, "sweep failed", extra={"why": str(error)})
            hindered = True
        except Exception:
            log.exception("sweep failed")
        else:
            hindered = False
            if done is not None:
                swept(done)
