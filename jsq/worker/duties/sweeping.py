"""Workers sweep by the way: each asks for a turn from time to time, and one at a time gets it."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from jsq.broker import Broker
from jsq.errors import BrokerError, NotAllowed
from jsq.model.repair import RepairResult

log = logging.getLogger("jsq.sweep")

MAX_FIRST_DELAY = 10.0
"""Seconds after its start by which a worker asks for its first turn, unless it is to sweep more often."""


async def sweep_regularly(
    broker: Broker, by: str, every: float, swept: Callable[[Sequence[RepairResult]], None]
) -> None:
    """Ask for a turn every so many seconds (0: never), and tell `swept` of each.

    Not at the same moment as a thousand others that were started together. Ends where it is not allowed;
    what hinders it for long is told once.
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
