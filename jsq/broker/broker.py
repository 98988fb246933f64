"""One connection to one namespace, and every place on the server behind it."""

from contextlib import AbstractAsyncContextManager

from jsq.broker.flow.checkpoints import Steps
from jsq.broker.flow.key_groups import Lines
from jsq.broker.flow.pauses import Pauses
from jsq.broker.flow.rate_limits import Limits
from jsq.broker.jobs.backpressure import Room
from jsq.broker.jobs.event_log import Log
from jsq.broker.jobs.expiry import Expiries
from jsq.broker.jobs.writer import Jobs
from jsq.broker.maintenance.repairs import Mends
from jsq.broker.maintenance.scan import Search
from jsq.broker.maintenance.sweeper import Sweeps
from jsq.broker.operations.cancel import Cancels
from jsq.broker.operations.completions import Ends, hearing_ends
from jsq.broker.operations.dead_letters import Dead
from jsq.broker.operations.query import Choosing
from jsq.broker.operations.queues import Queues
from jsq.broker.operations.remove import Removals
from jsq.broker.operations.reschedule import Moves
from jsq.broker.schedules import Schedules
from jsq.broker.submit.atomic import Whole
from jsq.broker.submit.bulk import Many
from jsq.broker.submit.unique import Uniques
from jsq.broker.topology.presence import Workers
from jsq.broker.topology.streams import Streams
from jsq.broker.topology.subjects import Names
from jsq.settings import Login
from jsq.transport.wire import Wire


class Broker:
    """The server, as the rest of jsq sees it."""

    def __init__(self, wire: Wire, namespace: str) -> None:
        self.wire = wire
        self.names = names = Names(namespace)
        self.streams = Streams(wire, names)
        self.log = Log(wire, names, self.streams)
        room = Room(names, self.streams)
        self.jobs = Jobs(wire, names, self.streams, self.log, room)
        self.expiries = Expiries(wire, names, self.streams, self.log)
        self.steps = Steps(wire, names, self.streams)
        self.lines = Lines(wire, names, self.streams, self.jobs)
        self.cancels = Cancels(
            wire, names, self.streams, self.log, self.jobs, self.steps, self.lines, self.expiries
        )
        self.moves = Moves(wire, names, self.jobs, self.expiries)
        self.uniques = Uniques(wire, names, self.log, self.jobs, self.cancels, self.expiries, room)
        self.many = Many(wire, names, self.streams, self.log, self.jobs, room)
        self.whole = Whole(wire, self.streams, self.log, self.jobs, room)
        self.dead = Dead(wire, names, self.streams, self.log, self.jobs, self.lines)
        self.removals = Removals(names, self.streams, self.log, self.jobs, self.dead)
        self.choosing = Choosing(wire, names, self.streams, self.log, self.cancels, self.expiries)
        self.pauses = Pauses(wire, names, self.streams)
        self.limits = Limits(wire, names, self.streams)
        self.queues = Queues(names, self.streams, self.pauses, self.lines)
        self.workers = Workers(wire, names, self.streams)
        self.schedules = Schedules(wire, names, self.streams, self.log, self.jobs, self.cancels, self.workers)
        search = Search(wire, names, self.streams, self.log, self.dead, self.lines, self.uniques)
        mends = Mends(
            wire,
            names,
            self.streams,
            self.log,
            self.jobs,
            self.dead,
            self.lines,
            self.expiries,
            self.uniques,
            self.moves,
        )
        self.sweeps = Sweeps(wire, names, self.streams, search, mends)

    @classmethod
    async def connect(cls, login: Login, *, namespace: str = "jsq", name: str = "jsq") -> "Broker":
        """Connect. Raises what `Wire.open` raises, within 5 s."""
        Names(namespace)
        return cls(await Wire(login, name=name).open(), namespace)

    def hearing_ends(self, queue: str) -> AbstractAsyncContextManager[Ends]:
        """Hear the ends of jobs of a queue."""
        return hearing_ends(self.wire, self.names, self.log, self.jobs, queue)

    async def close(self) -> None:
        """Write what is still to be noted, then close."""
        await self.log.finish()
        await self.wire.close()
